"""The cache of results: keeps bytes for a time, forgets what is old or too much, never mixes namespaces."""

from __future__ import annotations

import math
import threading

import pytest

from weft.cache import Cache, CachePolicy, InMemoryCache
from weft.errors import DefinitionError, InputError

STEP = ("workflow", "step")


class Clock:
    """Seconds that pass when told to."""

    def __init__(self):
        self.seconds = 1000.0

    def __call__(self):
        return self.seconds


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def cache(clock):
    return InMemoryCache(clock=clock)


def test_what_was_set_is_got_and_nothing_else(cache):
    cache.set(STEP, "k", b"value")

    assert cache.get(STEP, "k") == b"value"
    assert cache.get(STEP, "other") is None
    assert cache.get(("workflow",), "k") is None


def test_an_empty_value_is_a_hit(cache):
    """b"" is a value; only None says that there is none."""
    cache.set(STEP, "k", b"")

    assert cache.get(STEP, "k") == b""


def test_a_second_set_replaces_value_and_time(cache, clock):
    cache.set(STEP, "k", b"old", ttl=1)
    cache.set(STEP, "k", b"new")
    clock.seconds += 1_000_000

    assert cache.get(STEP, "k") == b"new"


def test_an_entry_expires_when_its_seconds_are_over_and_reading_does_not_prolong_it(cache, clock):
    cache.set(STEP, "k", b"value", ttl=2)
    clock.seconds += 1.5
    assert cache.get(STEP, "k") == b"value"
    clock.seconds += 0.5

    assert cache.get(STEP, "k") is None


def test_clear_forgets_the_given_namespaces_exactly_or_everything(cache):
    for namespace in [("a",), ("a", "b"), ("c",), ("d",)]:
        cache.set(namespace, "k", b"value")

    cache.clear([("a",), ("c",), ("never", "set")])
    assert [cache.get(n, "k") is not None for n in [("a",), ("a", "b"), ("c",), ("d",)]] == [
        False,
        True,
        False,
        True,
    ]
    cache.clear([])
    assert cache.get(("d",), "k")
    cache.clear()
    assert cache.get(("d",), "k") is None


@pytest.mark.parametrize("wrong", [("workflow", "step"), "workflow", [["a"]]])
def test_clearing_one_namespace_as_if_it_were_several_is_refused(cache, wrong):
    """It would clear nothing and say nothing."""
    cache.set(STEP, "k", b"value")
    with pytest.raises(InputError, match="several namespaces"):
        cache.clear(wrong)

    assert cache.get(STEP, "k") == b"value"


def test_the_longest_unused_goes_when_there_are_too_many(clock):
    cache = InMemoryCache(max_entries=2, clock=clock)
    cache.set(STEP, "a", b"1")
    cache.set(STEP, "b", b"2")
    cache.get(STEP, "a")
    cache.set(STEP, "c", b"3")

    assert [cache.get(STEP, k) for k in "abc"] == [b"1", None, b"3"]


def test_setting_an_entry_again_is_a_use_and_needs_no_room():
    cache = InMemoryCache(max_entries=2)
    cache.set(STEP, "a", b"1")
    cache.set(STEP, "b", b"2")
    cache.set(STEP, "a", b"1")
    assert cache.get(STEP, "b") == b"2"
    cache.set(STEP, "a", b"1")
    cache.set(STEP, "c", b"3")

    assert [cache.get(STEP, k) for k in "abc"] == [b"1", None, b"3"]


def test_without_a_bound_nothing_that_lasts_is_forgotten(cache):
    for n in range(1000):
        cache.set(STEP, str(n), b"value")

    assert all(cache.get(STEP, str(n)) for n in range(1000))


def test_what_has_expired_is_let_go_even_if_nobody_asks_for_it(cache, clock):
    """A cache of short-lived results must not grow for ever."""
    for n in range(1000):
        cache.set(STEP, str(n), b"value", ttl=10)
        clock.seconds += 1

    assert len(cache._entries) <= 64


@pytest.mark.parametrize("ttl", [0, -1, math.nan, math.inf, True])
def test_a_time_that_is_not_positive_is_refused(cache, ttl):
    with pytest.raises(DefinitionError, match="ttl must be"):
        cache.set(STEP, "k", b"value", ttl=ttl)
    with pytest.raises(DefinitionError, match="ttl must be"):
        CachePolicy(ttl=ttl)


@pytest.mark.parametrize("max_entries", [0, -1, True, 1.5])
def test_a_cache_that_could_hold_nothing_is_refused(max_entries):
    with pytest.raises(DefinitionError, match="max_entries"):
        InMemoryCache(max_entries=max_entries)


def test_a_policy_is_a_value():
    assert CachePolicy() == CachePolicy(key_func=None, ttl=None)
    assert hash(CachePolicy(key_func=str, ttl=60)) == hash(CachePolicy(key_func=str, ttl=60.0))


def test_the_in_memory_cache_is_a_cache_and_uses_a_clock_of_its_own_by_default():
    cache: Cache = InMemoryCache()
    cache.set(STEP, "k", b"value", ttl=3600)

    assert isinstance(cache, Cache)
    assert cache.get(STEP, "k") == b"value"


def test_many_threads_may_use_one_cache():
    """Without the lock an entry is moved that another thread has just dropped."""
    cache = InMemoryCache(max_entries=8)
    failures = []

    def work():
        try:
            for n in range(2000):
                cache.set(STEP, str(n % 16), b"value", ttl=0.000_001 if n % 3 else None)
                cache.get(STEP, str(n % 11))
                if n % 100 == 0:
                    cache.clear([STEP])
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(cache._entries) <= 8
