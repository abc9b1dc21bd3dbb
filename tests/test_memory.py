"""The long-term memory store: what goes in comes out, as a copy, where it was put and nowhere else."""

from __future__ import annotations

import asyncio
import threading
from collections import defaultdict
from datetime import UTC, datetime, timedelta
from types import MappingProxyType

import pytest

from weft.errors import InputError
from weft.memory import (
    BaseStore,
    GetOp,
    InMemoryStore,
    Item,
    ListNamespacesOp,
    MatchCondition,
    PutOp,
    SearchItem,
    SearchOp,
)

ADA = ("users", "ada")


class Time:
    """A clock that stands still until it is told to go on."""

    def __init__(self):
        self.now = datetime(2026, 1, 1, tzinfo=UTC)

    def __call__(self):
        return self.now

    def go_on(self, **span):
        self.now += timedelta(**span)


@pytest.fixture
def time():
    return Time()


@pytest.fixture
def store(time):
    return InMemoryStore(now=time)


def keys(items):
    return [item.key for item in items]


# --- put, get, delete ---------------------------------------------------------------------------------


def test_what_was_put_is_got(store, time):
    store.put(ADA, "tea", {"likes": "earl grey"})

    assert store.get(ADA, "tea") == Item(ADA, "tea", {"likes": "earl grey"}, time.now, time.now)


def test_what_was_never_put_is_none(store):
    store.put(ADA, "tea", {})

    assert store.get(ADA, "coffee") is None
    assert store.get(("users", "bob"), "tea") is None


def test_a_second_put_replaces_the_value_and_keeps_the_time_of_creation(store, time):
    born = time.now
    store.put(ADA, "tea", {"cups": 1, "milk": True})
    time.go_on(hours=1)
    store.put(ADA, "tea", {"cups": 2})

    assert store.get(ADA, "tea") == Item(ADA, "tea", {"cups": 2}, born, born + timedelta(hours=1))


def test_a_deleted_item_is_gone_with_its_namespace_and_deleting_twice_is_no_error(store):
    store.put(ADA, "tea", {})
    store.delete(ADA, "tea")
    store.delete(ADA, "tea")

    assert store.get(ADA, "tea") is None
    assert store.list_namespaces() == []


def test_deleting_one_item_leaves_the_others_of_its_namespace(store):
    store.put(ADA, "tea", {})
    store.put(ADA, "cake", {})
    store.delete(ADA, "tea")

    assert keys(store.search(ADA)) == ["cake"]


def test_an_item_put_again_after_its_deletion_is_a_new_one(store, time):
    store.put(ADA, "tea", {})
    store.delete(ADA, "tea")
    time.go_on(hours=1)
    store.put(ADA, "tea", {})

    assert store.get(ADA, "tea").created_at == time.now


def test_times_are_utc_by_default():
    store = InMemoryStore()
    store.put(ADA, "tea", {})

    assert store.get(ADA, "tea").created_at.utcoffset() == timedelta(0)


def test_a_later_change_of_a_value_is_not_seen_by_the_store(store):
    """Aliasing: a caller that goes on using its dict would rewrite the memory of all others."""
    value = {"notes": ["a"]}
    store.put(ADA, "tea", value)
    value["notes"].append("b")
    store.get(ADA, "tea").value["notes"].append("c")
    store.search(ADA)[0].value["notes"].append("d")

    assert store.get(ADA, "tea").value == {"notes": ["a"]}


def test_any_mapping_is_kept_as_a_dict(store):
    store.put(ADA, "proxy", MappingProxyType({"a": 1}))
    store.put(ADA, "default", defaultdict(list, b=2))

    assert [type(item.value) for item in store.search(ADA)] == [dict, dict]


def test_items_can_be_members_of_a_set_and_written_as_json(store, time):
    store.put(ADA, "tea", {"cups": 1})
    iso = "2026-01-01T00:00:00+00:00"
    plain = {
        "namespace": ["users", "ada"],
        "key": "tea",
        "value": {"cups": 1},
        "created_at": iso,
        "updated_at": iso,
    }
    assert len({store.get(ADA, "tea"), store.get(ADA, "tea")}) == 1
    assert len({*store.search(ADA), *store.search(ADA)}) == 1
    assert store.get(ADA, "tea").dict() == plain
    assert store.search(ADA)[0].dict() == {**plain, "score": None}


# --- refusals -----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("namespace", "says"),
    [
        ((), "at least one label"),
        (("",), "empty"),
        (("users", ""), "empty"),
        (("users.ada",), "'.'"),
        ((1,), "strings"),
        (("users", None), "strings"),
        ("users", "tuple"),
        (["users"], "tuple"),
        (None, "tuple"),
    ],
)
def test_a_wrong_namespace_is_refused_by_every_verb(store, namespace, says):
    for verb in (
        lambda: store.put(namespace, "k", {}),
        lambda: store.get(namespace, "k"),
        lambda: store.delete(namespace, "k"),
        lambda: PutOp(namespace, "k", {}),
    ):
        with pytest.raises(InputError, match=says):
            verb()
    if namespace != ():
        for verb in (
            lambda: store.search(namespace),
            lambda: MatchCondition("prefix", namespace),
        ):
            with pytest.raises(InputError, match=says):
                verb()


@pytest.mark.parametrize("value", [None, [1], "text", 3, {1, 2}])
def test_a_value_that_is_no_dict_is_refused(store, value):
    """None above all: to a PutOp it means to delete, and `put` must not do that."""
    store.put(ADA, "tea", {"cups": 1})
    with pytest.raises(InputError, match="'tea' must be a dict"):
        store.put(ADA, "tea", value)

    assert store.get(ADA, "tea").value == {"cups": 1}


def test_a_value_that_cannot_be_copied_is_refused_with_its_cause(store):
    with pytest.raises(InputError, match="cannot be copied") as caught:
        store.put(ADA, "tea", {"lock": threading.Lock()})

    assert isinstance(caught.value.__cause__, TypeError)
    assert store.get(ADA, "tea") is None


@pytest.mark.parametrize(
    "wrong",
    [
        lambda s: s.put(ADA, 1, {}),
        lambda s: s.get(ADA, None),
        lambda s: s.put(ADA, "k", {}, ttl=0),
        lambda s: s.put(ADA, "k", {}, ttl=-1),
        lambda s: s.put(ADA, "k", {}, ttl=float("nan")),
        lambda s: s.search(ADA, limit=-1),
        lambda s: s.search(ADA, offset=-1),
        lambda s: s.list_namespaces(limit=-1),
        lambda s: s.list_namespaces(max_depth=0),
        lambda s: MatchCondition("infix", ADA),
        lambda s: s.search(ADA, filter={"n": {"$in": [1]}}),
        lambda s: s.search(ADA, filter={"n": {"$gt": 1, "x": 2}}),
        lambda s: s.batch(["get"]),
    ],
)
def test_a_wrong_option_is_a_value_error(store, wrong):
    with pytest.raises(InputError) as caught:
        wrong(store)
    assert isinstance(caught.value, ValueError)


# --- search -------------------------------------------------------------------------------------------


def test_a_prefix_matches_whole_labels_only(store):
    """("a",) must not find what is in ("ab",): a joined path would mix up two users."""
    for namespace in [("a",), ("a", "b"), ("ab",), ("b", "a")]:
        store.put(namespace, "k", {})

    assert [item.namespace for item in store.search(("a",))] == [("a",), ("a", "b")]
    assert [item.namespace for item in store.search(("a", "b", "c"))] == []
    assert len(store.search(())) == 4


@pytest.mark.parametrize(
    ("conditions", "found"),
    [
        ({}, ["k0", "k1", "k2"]),
        ({"n": 1}, ["k1"]),
        ({"n": "1"}, []),
        ({"n": {"$eq": 1}}, ["k1"]),
        ({"n": {"$ne": 1}}, ["k0", "k2"]),
        ({"n": {"$gt": 1}}, ["k2"]),
        ({"n": {"$gte": 1}}, ["k1", "k2"]),
        ({"n": {"$lt": 1}}, ["k0"]),
        ({"n": {"$lte": 1}}, ["k0", "k1"]),
        ({"n": {"$gte": 1, "$lt": 2}}, ["k1"]),
        ({"n": {"$gt": 0}, "t": "word 1"}, ["k1"]),
        ({"n": {}}, []),
        ({"absent": None}, ["k0", "k1", "k2"]),
        ({"absent": {"$ne": 1}}, ["k0", "k1", "k2"]),
        ({"absent": {"$gt": 1}}, []),
        ({"t": {"$gt": "word 0"}}, ["k1", "k2"]),
        ({"t": {"$gt": 1}}, []),
        ({"n": {"$gt": "0"}}, ["k1", "k2"]),
        ({"size": {"$gt": "9"}}, ["k0", "k1", "k2"]),
        ({"d": {"x": 1}}, ["k1"]),
        ({"d": {"x": {"$gt": 0}}}, ["k1", "k2"]),
        ({"d": {"$eq": {"x": 1}}}, []),
        ({"d": {"$eq": {"x": 1, "y": 0}}}, ["k1"]),
        ({"n": {"x": None}}, []),
        ({"l": [1]}, ["k1"]),
    ],
)
def test_a_filter_asks_for_fields(store, conditions, found):
    for n in range(3):
        store.put(ADA, f"k{n}", {"n": n, "t": f"word {n}", "size": "10", "d": {"x": n, "y": 0}, "l": [n]})

    assert keys(store.search(ADA, filter=conditions)) == found


def test_a_wrong_filter_is_refused_even_if_there_is_nothing_to_filter(store):
    with pytest.raises(InputError, match=r"no operator '\$near'; it knows \$eq, \$ne, \$gt"):
        store.search(ADA, filter={"n": {"$near": 1}})


def test_pages_of_a_search_do_not_overlap_and_a_filter_comes_before_them(store):
    for n in range(25):
        store.put(ADA, f"k{n:02}", {"even": n % 2 == 0})

    assert len(store.search(ADA)) == 10
    assert keys(store.search(ADA, filter={"even": True}, limit=3, offset=2)) == ["k04", "k06", "k08"]
    assert store.search(ADA, limit=0) == []
    assert store.search(ADA, offset=25) == []


def test_a_query_orders_by_the_share_of_its_words_and_leaves_nothing_out(store):
    store.put(ADA, "none", {"text": "nothing here"})
    store.put(ADA, "half", {"text": ["I like", ("Coffee", 3)]})
    store.put(ADA, "both", {"deep": {"text": "GREEN tea, no coffee"}})

    found = store.search(ADA, query="Coffee tea")

    assert [(item.key, item.score) for item in found] == [("both", 1.0), ("half", 0.5), ("none", 0.0)]
    assert keys(store.search(ADA, query="coffee tea", limit=1)) == ["both"]


def test_field_names_and_absent_values_are_no_words_of_an_item(store):
    store.put(ADA, "k", {"coffee": None})

    assert store.search(ADA, query="coffee none")[0].score == 0


@pytest.mark.parametrize("query", [None, "", "?!"])
def test_without_words_to_look_for_there_is_no_score(store, query):
    store.put(ADA, "k", {})

    assert [item.score for item in store.search(ADA, query=query)] == [None]
    assert isinstance(store.search(ADA)[0], SearchItem)


# --- namespaces ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "found"),
    [
        ({}, [("a", "b", "c"), ("a", "b", "d"), ("a", "z"), ("ab", "c")]),
        ({"prefix": ()}, [("a", "b", "c"), ("a", "b", "d"), ("a", "z"), ("ab", "c")]),
        ({"prefix": ("a",)}, [("a", "b", "c"), ("a", "b", "d"), ("a", "z")]),
        ({"prefix": ("*", "b")}, [("a", "b", "c"), ("a", "b", "d")]),
        ({"prefix": ("a", "b", "c", "e")}, []),
        ({"suffix": ("c",)}, [("a", "b", "c"), ("ab", "c")]),
        ({"suffix": ("b", "*")}, [("a", "b", "c"), ("a", "b", "d")]),
        ({"prefix": ("a",), "suffix": ("c",)}, [("a", "b", "c")]),
        ({"max_depth": 1}, [("a",), ("ab",)]),
        ({"max_depth": 2}, [("a", "b"), ("a", "z"), ("ab", "c")]),
        ({"suffix": ("c",), "max_depth": 2}, [("a", "b"), ("ab", "c")]),
        ({"limit": 2, "offset": 1}, [("a", "b", "d"), ("a", "z")]),
    ],
)
def test_namespaces_are_listed_sorted_and_once(store, options, found):
    for namespace in [("ab", "c"), ("a", "z"), ("a", "b", "d"), ("a", "b", "c")]:
        store.put(namespace, "one", {})
        store.put(namespace, "two", {})

    assert store.list_namespaces(**options) == found


def test_looking_for_what_is_not_there_makes_no_namespace(store):
    store.get(ADA, "tea")
    store.search(ADA)
    store.delete(ADA, "tea")

    assert store.list_namespaces() == []


# --- ttl ----------------------------------------------------------------------------------------------


def test_an_item_is_forgotten_after_its_minutes(store, time):
    store.put(ADA, "brief", {}, ttl=1.5)
    store.put(ADA, "lasting", {})
    store.put(("users", "bob"), "brief", {}, ttl=1)

    time.go_on(seconds=89)
    assert keys(store.search(ADA, refresh_ttl=False)) == ["brief", "lasting"]

    time.go_on(seconds=1)
    assert store.get(ADA, "brief") is None
    assert keys(store.search(())) == ["lasting"]
    assert store.list_namespaces() == [ADA]


@pytest.mark.parametrize("read", [lambda s, **o: s.get(ADA, "k", **o), lambda s, **o: s.search(ADA, **o)])
def test_reading_begins_the_time_again_unless_told_not_to(store, time, read):
    store.put(ADA, "k", {}, ttl=1)
    time.go_on(seconds=40)
    assert read(store)
    time.go_on(seconds=40)
    assert read(store, refresh_ttl=False)
    time.go_on(seconds=40)

    assert not read(store)


def test_a_search_begins_the_time_again_only_of_what_it_gave(store, time):
    store.put(ADA, "given", {}, ttl=1)
    store.put(ADA, "not given", {}, ttl=1)
    time.go_on(seconds=40)
    store.search(ADA, limit=1)
    time.go_on(seconds=40)

    assert keys(store.search(ADA)) == ["given"]


def test_a_put_without_ttl_makes_an_item_last(store, time):
    store.put(ADA, "k", {}, ttl=1)
    store.put(ADA, "k", {})
    time.go_on(days=1)

    assert store.get(ADA, "k")


def test_an_item_put_after_its_time_is_a_new_one(store, time):
    store.put(ADA, "k", {}, ttl=1)
    time.go_on(minutes=1)
    store.put(ADA, "k", {})

    assert store.get(ADA, "k").created_at == time.now


def test_what_has_expired_is_let_go_even_if_nobody_asks_for_it(store, time):
    """A memory of short-lived items must not grow for ever."""
    for n in range(1000):
        store.put(("sessions", str(n)), "k", {}, ttl=1)
        time.go_on(seconds=6)  # so that 10 are alive

    assert len(store._spaces) <= 10 + 2 * 64


# --- batches, async, threads --------------------------------------------------------------------------


def test_a_batch_is_done_in_order_and_answers_each_operation(store):
    results = store.batch(
        [
            PutOp(ADA, "tea", {"cups": 1}),
            GetOp(ADA, "tea"),
            PutOp(ADA, "tea", {"cups": 2}),
            SearchOp(("users",), filter={"cups": 2}),
            ListNamespacesOp(match_conditions=(MatchCondition("suffix", ("ada",)),)),
            PutOp(ADA, "tea", None),
            GetOp(ADA, "tea"),
        ]
    )

    assert results[1].value == {"cups": 1}
    assert keys(results[3]) == ["tea"]
    assert results[4] == [ADA]
    assert [results[n] for n in (0, 2, 5, 6)] == [None] * 4


def test_the_async_verbs_do_the_same(store):
    async def scenario():
        await store.aput(ADA, "tea", {"cups": 1}, ttl=1)
        assert (await store.aget(ADA, "tea", refresh_ttl=False)).value == {"cups": 1}
        assert keys(await store.asearch(ADA, filter={"cups": 1}, query="1", limit=1)) == ["tea"]
        assert await store.alist_namespaces(prefix=("users",), max_depth=1) == [("users",)]
        assert await store.abatch([GetOp(ADA, "none")]) == [None]
        with pytest.raises(InputError):
            await store.aput(ADA, "tea", None)
        await store.adelete(ADA, "tea")
        assert await store.aget(ADA, "tea") is None

    asyncio.run(scenario())


def test_a_store_of_ones_own_writes_one_method_and_may_write_the_async_one():
    class Remote(BaseStore):
        def __init__(self):
            self.inner, self.calls = InMemoryStore(), []

        def batch(self, ops):
            self.calls.append("batch")
            return self.inner.batch(ops)

        async def abatch(self, ops):
            await asyncio.sleep(0)
            self.calls.append("abatch")
            return self.inner.batch(ops)

    remote = Remote()
    remote.put(ADA, "tea", {"cups": 1})

    assert asyncio.run(remote.aget(ADA, "tea")).value == {"cups": 1}
    assert remote.calls == ["batch", "abatch"]


def test_many_threads_may_use_one_store():
    """Without the lock a search meets a dict that changes while it is walked."""
    store = InMemoryStore()
    failures = []

    def work(who):
        try:
            for n in range(200):
                store.put((who, str(n)), "k", {"n": n})
                store.search((), limit=1)
                if n % 2:
                    store.delete((who, str(n)), "k")
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=work, args=(f"t{n}",)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert failures == []
    assert len(store.search((), limit=10_000)) == 4 * 100


def test_a_batch_is_seen_by_other_threads_as_a_whole(store):
    seen = []
    reader = threading.Thread(target=lambda: seen.extend(store.search(ADA)))

    class StartsTheReader:
        def __deepcopy__(self, memo):
            reader.start()
            reader.join(0.05)  # it cannot end: it waits for the batch
            return "kept"

    store.batch([PutOp(ADA, "one", {}), PutOp(ADA, "two", {"value": StartsTheReader()})])
    reader.join()

    assert keys(seen) == ["one", "two"]
