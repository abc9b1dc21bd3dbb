"""The samples of the document that describes the batch style, in their Python spelling.

The document writes them in TypeScript: ``prepAsync`` is ``prep_async`` here, ``runAsync`` is ``run_async`` and so on;
nothing else is changed. What a sample imports from elsewhere is given to it: a model, a node that summarises a file.
"""

from __future__ import annotations

import asyncio

import pytest
from leftovers import timed

from weft import (
    DEFAULT_ACTION,
    AsyncFlow,
    AsyncNode,
    AsyncParallelBatchFlow,
    AsyncParallelBatchNode,
    Flow,
    InMemorySaver,
    Limit,
    Node,
)


class Model:
    """Answers after a second, and knows how many asked at once."""

    def __init__(self):
        self.now = self.most = 0
        self.asked = []

    async def __call__(self, prompt):
        self.asked.append(prompt)
        self.now += 1
        self.most = max(self.most, self.now)
        await asyncio.sleep(1)
        self.now -= 1
        return f"<{prompt.removeprefix('Summarize: ')[:7]}>"


@pytest.fixture
def call_llm():
    return Model()


# 1. AsyncParallelBatchNode

TEXTS = [
    "Node.js is a JavaScript runtime built on Chrome's V8 engine.",
    "TypeScript is a typed superset of JavaScript providing better tooling.",
    "Parallel processing can reduce total latency for I/O-bound tasks.",
]
SUMMARY = "<Node.js>\n\n<TypeScr>\n\n<Paralle>"


def parallel_summaries(call_llm):
    class ParallelSummaries(AsyncParallelBatchNode):
        # prep_async returns the array of items to process in parallel
        async def prep_async(self, shared_state):
            return shared_state.get("texts") or []

        # exec_async is called in parallel for each item from prep_async()
        async def exec_async(self, text):
            prompt = f"Summarize: {text}"
            return await call_llm(prompt)  # LLM call

        # post_async collects the results into shared_state
        async def post_async(self, shared_state, prep_result, exec_result_list):
            shared_state["summary"] = "\n\n".join(exec_result_list)
            return DEFAULT_ACTION  # continue or end flow as needed

    return ParallelSummaries


@pytest.mark.parametrize("flow_class", [Flow, AsyncFlow])
def test_sample_1_summarises_all_at_once_in_the_order_of_the_items(call_llm, flow_class):
    node = parallel_summaries(call_llm)()
    flow = flow_class(node)
    shared = {"texts": TEXTS}
    action, seconds = timed(lambda: flow.run_async(shared))
    assert shared["summary"] == SUMMARY
    assert (action, seconds, call_llm.most) == (DEFAULT_ACTION, 1, 3)


def test_sample_1_from_sync_code(call_llm):
    shared = {"texts": TEXTS[:1]}
    Flow(parallel_summaries(call_llm)()).run(shared)
    assert shared["summary"] == "<Node.js>"


def test_sample_1_without_texts(call_llm):
    shared = {}
    timed(lambda: Flow(parallel_summaries(call_llm)()).run_async(shared))
    assert shared == {"summary": ""}


def test_sample_1_goes_on_after_the_node(call_llm):
    class Shout(Node):
        def post(self, shared, prep_res, exec_res):
            shared["summary"] = shared["summary"].upper()

    node = parallel_summaries(call_llm)()
    node >> Shout()
    shared = {"texts": TEXTS}
    timed(lambda: Flow(node).run_async(shared))
    assert shared["summary"] == SUMMARY.upper()


def test_watch_out_for_rate_limits(call_llm):
    """The document's best practice: "You may need a throttling mechanism or concurrency limits"."""
    shared = {"texts": TEXTS}
    _, seconds = timed(lambda: Flow(parallel_summaries(call_llm)(max_concurrent=2)).run_async(shared))
    assert (call_llm.most, seconds, shared["summary"]) == (2, 2, SUMMARY)
    limited = parallel_summaries(call_llm)(limit=Limit("llm", rate="1/2s"))
    _, seconds = timed(lambda: Flow(limited).run_async(shared))
    assert seconds == 5


def test_sample_1_asks_the_model_for_nothing_twice(call_llm):
    saver = InMemorySaver()
    node = parallel_summaries(call_llm)
    broken = True

    async def breaks(prompt):
        if broken and "Parallel" in prompt:
            await asyncio.sleep(2)
            raise ConnectionError
        return await call_llm(prompt)

    shared = {"texts": TEXTS}
    with pytest.raises(ConnectionError):
        timed(lambda: Flow(parallel_summaries(breaks)()).run_async(shared, run_id="r", checkpointer=saver))
    assert len(call_llm.asked) == 2
    broken = False
    timed(lambda: Flow(node()).run_async(shared, run_id="r", checkpointer=saver))
    assert (len(call_llm.asked), shared["summary"]) == (3, SUMMARY)


# 2. AsyncParallelBatchFlow


def load_and_summarize_file(call_llm):
    class LoadAndSummarizeFile(AsyncNode):
        async def prep_async(self, shared):
            return shared["contents"][self.params["filename"]]

        async def exec_async(self, text):
            return await call_llm(f"Summarize: {text}")

        async def post_async(self, shared, text, summary):
            shared.setdefault("summaries", {})[self.params["filename"]] = summary

    return LoadAndSummarizeFile


class SummarizeMultipleFiles(AsyncParallelBatchFlow):
    # We override prep_async to produce a list of param objects
    async def prep_async(self, shared_state):
        # Return one param object per file
        files = shared_state.get("files") or []
        return [{"filename": filename} for filename in files]


FILES = {"doc1.txt": "one and more", "doc2.txt": "two and more", "doc3.txt": "three"}
SUMMARIES = {"doc1.txt": "<one and>", "doc2.txt": "<two and>", "doc3.txt": "<three>"}


def test_sample_2_runs_the_sub_flow_for_each_file_at_the_same_time(call_llm):
    sub_flow = Flow(load_and_summarize_file(call_llm)())
    parallel_flow = SummarizeMultipleFiles(sub_flow)
    shared = {"files": ["doc1.txt", "doc2.txt", "doc3.txt"], "contents": FILES}
    _, seconds = timed(lambda: parallel_flow.run_async(shared))
    assert shared["summaries"] == SUMMARIES
    assert (seconds, call_llm.most) == (1, 3)
    assert sub_flow.params == parallel_flow.params == {}


def test_sample_2_from_sync_code(call_llm):
    shared = {"files": ["doc3.txt"], "contents": FILES}
    SummarizeMultipleFiles(Flow(load_and_summarize_file(call_llm)())).run(shared)
    assert shared["summaries"] == {"doc3.txt": "<three>"}


def test_sample_2_with_so_many_files_at_once(call_llm):
    flow = SummarizeMultipleFiles(Flow(load_and_summarize_file(call_llm)()), max_concurrent=2)
    shared = {"files": list(FILES), "contents": FILES}
    _, seconds = timed(lambda: flow.run_async(shared))
    assert (seconds, call_llm.most, shared["summaries"]) == (2, 2, SUMMARIES)


def test_if_one_task_fails_decide_whether_to_continue_or_fail_the_entire_flow(call_llm):
    """The document's best practice, both ways."""
    node = load_and_summarize_file(call_llm)
    shared = {"files": ["doc1.txt", "missing.txt", "doc3.txt"], "contents": FILES}
    with pytest.raises(KeyError, match="missing"):
        timed(lambda: SummarizeMultipleFiles(Flow(node())).run_async(shared))
    timed(lambda: SummarizeMultipleFiles(Flow(node()), on_error="collect").run_async(shared))
    assert shared["summaries"] == {name: SUMMARIES[name] for name in ("doc1.txt", "doc3.txt")}
