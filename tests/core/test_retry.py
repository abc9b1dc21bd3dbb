"""Retries: which errors, how long between attempts, and when it is over."""

from __future__ import annotations

import asyncio
import socket
import urllib.error
from types import SimpleNamespace

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from weft import errors
from weft.core.retry import RetryPolicy, default_retry_on, next_delay, transient
from weft.engine.step import retry_policies

POSITIVE = st.floats(min_value=0, max_value=1e6, allow_nan=False)


class Own(Exception):
    pass


def http(status):
    error = Own("http")
    error.response = SimpleNamespace(status_code=status)
    return error


def timed_out(given_up):
    return errors.NodeTimeoutError("s", timeout=1, elapsed=1.1, given_up=given_up)


@pytest.mark.parametrize(
    ("error", "again"),
    [
        (ConnectionError("x"), True),
        (ConnectionResetError("x"), True),
        (BrokenPipeError("x"), True),
        (Own("x"), True),
        (AssertionError("x"), True),
        (AttributeError("x"), True),
        (EOFError("x"), True),
        (MemoryError("x"), True),
        (timed_out(False), True),
        (http(500), True),
        (http(503), True),
        (http(404), False),
        (http(429), False),
        (ValueError("x"), False),
        (UnicodeDecodeError("utf-8", b"", 0, 1, "x"), False),
        (TypeError("x"), False),
        (KeyError("x"), False),
        (ZeroDivisionError("x"), False),
        (ImportError("x"), False),
        (NameError("x"), False),
        (SyntaxError("x"), False),
        (RuntimeError("x"), False),
        (RecursionError("x"), False),
        (NotImplementedError("x"), False),
        (ReferenceError("x"), False),
        (StopIteration("x"), False),
        (StopAsyncIteration("x"), False),
        (OSError("x"), False),
        (FileNotFoundError("x"), False),
        (PermissionError("x"), False),
        (TimeoutError("x"), False),
        (errors.UsageError("x"), False),
        (errors.NotInRunError("x"), False),
        (errors.UnstorableError("result", "x"), False),
        (errors.StoreError("x"), False),
        (errors.DefinitionError("x"), False),
    ],
)
def test_what_looks_passing_by_default(error, again):
    assert default_retry_on(error) is again
    assert (next_delay([RetryPolicy()], error, attempt=1) is not None) is again


@pytest.mark.parametrize("status", ["500", None, object()])
def test_a_response_that_is_none_of_http_is_not_looked_at(status):
    assert default_retry_on(http(status)) is True


@pytest.mark.parametrize(
    "error",
    [
        KeyboardInterrupt(),
        SystemExit(1),
        asyncio.CancelledError(),
        GeneratorExit(),
        errors.Suspended(),
        errors.Stopped("x"),
        BaseExceptionGroup("g", [SystemExit()]),
    ],
)
def test_signals_are_never_retried(error):
    for retry_on in (Exception, (Exception,), lambda _: True, default_retry_on):
        assert next_delay([RetryPolicy(retry_on=retry_on, max_attempts=9)], error, attempt=1) is None


@given(
    initial=POSITIVE,
    factor=st.floats(min_value=1, max_value=10),
    longest=POSITIVE,
    attempt=st.integers(1, 60),
)
def test_delays_grow_by_the_factor_up_to_the_longest(initial, factor, longest, attempt):
    policy = RetryPolicy(
        initial_interval=initial, backoff_factor=factor, max_interval=longest, max_attempts=100, jitter=False
    )
    delay = next_delay([policy], Own(), attempt=attempt)
    assert delay == min(longest, initial * factor ** (attempt - 1))
    assert next_delay([policy], Own(), attempt=attempt + 1) >= delay


def test_the_delays_of_the_document():
    policy = RetryPolicy(jitter=False, max_attempts=12)
    delays = [next_delay([policy], Own(), attempt=n) for n in range(1, 12)]
    assert delays == [0.5, 1, 2, 4, 8, 16, 32, 64, 128, 128, 128]


@given(draw=st.floats(min_value=0, max_value=1), attempt=st.integers(1, 9))
def test_jitter_adds_up_to_a_second(draw, attempt):
    plain = next_delay([RetryPolicy(jitter=False, max_attempts=10)], Own(), attempt=attempt)
    found = next_delay([RetryPolicy(max_attempts=10)], Own(), attempt=attempt, draw=lambda: draw)
    assert found == plain + draw
    assert plain <= next_delay([RetryPolicy(max_attempts=10)], Own(), attempt=attempt) <= plain + 1


def test_a_very_late_attempt_is_no_overflow():
    """2.0 ** 2000 does not fit a float; the longest interval does."""
    policy = RetryPolicy(max_attempts=5000, jitter=False)
    assert next_delay([policy], Own(), attempt=2000) == 128


@given(told=st.one_of(POSITIVE, st.integers(0, 1000)))
def test_an_error_may_say_how_long(told):
    error = Own()
    error.retry_after = told
    for jitter in (False, True):
        assert next_delay([RetryPolicy(jitter=jitter)], error, attempt=1) == float(told)
    assert next_delay([RetryPolicy()], error, attempt=3) is None


@pytest.mark.parametrize("told", [-1, "5", None, float("nan"), True, float("inf")])
def test_a_retry_after_that_is_no_time_is_not_looked_at(told):
    error = Own()
    error.retry_after = told
    assert next_delay([RetryPolicy(jitter=False)], error, attempt=1) == 0.5


@given(st.integers(1, 20), st.integers(1, 30))
def test_there_are_never_more_attempts_than_said(most, attempt):
    found = next_delay([RetryPolicy(max_attempts=most)], Own(), attempt=attempt)
    assert (found is not None) == (attempt < most)


@given(
    st.lists(
        st.tuples(st.sampled_from([Own, KeyError, ValueError]), st.integers(1, 4), POSITIVE),
        min_size=1,
        max_size=4,
    ),
    st.sampled_from([Own, KeyError, ValueError, OSError]),
    st.integers(1, 4),
)
def test_the_first_policy_that_covers_the_error_decides(given_, kind, attempt):
    policies = [
        RetryPolicy(retry_on=on, max_attempts=most, initial_interval=delay, backoff_factor=1, jitter=False)
        for on, most, delay in given_
    ]
    for policy in policies:
        assume(policy.initial_interval <= policy.max_interval)
    covering = [policy for policy in policies if policy.retry_on is kind]
    expected = covering[0].initial_interval if covering and attempt < covering[0].max_attempts else None
    assert next_delay(policies, kind("x"), attempt=attempt) == expected


def test_no_policy_no_retry():
    assert next_delay([], Own(), attempt=1) is None


@pytest.mark.parametrize(
    ("retry_on", "covered"),
    [
        (Exception, True),
        (Own, True),
        (KeyError, False),
        ((KeyError, Own), True),
        ([KeyError, Own], True),
        ([], False),
        (lambda error: isinstance(error, Own), True),
        (lambda error: False, False),
    ],
)
def test_the_shapes_of_retry_on(retry_on, covered):
    assert RetryPolicy(retry_on=retry_on).covers(Own()) is covered


@pytest.mark.parametrize("retry_on", [5, "x", None, [5], (KeyError, "x"), int, KeyError("x")])
def test_a_retry_on_that_can_never_work_is_refused_at_once(retry_on):
    """Found out at the first failure, it would end the run with an error about something else."""
    with pytest.raises((errors.DefinitionError, TypeError)):
        RetryPolicy(retry_on=retry_on)


@pytest.mark.parametrize(
    ("retry_on", "names"),
    [
        (default_retry_on, False),
        (lambda _: True, False),
        (TimeoutError, True),
        (errors.NodeTimeoutError, True),
        (ValueError, False),
        ((ValueError, TimeoutError), True),
        ([errors.NodeTimeoutError], True),
        ((ValueError,), False),
    ],
)
def test_who_names_timeouts(retry_on, names):
    """A body that may still be running gets a second one beside it only if that was asked for."""
    policy = RetryPolicy(retry_on=retry_on)
    assert policy.names_timeouts() is names
    if policy.covers(timed_out(True)):
        assert (next_delay([policy], timed_out(True), attempt=1) is not None) is names
        assert next_delay([policy], timed_out(False), attempt=1) is not None


@pytest.mark.parametrize("kind", [Exception, OSError, TimeoutError, errors.NodeTimeoutError, ValueError])
def test_one_class_and_a_tuple_of_it_mean_the_same(kind):
    assert RetryPolicy(retry_on=kind).names_timeouts() is RetryPolicy(retry_on=(kind,)).names_timeouts()


@pytest.mark.parametrize(
    "wrong",
    [
        {"max_attempts": 0},
        {"max_attempts": -1},
        {"max_attempts": True},
        {"max_attempts": 2.0},
        {"max_attempts": "3"},
        {"initial_interval": -1},
        {"initial_interval": float("nan")},
        {"initial_interval": "1"},
        {"initial_interval": None},
        {"backoff_factor": -0.1},
        {"backoff_factor": float("nan")},
        {"max_interval": -1},
        {"max_interval": float("nan")},
    ],
)
def test_numbers_that_can_never_work_are_refused(wrong):
    with pytest.raises(errors.DefinitionError, match=next(iter(wrong))):
        RetryPolicy(**wrong)


def test_a_policy_is_a_value():
    assert RetryPolicy() == RetryPolicy()
    assert hash(RetryPolicy()) == hash(RetryPolicy())
    with pytest.raises(AttributeError):
        RetryPolicy().max_attempts = 5


class _Response:
    def __init__(self, status_code=None, status=None, headers=None):
        self.status_code, self.status, self.headers = status_code, status, headers or {}


def _like(name, base=Exception, **attributes):
    """An error as a client library has it, by name and shape."""
    error = type(name, (base,), {})("boom")
    for key, value in attributes.items():
        setattr(error, key, value)
    return error


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError(), True),
        (TimeoutError(), True),
        (socket.gaierror(-2, "Name or service not known"), True),
        (urllib.error.URLError("no route"), True),
        (urllib.error.HTTPError("u", 503, "m", None, None), True),
        (urllib.error.HTTPError("u", 429, "m", None, None), True),
        (urllib.error.HTTPError("u", 404, "m", None, None), False),
        (_like("HTTPStatusError", response=_Response(502)), True),  # httpx
        (_like("HTTPStatusError", response=_Response(400)), False),
        (_like("ConnectError", _like("NetworkError").__class__), True),
        (_like("ReadTimeout", type("TimeoutException", (Exception,), {})), True),
        (_like("ReadTimeout", type("Timeout", (OSError,), {})), True),  # requests
        (_like("HTTPError", OSError, response=_Response(500)), True),
        (_like("HTTPError", OSError, response=_Response(401)), False),
        (_like("ClientResponseError", status=503), True),  # aiohttp
        (_like("ClientResponseError", status=422), False),
        (_like("RateLimitError", status_code=429), True),  # clients of model providers
        (_like("BadRequestError", status_code=400), False),
        (_like("APIConnectionError"), True),
        (_like("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 503}}), True),  # botocore
        (_like("ClientError", response={"ResponseMetadata": {"HTTPStatusCode": 403}}), False),
        (_like("ClientError", response={}), True),  # says nothing: as any unknown error
        (_like("Slow", ValueError, retry_after=3), True),
        (_like("Odd", response=_Response(status="503 Service Unavailable")), True),
        (ValueError(), False),
        (FileNotFoundError(), False),
        (KeyError(), False),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, Exception) else None,
)
def test_what_retry_by_number_tries_again(error, expected):
    assert transient(error) is expected
    (policy,) = retry_policies(3)
    assert (next_delay([policy], error, attempt=1, draw=lambda: 0.0) is not None) is expected
    assert next_delay([policy], error, attempt=3, draw=lambda: 0.0) is None


# When a provider says how long to wait


@pytest.mark.parametrize("name", ["retry-after", "Retry-After"])
@pytest.mark.parametrize(("told", "delay"), [("3", 3.0), ("0.25", 0.25), (7, 7.0), ("0", 0.0)])
def test_a_header_may_say_how_long(name, told, delay):
    error = _like("RateLimitError", response=_Response(headers={name: told}))
    assert next_delay([RetryPolicy(retry_on=Exception)], error, attempt=1, draw=lambda: 0.5) == delay


@pytest.mark.parametrize(
    "response",
    [
        None,
        _Response(),
        SimpleNamespace(headers=None),
        SimpleNamespace(headers=[("retry-after", "3")]),
        _Response(headers={"retry-after": "Wed, 21 Oct 2026 07:28:00 GMT"}),
        _Response(headers={"retry-after": "-1"}),
        _Response(headers={"retry-after": "inf"}),
        _Response(headers={"retry-after": ""}),
    ],
)
def test_a_header_that_says_nothing_of_use_is_not_looked_at(response):
    error = _like("RateLimitError", response=response)
    assert next_delay([RetryPolicy(retry_on=Exception, jitter=False)], error, attempt=1) == 0.5


@pytest.mark.parametrize(
    ("number", "expected"),
    [(99, True), (100, False), (499, False), (500, True), (599, True), (600, True), (True, True)],
)
def test_what_is_no_status_says_nothing(number, expected):
    """100 to 599 are states of an answer; what is no such number leaves an unknown error, which is tried again."""
    assert transient(_like("Odd", status_code=number)) is expected
