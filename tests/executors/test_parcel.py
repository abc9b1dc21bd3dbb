"""What goes to another process and comes back: as it was, or with an error that says what and where."""

from __future__ import annotations

import functools
import json
import operator
import socket
import subprocess
import sys
import threading
import time
import types
from contextvars import ContextVar, copy_context
from pathlib import Path
from typing import Any

import pytest
import things
from hypothesis import given, settings
from hypothesis import strategies as st
from killing import Program

import weft
from weft import ProcessExecutor, RemoteError, UnsendableError
from weft.errors import NodeTimeoutError
from weft.executors import parcel
from weft.executors.base import Body, Ticket


def there_and_back(error: BaseException) -> BaseException:
    return parcel.unpack_error(parcel.pack_error(error))


def far(executor: Any, fn: Any, **options: Any) -> Any:
    return weft.task(executor=executor, **options)(fn)


# Errors


@pytest.mark.parametrize(
    "kind",
    [
        "odd",
        "twice",
        "own",
        "disk",
        "key",
        "unicode",
        "import",
        "exit",
        "interrupt",
        "generator",
        "node",
        "noted",
    ],
)
def test_errors_come_back_as_they_were(kind: str, processes: ProcessExecutor) -> None:
    expected = things.make(kind)
    with pytest.raises(type(expected)) as caught:
        far(processes, things.fail).invoke(kind)
    error = caught.value
    assert type(error) is type(expected)
    assert error.args == expected.args
    assert str(error) == str(expected)
    here = {name: value for name, value in vars(error).items() if name != "__notes__"}
    assert here == {name: value for name, value in vars(expected).items() if name != "__notes__"}
    notes = getattr(expected, "__notes__", [])
    assert getattr(error, "__notes__", [])[: len(notes)] == notes, "ours come after them"
    assert "things.py" in str(error.__cause__)
    assert "in fail" in str(error.__cause__)


def test_fields_that_are_not_in_the_args_come_back() -> None:
    error = there_and_back(things.Disk(2, "no such thing", disk="c"))
    assert (error.errno, error.strerror, error.disk) == (2, "no such thing", "c")
    error = there_and_back(ImportError("no", name="n", path="p"))
    assert (error.name, error.path) == ("n", "p")
    assert isinstance(there_and_back(FileNotFoundError(2, "no", "file")), FileNotFoundError)
    error = there_and_back(NodeTimeoutError("n", timeout=1, elapsed=2, idle=True))
    assert vars(error) == vars(NodeTimeoutError("n", timeout=1, elapsed=2, idle=True))


def test_a_stop_iteration_is_a_runtime_error(processes: ProcessExecutor) -> None:
    with pytest.raises(RuntimeError, match="StopIteration"):
        far(processes, things.fail).invoke("stop")


@pytest.mark.parametrize("kind", ["group", "owngroup", "heldgroup", "base"])
def test_groups_of_errors(kind: str, processes: ProcessExecutor) -> None:
    expected = things.make(kind)
    with pytest.raises(type(expected)) as caught:
        far(processes, things.fail).invoke(kind)
    error = caught.value
    assert error.message == expected.message
    assert [type(each) for each in error.exceptions] == [type(each) for each in expected.exceptions]
    assert [str(each)[:5] for each in error.exceptions] == [str(each)[:5] for each in expected.exceptions]


def test_an_error_that_holds_what_cannot_be_sent_keeps_the_rest(processes: ProcessExecutor) -> None:
    with pytest.raises(things.Holding) as caught:
        far(processes, things.fail).invoke("holding")
    error = caught.value
    assert error.code == 7
    assert error.args[0] == "held"
    assert "lock" in error.args[1]
    assert not hasattr(error, "lock")


def test_a_retry_sees_the_class_of_an_odd_error(processes: ProcessExecutor) -> None:
    policy = weft.RetryPolicy(max_attempts=3, initial_interval=0, retry_on=things.Odd)
    run = far(processes, things.fail, retry_policy=policy).submit("odd")
    with pytest.raises(things.Odd):
        run.result()
    assert [e.attempt for e in run.events() if type(e).__name__ == "CallStarted"] == [1, 2, 3]


def test_an_error_that_cannot_be_shown(processes: ProcessExecutor) -> None:
    with pytest.raises(things.Unshowable):
        far(processes, things.fail).invoke("unshowable")


def test_an_error_whose_class_cannot_be_sent() -> None:
    def body() -> Any:
        class Local(Exception):
            lock = threading.Lock()

        return Local("text")

    error = there_and_back(body())
    assert isinstance(error, RemoteError)
    assert "Local: text" in str(error)


def test_an_error_whose_class_is_not_here() -> None:
    data = parcel.pack_error(things.Odd(1, why="x"))
    sys.modules.pop("things")
    sys.path_hooks.insert(0, _refuse)
    sys.path_importer_cache.clear()
    try:
        error = parcel.unpack_error(data)
    finally:
        sys.path_hooks.remove(_refuse)
        sys.path_importer_cache.clear()
        sys.modules["things"] = things
    assert isinstance(error, RemoteError)
    assert "Odd: 1: x" in str(error)


def _refuse(path: str) -> Any:
    class Nothing:
        @staticmethod
        def find_spec(name: str, target: Any = None) -> None:
            return None

    return Nothing


TEXT = st.text(max_size=5)
ARGS = st.lists(st.one_of(st.integers(), TEXT, st.none(), st.lists(st.integers(), max_size=2)), max_size=3)


@given(
    args=ARGS,
    state=st.dictionaries(st.sampled_from(["a", "b", "c"]), st.integers(), max_size=2),
    notes=st.lists(TEXT, max_size=2),
    kind=st.sampled_from([ValueError, KeyError, things.Twice, things.Odd, things.Holding, RuntimeError]),
)
@settings(max_examples=200, deadline=None)
def test_any_error_comes_back(args: list[Any], state: dict[str, int], notes: list[str], kind: Any) -> None:
    error = kind.__new__(kind, *args)
    error.args = tuple(args)
    vars(error).update(state)
    for note in notes:
        error.add_note(note)
    found = there_and_back(error)
    assert type(found) is kind
    assert found.args == tuple(args)
    assert {name: vars(found)[name] for name in state} == state
    assert getattr(found, "__notes__", []) == notes


# Functions


def test_every_kind_of_function(processes: ProcessExecutor) -> None:
    outer = 10

    def closure(x: int) -> int:
        return x + outer

    counter = things.Counter(5)
    for fn, x, expected in [
        (closure, 1, 11),
        (lambda x: x * outer, 2, 20),
        (functools.partial(operator.add, 4), 2, 6),
        (functools.partial(closure), 2, 12),
        (counter.add, 2, 7),
        (counter, 3, 15),
        (things.Counter.made, 1, 101),
        (things.Counter.plain, 1, -1),
        (things.behind, 1, ("logged", 3)),
        (things.behind.__wrapped__, 1, 3),
        (len, "abc", 3),
        (json.dumps, [1], "[1]"),
    ]:
        assert far(processes, fn, name="body").invoke(x) == expected


def test_decorated_functions_are_found_under_the_name_of_their_task() -> None:
    assert things.decorated.invoke(1) == ("logged", 2)
    assert things.factorial.invoke(5) == 120
    assert things.Counter(3).far_add.invoke(4) == 7


def test_a_function_that_calls_itself(processes: ProcessExecutor) -> None:
    def fib(n: int) -> int:
        return n if n < 2 else fib(n - 1) + fib(n - 2)

    assert far(processes, fib).invoke(10) == 55


MAIN = """
import enum, sys, threading
from dataclasses import dataclass
from typing import NamedTuple
import weft

COUNT = 0

@dataclass
class Point:
    x: int
    made = 0

    def moved(self):
        return COUNT + self.x

class Colour(enum.Enum):
    RED = 1

class Pair(NamedTuple):
    a: int
    b: int

class Odd(Exception):
    def __init__(self, code, *, why):
        super().__init__(why)
        self.code = code

def helper(x):
    return x * 2

@weft.task(executor="process")
def move(point):
    Point.made += 1
    return Point(helper(point.x))

@weft.task(executor="process")
def fail(x):
    raise Odd(x, why="so")

@weft.task(executor="process")
def fib(n):
    return n if n < 2 else fib.func(n - 1) + fib.func(n - 2)

@weft.task(executor="process")
async def later(x):
    return Colour.RED, Pair(x, x)

limit = weft.Limit("some", concurrent=2)

@weft.task(executor=weft.ProcessExecutor(1), limit=limit)
def limited(x):
    return 1 if x == 0 else x * limited.func(x - 1)

@weft.entrypoint()
def workflow(x):
    global COUNT
    Point.made = 5
    found = [move(Point(i)).result() for i in range(3)]
    assert [type(each) for each in found] == [Point] * 3, found
    assert [each.x for each in found] == [0, 2, 4]
    assert Point.made == 5, "what it counts there is counted there"
    COUNT = 1000
    assert found[1].moved() == 1002, "its methods are still those of this process"
    try:
        fail(3).result()
    except Odd as error:
        assert error.code == 3 and str(error) == "so"
    colour, pair = later(4).result()
    assert colour is Colour.RED and type(pair) is Pair and pair == (4, 4)
    assert limited(5).result() == 120
    return fib(x).result()

assert workflow.invoke(10) == 55
assert weft.task(executor="process", name="l")(lambda x: helper(x)).invoke(2) == 4
print("well", len(sys.argv))
"""


def test_what_main_defines_is_sent_without_a_guard(tmp_path: Path) -> None:
    result = Program(tmp_path, MAIN).run("argument")
    assert (result.returncode, result.stdout, result.stderr) == (0, "well 2\n", "")


def test_a_script_from_standard_input(tmp_path: Path) -> None:
    source = "import weft\n@weft.task(executor='process')\ndef f(x):\n    return x + 1\nprint(f.invoke(1))\n"
    found = subprocess.run(
        [sys.executable, "-"],
        input=source,
        capture_output=True,
        text=True,
        cwd=tmp_path,
        timeout=60,
        check=True,
    )
    assert (found.stdout, found.stderr) == ("2\n", "")


# What cannot be sent


def refused(executor: Any, fn: Any, *args: Any, **kwargs: Any) -> UnsendableError:
    step = far(executor, fn, name="body")

    @weft.entrypoint()
    def workflow(_: None) -> BaseException | None:
        return step(*args, **kwargs).exception()

    run = workflow.submit(None)
    error = run.result()
    assert isinstance(error, UnsendableError), error
    return error


LOCK = threading.Lock()


def test_what_cannot_be_sent_is_named(processes: ProcessExecutor) -> None:
    lock = threading.Lock()

    def takes(client: Any, other: Any = None) -> None:
        raise AssertionError("it must not run")

    def captures(x: int) -> Any:
        return lock, x

    def reads(x: int) -> Any:
        return holder, x

    holder = things.Client()
    assert refused(processes, takes, things.Client()).where == "the argument client.session['deep'][1]"
    assert refused(processes, takes, 1, other={"a": [lock]}).where == "the argument other['a'][0]"
    assert (
        refused(processes, captures, 1).where
        == "the variable lock that " + repr(captures.__qualname__) + " uses"
    )
    assert "the variable holder" in refused(processes, reads, 1).where
    assert ".session['deep'][1]" in refused(processes, reads, 1).where
    assert refused(processes, functools.partial(takes, 1), lock).where == "the argument other"
    with socket.socket() as sock:
        error = refused(processes, takes, sock)
        assert error.where.startswith("the argument client")
        assert "socket" in str(error)
    assert "generator" in str(refused(processes, takes, (i for i in range(3))))


def test_a_global_of_a_script_that_cannot_be_sent_is_named(tmp_path: Path) -> None:
    source = """
        import threading, weft
        lock = threading.Lock()

        @weft.task(executor="process")
        def f(x):
            with lock:
                return x

        try:
            f.invoke(1)
        except weft.UnsendableError as error:
            print(error.where)
        """
    assert Program(tmp_path, source).run().stdout == "the global variable lock that 'f' uses\n"


def test_a_result_that_cannot_be_sent_back_is_named(processes: ProcessExecutor) -> None:
    def body(kind: str) -> Any:
        return {"lock": {"a": [threading.Lock()]}, "generator": (i for i in range(3))}[kind]

    with pytest.raises(UnsendableError) as caught:
        far(processes, body).invoke("lock")
    assert caught.value.where == "what 'body' returned['a'][0]"
    with pytest.raises(UnsendableError, match="what 'body' returned"):
        far(processes, body).invoke("generator")


def test_what_is_written_and_cannot_be_sent_is_an_error_there(processes: ProcessExecutor) -> None:
    def body(x: int) -> str:
        try:
            weft.get_stream_writer()(threading.Lock())
        except UnsendableError as error:
            return error.where
        return "nothing"

    assert far(processes, body).invoke(1) == "what was written"


def test_what_cannot_be_made_again_is_named(processes: ProcessExecutor) -> None:
    def gives(x: int) -> Any:
        return things.Unmakeable()

    with pytest.raises(UnsendableError, match="what 'gives' returned was sent, but.*it cannot be made again"):
        far(processes, gives).invoke(1)
    with pytest.raises(UnsendableError, match="an argument of 'body' was sent, but.*it cannot be made again"):
        far(processes, lambda x: x, name="body").invoke(things.Unmakeable())


def test_a_module_that_is_not_there_is_named(processes: ProcessExecutor, tmp_path: Path) -> None:
    module = types.ModuleType("nowhere_to_be_found")
    exec("def f(x): return x", module.__dict__)
    sys.modules[module.__name__] = module
    try:
        with pytest.raises(UnsendableError, match="nowhere_to_be_found.*sys.path.*register_pickle_by_value"):
            far(processes, module.f).invoke(1)
    finally:
        del sys.modules[module.__name__]


# Context variables


def test_carried_variables() -> None:
    local: ContextVar[int] = ContextVar("local", default=3)
    twin: ContextVar[int] = ContextVar("local")

    def body(_: Any) -> list[Any]:
        things.number.set(things.number.get() + 1)  # not for the next one
        return [things.number.get(), things.renamed.get(None), local.get(), twin.get("unset")]

    with ProcessExecutor(1, carry=[things.number, things.renamed, local, twin]) as executor:
        step = far(executor, body)
        assert copy_context().run(step.invoke, None) == [1, None, 3, "unset"]

        def outside() -> Any:
            things.number.set(5)
            things.renamed.set(6)
            local.set(7)
            twin.set(8)
            return step.invoke(None)

        assert copy_context().run(outside) == [6, 6, 7, 8]
        assert copy_context().run(step.invoke, None) == [1, None, 3, "unset"]
    with ProcessExecutor(1) as executor:
        assert copy_context().run(functools.partial(_set_and, far(executor, body))) == [1, None, 3, "unset"]


def _set_and(step: Any) -> Any:
    things.number.set(5)
    return step.invoke(None)


def test_a_value_that_cannot_be_carried_is_named() -> None:
    with ProcessExecutor(1, carry=[things.renamed]) as executor:
        step = far(executor, lambda x: x, name="body")

        def outside() -> None:
            things.renamed.set(threading.Lock())  # type: ignore[arg-type]
            step.invoke(1)

        with pytest.raises(UnsendableError) as caught:
            copy_context().run(outside)
    assert caught.value.where == "the context variable another name"


def test_carried_variables_of_main(tmp_path: Path) -> None:
    source = """
        from contextvars import ContextVar
        import weft
        tenant = ContextVar("who", default="nobody")
        bare = ContextVar("bare")

        @weft.task(executor=weft.ProcessExecutor(1, carry=[tenant]))
        def ask(x):
            return tenant.get(), bare.get("none")

        print(*ask.invoke(1))
        tenant.set("me")
        bare.set("hidden")
        print(*ask.invoke(1))
        """
    assert Program(tmp_path, source).run().stdout == "nobody none\nme none\n"


def test_packing_is_quick_with_many_modules() -> None:
    """Variables are looked for in all modules; once."""
    body = Body(things.Counter.plain, (1,), {}, Ticket("id", "step"))
    parcel.packed(body, (things.number,))
    began = time.process_time()
    for _ in range(1000):
        parcel.packed(body, (things.number,))
    assert time.process_time() - began < 1


# Without the package


def test_without_cloudpickle_it_says_what_to_install(tmp_path: Path) -> None:
    source = """
        import sys
        sys.modules["cloudpickle"] = None
        import concurrent.futures
        import weft

        def attempt(make):
            try:
                make()
            except weft.DefinitionError as error:
                print("pip install 'weft[process]'" in str(error))
            else:
                print("nothing was said")

        attempt(lambda: weft.task(executor="process")(print))
        attempt(lambda: weft.ProcessExecutor())
        attempt(lambda: weft.task(executor=concurrent.futures.ProcessPoolExecutor(1))(print))
        weft.task(executor=concurrent.futures.ThreadPoolExecutor(1))(print)
        weft.task(executor="thread")(print)
        """
    result = Program(tmp_path, source).run()
    assert (result.stdout, result.stderr) == ("True\n" * 3, "")
