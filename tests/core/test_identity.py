"""Identity: no result may ever reach another call, and an edit elsewhere takes no result from its call."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from weft.core.identity import Siblings, question_id, root_identity

# Few and short, so that equal calls, and parts that run into each other, are drawn often.
NAMES = st.text(alphabet="ab\ud800", max_size=3)
PRINTS = st.binary(max_size=3)
CALLS = st.lists(st.tuples(NAMES, PRINTS), max_size=12)
ROOT = root_identity("w")


def identities(calls, parent=ROOT):
    siblings = Siblings(parent)
    return [siblings.next(step, fingerprint)[0] for step, fingerprint in calls]


@given(st.lists(NAMES, unique=True))
def test_workflows_of_different_names_differ(names):
    assert len({root_identity(name) for name in names}) == len(names)


@given(CALLS)
def test_siblings_never_collide_and_are_counted_in_order(calls):
    siblings = Siblings(ROOT)
    found = [siblings.next(*call) for call in calls]
    assert len({identity for identity, _ in found}) == len(calls)
    assert [ordinal for _, ordinal in found] == list(range(len(calls)))
    assert all(len(identity) == 16 for identity, _ in found)


@given(CALLS)
def test_the_same_calls_have_the_same_identities(calls):
    assert identities(calls) == identities(calls)


@given(st.lists(st.lists(st.tuples(NAMES, PRINTS), max_size=3), max_size=6))
def test_different_paths_never_collide(paths):
    """A call is who asked for it, with what: ("ab", "c") is not ("a", "bc"), and no depth is another."""
    seen = {}
    for path in paths:
        identity = ROOT
        for depth, call in enumerate(path):
            identity = Siblings(identity).next(*call)[0]
            key = tuple(path[: depth + 1])
            assert seen.setdefault(identity, key) == key
    assert ROOT not in seen


@given(CALLS, CALLS, st.randoms())
def test_calls_of_others_never_change_who_is_who(mine, others, random):
    """Insert, delete, interleave: each keeps its identity, as long as the order among equals stays."""
    others = [call for call in others if call not in mine]
    alone = dict(zip(numbered(mine), identities(mine), strict=True))
    mixed = list(mine)
    for call in others:
        mixed.insert(random.randrange(len(mixed) + 1), call)
    together = dict(zip(numbered(mixed), identities(mixed), strict=True))
    assert {key: together[key] for key in alone} == alone


@given(CALLS, st.randoms())
def test_any_order_gives_the_same_identities(calls, random):
    """Only equals can change places, and their arguments are the same."""
    shuffled = list(calls)
    random.shuffle(shuffled)
    before = dict(zip(numbered(calls), identities(calls), strict=True))
    assert dict(zip(numbered(shuffled), identities(shuffled), strict=True)) == before


def numbered(calls):
    """Each call with its number among equals."""
    seen = {}
    found = []
    for call in calls:
        seen[call] = seen.get(call, -1) + 1
        found.append((call, seen[call]))
    return found


@given(CALLS, st.binary(min_size=16, max_size=16).filter(lambda other: other != ROOT))
def test_equal_calls_of_two_parents_differ(calls, other):
    assert not set(identities(calls)) & set(identities(calls, other))


@given(st.lists(st.tuples(st.binary(max_size=16), st.integers(0, 2**32 - 1)), unique=True, max_size=20))
def test_questions_have_ids_of_their_own(asked):
    ids = [question_id("r", identity, number) for identity, number in asked]
    assert len(set(ids)) == len(ids)
    assert all(len(key) == 32 and set(key) <= set("0123456789abcdef") for key in ids)
    assert ids == [question_id("r", *each) for each in asked]


def test_a_name_that_looks_like_equals_counting_is_no_other_call():
    """The second of two equal calls is no call that could be asked for in some other way."""
    siblings = Siblings(ROOT)
    first, second = siblings.next("s", b"f")[0], siblings.next("s", b"f")[0]
    for step, fingerprint in [
        ("equal", first),
        ("equal", first + bytes(7) + b"\x01"),
        ("s", b"f" + bytes(8)),
    ]:
        assert Siblings(ROOT).next(step, fingerprint)[0] not in {first, second}


def test_identities_are_what_older_versions_recorded():
    """A change here makes every run that is on disk run again: it needs a new version of the format."""
    siblings = Siblings(root_identity("workflow"))
    found = [siblings.next("step", b"print")[0].hex() for _ in range(2)]
    assert found == IDENTITIES
    assert question_id("r", root_identity("workflow"), 0) == QUESTION


IDENTITIES = ["7a45af7690ab187a52bbca3fceff4419", "713af4668a57f179088cae67c19a1f5d"]
QUESTION = "e140a72c4d880d4bb313fed252d0b9c7"
