"""Numbers that are given as options."""

from __future__ import annotations

import math
from datetime import timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.core.checks import check_count, check_seconds
from weft.core.timeout import TimeoutPolicy
from weft.errors import DefinitionError


@given(st.integers(min_value=1))
def test_counts_that_can_be(value):
    assert check_count("n", value) == value


@pytest.mark.parametrize("value", [0, -1, True, False, 2.0, "3", None, float("nan"), float("inf"), [1]])
def test_counts_that_cannot_be_are_named_with_their_value(value):
    with pytest.raises(DefinitionError) as caught:
        check_count("max_concurrent", value)
    assert "max_concurrent" in str(caught.value)
    assert repr(value) in str(caught.value)


@given(st.one_of(st.floats(min_value=0, exclude_min=True, allow_infinity=False), st.integers(1, 10**9)))
def test_seconds_that_can_be(value):
    found = check_seconds("timeout", value)
    assert found == value
    assert type(found) is float


@pytest.mark.parametrize("value", [0, -1, -0.0, True, "3", None, math.nan, math.inf, -math.inf, 1j, [1]])
def test_seconds_that_cannot_be_are_named_with_their_value(value):
    with pytest.raises(DefinitionError) as caught:
        check_seconds("timeout", value)
    assert "timeout" in str(caught.value)
    assert repr(value)[:20] in str(caught.value)


def test_a_number_that_no_float_can_hold_is_refused_like_the_others():
    with pytest.raises(DefinitionError, match="timeout"):
        check_seconds("timeout", 10**400)


def test_what_a_timeout_may_be_written_as():
    policy = TimeoutPolicy(idle_timeout=3)
    assert TimeoutPolicy.of(None) is None
    assert TimeoutPolicy.of(policy) is policy
    assert TimeoutPolicy.of(2) == TimeoutPolicy(run_timeout=2)
    assert TimeoutPolicy.of(timedelta(milliseconds=1500)) == TimeoutPolicy(run_timeout=1.5)


@pytest.mark.parametrize(
    "wrong",
    [
        {"run_timeout": 0},
        {"idle_timeout": -1},
        {"run_timeout": "1"},
        {"idle_timeout": math.nan},
        {"refresh_on": "never"},
    ],
)
def test_timeout_policies_that_can_never_work(wrong):
    with pytest.raises(DefinitionError, match=next(iter(wrong))):
        TimeoutPolicy(**wrong)


@pytest.mark.parametrize("wrong", [0, timedelta(0), timedelta(seconds=-1), True, "1", [], float("nan")])
def test_timeouts_that_can_never_work(wrong):
    with pytest.raises(DefinitionError, match="timeout"):
        TimeoutPolicy.of(wrong)


@pytest.mark.parametrize("field", ["run_timeout", "idle_timeout"])
def test_the_fields_of_a_policy_may_be_spans_too(field):
    """LangGraph's are float or timedelta."""
    policy = TimeoutPolicy(**{field: timedelta(milliseconds=500)})
    assert getattr(policy, field) in (0.5, timedelta(milliseconds=500))
