"""Failure policies: decided at the first moment at which it is certain, and never before."""

from __future__ import annotations

import copy
import math
import pickle
from fractions import Fraction
from itertools import product

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from weft.core.policy import Collect, FailFast, Need, Policy, Race, Tolerate, Verdict, policy_of, tolerate
from weft.errors import DefinitionError

# What each policy means, said of an ending (one bool a branch: did it succeed?) and with exact shares.
MOST = 7
shares = st.integers(1, 12).flatmap(lambda of: st.tuples(st.integers(0, of - 1), st.just(of)))
counts = st.integers(0, MOST)


def succeeds_with_share(share, ending):
    return ending.count(False) <= Fraction(*share) * len(ending)


policies = st.one_of(
    st.just((FailFast(), all, False)),
    st.just((Collect(), lambda ending: True, False)),
    st.just((Race(), any, True)),
    st.integers(1, MOST + 1).map(lambda need: (Need(need), lambda ending: sum(ending) >= need, True)),
    counts.map(lambda most: (tolerate(count=most), lambda ending: ending.count(False) <= most, False)),
    shares.map(
        lambda share: (
            tolerate(ratio=share[0] / share[1]),
            lambda ending: succeeds_with_share(share, ending),
            False,
        )
    ),
    st.tuples(counts, shares).map(
        lambda both: (
            tolerate(count=both[0], ratio=both[1][0] / both[1][1]),
            lambda ending: ending.count(False) <= both[0] and succeeds_with_share(both[1], ending),
            False,
        )
    ),
)


def certain(succeeds, so_far, total, *, early):
    """The verdict by brute force: every way in which the branches that are left can end is looked at."""
    rest = total - len(so_far)
    futures = {succeeds([*so_far, *after]) for after in product([True, False], repeat=rest)}
    if futures == {False}:
        return Verdict.FAILED
    if futures == {True} and (early or not rest):
        return Verdict.DONE
    return Verdict.GO_ON


@given(policies, st.lists(st.booleans(), max_size=MOST))
def test_the_verdict_is_what_is_certain(case, ending):
    """`ending` is in order of ending; the verdict is asked for before the first and after each."""
    policy, succeeds, early = case
    for ended in range(len(ending) + 1):
        so_far = ending[:ended]
        found = policy.verdict(so_far.count(True), so_far.count(False), len(ending))
        assert found is certain(succeeds, so_far, len(ending), early=early)


@given(policies, st.lists(st.booleans(), max_size=MOST))
def test_what_all_ends_is_decided(case, ending):
    """Nothing could ever decide it afterwards: the block would hang."""
    policy, succeeds, _ = case
    found = policy.verdict(ending.count(True), ending.count(False), len(ending))
    assert found is (Verdict.DONE if succeeds(ending) else Verdict.FAILED)


def succeeds_with_any_end(case, so_far):
    """How a block without a ratio may still end, whatever else its source gives."""
    _, succeeds, _ = case
    ends = [
        succeeds([*so_far, *after])
        for more in range(MOST + 2)
        for after in product([True, False], repeat=more)
    ]
    return set(ends)


@given(policies, st.lists(st.booleans(), max_size=3))
def test_while_the_source_goes_on_only_what_no_end_of_it_can_change_is_decided(case, so_far):
    policy, _, early = case
    assume(not isinstance(policy, Tolerate) or policy.ratio is None)
    futures = succeeds_with_any_end(case, so_far)
    expected = Verdict.GO_ON
    if futures == {False}:
        expected = Verdict.FAILED
    if futures == {True} and early:
        expected = Verdict.DONE
    assert policy.verdict(so_far.count(True), so_far.count(False), None) is expected


@given(shares, st.none() | counts, st.integers(1, 5), st.lists(st.booleans(), max_size=MOST))
def test_while_the_source_goes_on_a_ratio_is_of_those_that_ended(share, most, at_least, so_far):
    ok, failed = so_far.count(True), so_far.count(False)
    over = len(so_far) >= at_least and not succeeds_with_share(share, so_far)
    over = over or (most is not None and failed > most)
    policy = tolerate(count=most, ratio=share[0] / share[1], at_least=at_least)
    assert policy.verdict(ok, failed, None) is (Verdict.FAILED if over else Verdict.GO_ON)


@given(st.integers(1, 1000), st.data())
def test_a_share_that_comes_out_whole_is_tolerated_to_the_last(of, data):
    """0.29 * 100 is a little less than 29 in floats."""
    part = data.draw(st.integers(0, of - 1))
    total = of * data.draw(st.integers(1, 1_000_000 // of))
    most = part * total // of
    policy = tolerate(ratio=part / of)
    assert policy.verdict(0, most, total) is Verdict.GO_ON
    assert policy.verdict(total - most, most, total) is Verdict.DONE
    assert policy.verdict(0, most + 1, total) is Verdict.FAILED
    assert policy.verdict(total - most, most, None) is Verdict.GO_ON
    assert policy.verdict(total - most - 1, most + 1, None) is Verdict.FAILED


def test_a_share_that_floats_miss():
    """What the test above finds, without its luck."""
    assert 0.29 * 100 < 29
    assert tolerate(ratio=0.29).verdict(71, 29, 100) is Verdict.DONE
    assert tolerate(ratio=0.29).verdict(71, 29, None) is Verdict.GO_ON


def test_at_least_counts_only_while_the_number_of_branches_is_not_known():
    policy = tolerate(ratio=0.5, at_least=10)
    assert policy.verdict(0, 3, None) is Verdict.GO_ON
    assert policy.verdict(0, 3, 4) is Verdict.FAILED


@pytest.mark.parametrize(
    ("policy", "verdict"),
    [
        (FailFast(), Verdict.DONE),
        (Collect(), Verdict.DONE),
        (tolerate(count=0), Verdict.DONE),
        (tolerate(ratio=0), Verdict.DONE),
        (Need(1), Verdict.FAILED),
        (Race(), Verdict.FAILED),
    ],
)
def test_a_block_without_branches_is_decided_at_once(policy, verdict):
    assert policy.verdict(0, 0, 0) is verdict
    assert policy.verdict(0, 0, None) is Verdict.GO_ON  # the source has not said that there are none


def test_which_blocks_return_outcomes():
    giving = {type(policy) for policy in EVERY if policy.gives_outcomes}
    assert giving == {Collect, Tolerate, Need}


EVERY = [FailFast(), Collect(), Race(), Need(2), tolerate(count=1), tolerate(ratio=0.5, at_least=2)]


@pytest.mark.parametrize("policy", EVERY, ids=repr)
def test_policies_are_values(policy):
    """Options are compared, and sent to other processes."""
    for same in (copy.copy(policy), pickle.loads(pickle.dumps(policy))):
        assert same == policy
        assert hash(same) == hash(policy)
    with pytest.raises((AttributeError, TypeError)):
        policy.count = 7


# What options mean


@pytest.mark.parametrize(
    ("options", "policy"),
    [
        ({}, FailFast()),
        ({"on_error": "fail_fast"}, FailFast()),
        ({"on_error": "collect"}, Collect()),
        ({"on_error": "race"}, Race()),
        ({"need": 3}, Need(3)),
        ({"on_error": "fail_fast", "need": 3}, Need(3)),
        ({"on_error": tolerate(count=2)}, Tolerate(count=2)),
        ({"on_error": tolerate(ratio=0.1, at_least=20)}, Tolerate(ratio=0.1, at_least=20)),
        ({"on_error": Need(2)}, Need(2)),
    ],
)
def test_what_options_mean(options, policy):
    assert policy_of(**options) == policy


@pytest.mark.parametrize("wrong", ["failfast", "", None, True, 3, Race, tolerate, ["collect"], ValueError])
def test_an_on_error_that_is_no_policy_is_named_and_the_policies_are_listed(wrong):
    with pytest.raises(DefinitionError) as caught:
        policy_of(wrong)
    message = str(caught.value)
    assert repr(wrong) in message
    for name in ("fail_fast", "collect", "race", "tolerate(count=", "tolerate(ratio=", "need="):
        assert name in message


@pytest.mark.parametrize("on_error", ["collect", "race", tolerate(count=1), Need(3), "nonsense"])
def test_two_policies_at_once_are_refused(on_error):
    with pytest.raises(DefinitionError, match="need=3") as caught:
        policy_of(on_error, need=3)
    assert repr(on_error) in str(caught.value)


@pytest.mark.parametrize("wrong", [0, -1, True, 2.0, "2", math.nan])
def test_a_need_that_is_no_number_of_branches_is_refused(wrong):
    with pytest.raises(DefinitionError, match=f"need .*at least 1, not {wrong!r}"):
        policy_of(need=wrong)


@pytest.mark.parametrize(
    ("options", "name"),
    [
        *[({"count": wrong}, "count") for wrong in (-1, True, False, 2.0, "2", math.nan)],
        *[
            ({"ratio": wrong}, "ratio")
            for wrong in (-0.1, 1, 1.0, 50, True, False, "0.1", math.nan, math.inf, 1j)
        ],
        *[({"ratio": 0.5, "at_least": wrong}, "at_least") for wrong in (0, -1, True, 2.0, None, math.nan)],
        ({"count": 1, "ratio": 2}, "ratio"),
        ({"count": 1, "at_least": 5}, "at_least"),
        ({}, "tolerate"),
        ({"at_least": 5}, "tolerate"),
    ],
)
def test_tolerances_that_can_never_work_are_refused(options, name):
    with pytest.raises(DefinitionError, match=name) as caught:
        tolerate(**options)
    if name in options:
        assert repr(options[name]) in str(caught.value)


@given(st.integers(0, 5), st.integers(1, 8))
def test_a_need_of_more_than_there_are_is_refused(total, need):
    policy = Need(need)
    if policy.verdict(0, 0, total) is Verdict.FAILED:
        with pytest.raises(DefinitionError, match=rf"need={need} of {total} branch"):
            policy.check(total)
    else:
        policy.check(total)


def test_a_race_of_nobody_is_refused():
    Race().check(1)
    with pytest.raises(DefinitionError, match="at least one branch"):
        Race().check(0)


@pytest.mark.parametrize("policy", [FailFast(), Collect(), tolerate(count=9), tolerate(ratio=0.1)], ids=repr)
def test_the_others_hold_for_any_number_of_branches(policy):
    for total in (0, 1, 5):
        policy.check(total)


# What people read


@pytest.mark.parametrize(
    ("policy", "numbers", "reason"),
    [
        (FailFast(), (4, 1, 20), "1 of 20 branches failed; none is tolerated"),
        (FailFast(), (4, 1, None), "1 of the 5 branches that ended so far failed; none is tolerated"),
        (FailFast(), (0, 1, 1), "1 of 1 branch failed; none is tolerated"),
        (FailFast(), (20, 0, 20), "20 of 20 branches ended, 0 failed"),
        (Collect(), (3, 2, 5), "5 of 5 branches ended, 2 failed"),
        (Collect(), (3, 2, 6), "5 of 6 branches ended, 2 failed: not decided yet"),
        (Collect(), (1, 0, None), "1 branch ended so far, 0 failed: not decided yet"),
        (tolerate(count=2), (4, 3, 20), "3 of 20 branches failed; 2 are tolerated"),
        (tolerate(count=1), (4, 2, 20), "2 of 20 branches failed; 1 is tolerated"),
        (tolerate(count=0), (4, 1, 20), "1 of 20 branches failed; none is tolerated"),
        (tolerate(ratio=0), (4, 1, 20), "1 of 20 branches failed; none is tolerated"),
        (tolerate(ratio=0.29), (0, 6, 20), "6 of 20 branches failed; 29% are tolerated"),
        (
            tolerate(ratio=1 / 3),
            (0, 2, None),
            "2 of the 2 branches that ended so far failed; 33.33% are tolerated",
        ),
        (tolerate(count=9, ratio=0.1), (0, 3, 20), "3 of 20 branches failed; 10% are tolerated"),
        (tolerate(count=1, ratio=0.1), (0, 2, 20), "2 of 20 branches failed; 1 is tolerated"),
        (Need(3), (2, 18, 20), "18 of 20 branches failed; 3 must succeed"),
        (Need(3), (0, 0, 2), "3 must succeed, of 2 branches in all"),
        (Need(3), (3, 1, 20), "3 branches succeeded; 3 needed"),
        (Race(), (0, 20, 20), "20 of 20 branches failed; 1 must succeed"),
        (Race(), (0, 0, 0), "1 must succeed, of 0 branches in all"),
        (Race(), (1, 4, 20), "a branch succeeded; one was needed"),
    ],
)
def test_reasons(policy, numbers, reason):
    assert policy.reason(*numbers) == reason


@given(policies, counts, counts, st.none() | counts)
def test_every_verdict_has_a_reason(case, ok, failed, total):
    policy, _, _ = case
    assume(total is None or ok + failed <= total)
    assert policy.reason(ok, failed, total)


def test_a_policy_of_a_users_own_needs_only_its_verdict():
    class Even(Policy):
        gives_outcomes = False

        def verdict(self, ok, failed, total):
            return Verdict.FAILED if failed == 2 else Verdict.GO_ON

    policy = policy_of(Even())
    policy.check(3)
    assert policy.reason(0, 2, 5) == "2 of 5 branches failed"
