"""The Python samples of the document that describes the functional style, with nothing changed but the imports.

The text below is the document's own; the fences and the indentation of the samples are kept. The second sample needs
a model: ``langchain`` is not installed, so a module of that name stands in for it.
"""

from __future__ import annotations

import re
import sys
import textwrap
import threading
import time
import types
import uuid

import pytest
from leftovers import nothing_left

from weft import InMemorySaver, entrypoint, task

FIRST = """
```python
@task
def add_one(number: int) -> int:
    return number + 1

@entrypoint(checkpointer=checkpointer)
def graph(numbers: list[int]) -> list[str]:
    futures = [add_one(i) for i in numbers]
    return [f.result() for f in futures]
```
"""

SECOND = '''
    ```python
    import uuid
    from langchain.chat_models import init_chat_model
    from weft import entrypoint, task
    from weft import InMemorySaver

    # Initialize the LLM model
    llm = init_chat_model("openai:gpt-3.5-turbo")

    # Task that generates a paragraph about a given topic
    @task
    def generate_paragraph(topic: str) -> str:
        response = llm.invoke([
            {"role": "system", "content": "You are a helpful assistant that writes educational paragraphs."},
            {"role": "user", "content": f"Write a paragraph about {topic}."}
        ])
        return response.content

    # Create a checkpointer for persistence
    checkpointer = InMemorySaver()

    @entrypoint(checkpointer=checkpointer)
    def workflow(topics: list[str]) -> str:
        """Generates multiple paragraphs in parallel and combines them."""
        futures = [generate_paragraph(topic) for topic in topics]
        paragraphs = [f.result() for f in futures]
        return "\\n\\n".join(paragraphs)

    # Run the workflow
    config = {"configurable": {"thread_id": str(uuid.uuid4())}}
    result = workflow.invoke(["quantum computing", "climate change", "history of aviation"], config=config)
    print(result)
    ```
'''


def code_of(block: str) -> str:
    """The sample between its fences."""
    found = re.search(r"```python\n(.*?)\n *```", textwrap.dedent(block), re.DOTALL)
    assert found is not None
    return found[1]


@pytest.fixture
def model(monkeypatch):
    """A ``langchain`` whose model answers when three calls are with it at once."""
    together = threading.Barrier(3)
    prompts = []

    class Model:
        def invoke(self, messages):
            prompts.append(messages)
            together.wait(5)
            topic = messages[1]["content"].removeprefix("Write a paragraph about ").removesuffix(".")
            time.sleep(0.02 if "quantum" in topic else 0)  # the first to be asked is the last to answer
            return types.SimpleNamespace(content=f"All about {topic}.")

    package, module = types.ModuleType("langchain"), types.ModuleType("langchain.chat_models")
    module.init_chat_model = lambda name: Model()
    package.chat_models = module
    monkeypatch.setitem(sys.modules, "langchain", package)
    monkeypatch.setitem(sys.modules, "langchain.chat_models", module)
    return prompts


def test_the_first_sample_runs_and_its_tasks_overlap():
    together = threading.Barrier(3)

    def overlapping(fn):
        def add_one(number: int) -> int:
            together.wait(5)
            return fn(number)

        return task(add_one)

    thread = {"configurable": {"thread_id": str(uuid.uuid4())}}
    for decorator in (task, overlapping):
        names = {"task": decorator, "entrypoint": entrypoint, "checkpointer": InMemorySaver()}
        exec(code_of(FIRST), names)
        with nothing_left():
            assert names["graph"].invoke([1, 2, 3], thread) == [2, 3, 4]


def test_the_extended_sample_prints_the_paragraphs_in_the_order_of_the_topics(model, capsys):
    with nothing_left():
        exec(code_of(SECOND), {"__name__": "sample"})
    topics = ["quantum computing", "climate change", "history of aviation"]
    assert capsys.readouterr().out == "\n\n".join(f"All about {topic}." for topic in topics) + "\n"
    assert sorted(messages[1]["content"] for messages in model) == sorted(
        f"Write a paragraph about {topic}." for topic in topics
    )


def test_the_extended_sample_is_recorded(model):
    names = {"__name__": "sample"}
    exec(code_of(SECOND), names)
    state = names["workflow"].get_state(names["config"])
    assert state.values == names["result"]
    assert names["workflow"].invoke(None, names["config"]) == names["result"]
    assert len(model) == 3
