"""How wide a block is where nobody said so."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.core.sizing import ESTIMATED_MEMORY, Resources, Size, check_estimate, grown, size_of
from weft.errors import DefinitionError

MIB = 1024**2
GIB = 1024**3


def never():
    raise AssertionError("the machine was asked, and the answer does not depend on it")


def size(
    *, max_concurrent=None, optimize=True, branches=None, computing=False, cores=2, memory=GIB, **options
):
    return size_of(
        max_concurrent=max_concurrent,
        optimize=optimize,
        branches=branches,
        computing=computing,
        resources=lambda: Resources(cores, memory),
        **options,
    )


def test_the_defaults_are_those_of_the_documents():
    assert ESTIMATED_MEMORY == 50 * MIB
    assert size(memory=500 * MIB).width == 7  # 70 % of 500 MiB, by 50


@pytest.mark.parametrize("optimize", [True, False])
@pytest.mark.parametrize("computing", [True, False])
@given(given_width=st.integers(1, 10**6), branches=st.none() | st.integers(0, 10**6))
def test_an_explicit_width_is_exact(optimize, computing, given_width, branches):
    found = size_of(
        max_concurrent=given_width,
        optimize=optimize,
        branches=branches,
        computing=computing,
        resources=never,
    )
    assert (found.width, found.computing) == (given_width, None)
    assert f"max_concurrent={given_width}" in found.reason


@given(computing=st.booleans(), branches=st.none() | st.integers(0, 10**6))
def test_without_optimization_all_start_at_once(computing, branches):
    found = size_of(
        max_concurrent=None, optimize=False, branches=branches, computing=computing, resources=never
    )
    assert (found.width, found.computing) == (None, None)
    assert "optimization_enabled=False" in found.reason


@given(
    branches=st.none() | st.integers(0, 10**6),
    computing=st.booleans(),
    cores=st.integers(1, 1000),
    memory=st.integers(0, 2**50),
    estimate=st.integers(1, 2**40),
)
def test_a_width_that_is_chosen(branches, computing, cores, memory, estimate):
    found = size(
        branches=branches, computing=computing, cores=cores, memory=memory, estimated_memory_per_node=estimate
    )
    # it fits into 70 % of the memory, or is the one branch without which nothing would ever run
    assert found.width == 1 or found.width * estimate <= memory * 0.7
    assert found.width >= 1
    if branches is not None:
        assert found.width <= max(1, branches)
    # and it is the widest such
    if branches is None or found.width < branches:
        assert (found.width + 1) * estimate > memory * 0.7 * (1 - 1e-9)
    assert found.computing == (min(cores, found.width) if computing else None)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (
            {"cores": 2, "memory": 3174 * MIB, "computing": True},
            "2 cores, 3.1 GiB available: room for 44 branches of 50 MiB in 70% of it",
        ),
        (
            {"cores": 1, "memory": 72 * MIB},
            "1 core, 72 MiB available: room for 1 branch of 50 MiB in 70% of it",
        ),
        (
            {"memory": 20 * MIB + MIB // 2},
            "2 cores, 20.5 MiB available: no room for a branch of 50 MiB, so one at a time",
        ),
        (
            {"memory": 0, "estimated_memory_per_node": 100},
            "2 cores, 0 B available: no room for a branch of 100 B, so one at a time",
        ),
        (
            {"memory": 3 * 1024**5, "estimated_memory_per_node": 2048},
            "2 cores, 3072 TiB available: room for 1154487209164 branches of 2 KiB in 70% of it",
        ),
    ],
)
def test_reasons(options, reason):
    assert size(**options).reason == reason


@given(
    cores=st.integers(1, 1000),
    width=st.none() | st.integers(1, 2000),
    branches=st.none() | st.integers(0, 2000),
)
def test_growing_doubles_up_to_the_width_and_the_worker_threads(cores, width, branches):
    """Told by its steps: each doubles, none shrinks, and the last is the bound."""
    found = Size(width, None, "") if branches is None else Size(width, min(cores, width or cores), "")
    now, bound = found.computing or cores, min(width or 512, 512)
    for _ in range(12):
        then = grown(now, found)
        assert then == (now if now >= bound else min(2 * now, bound))
        now = then
    assert now >= bound


def test_growing_from_one():
    steps = [1]
    while grown(steps[-1], Size(20, 1, "")) != steps[-1]:
        steps.append(grown(steps[-1], Size(20, 1, "")))
    assert steps == [1, 2, 4, 8, 16, 20]


@pytest.mark.parametrize("wrong", [0, -1, True, 50e6, "50MB", None, math.nan, math.inf])
def test_an_estimate_that_is_no_number_of_bytes_is_refused(wrong):
    for refuse in (check_estimate, lambda value: size(estimated_memory_per_node=value)):
        with pytest.raises(DefinitionError, match="estimated_memory_per_node") as caught:
            refuse(wrong)
        assert f"not {wrong!r}" in str(caught.value)


@pytest.mark.parametrize(
    ("memory", "written"),
    [
        (1023, "1023 B"),
        (1024, "1 KiB"),
        (1024**2 - 1, "1024 KiB"),
        (1024**2, "1 MiB"),
        (1024**3, "1 GiB"),
        (1024**4, "1 TiB"),
        (1024**5, "1024 TiB"),
    ],
)
def test_a_whole_unit_is_written_as_one(memory, written):
    assert f", {written} available" in size(memory=memory).reason
