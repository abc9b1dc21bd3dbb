"""Which answer goes to which question."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from weft.core.question import Command, Interrupt, match_answers
from weft.errors import AnswerError

IDS = st.lists(st.text(alphabet="0123456789abcdef", min_size=32, max_size=32), unique=True, max_size=5)
VALUES = st.one_of(
    st.integers(),
    st.text(max_size=5),
    st.booleans(),
    st.lists(st.integers(), max_size=2),
    st.floats(allow_nan=False),
)
PLAIN_DICTS = st.dictionaries(st.text(max_size=10), VALUES, max_size=3)


@given(IDS.filter(bool), st.data())
def test_a_dict_of_open_ids_answers_those_and_no_others(ids, data):
    chosen = data.draw(st.lists(st.sampled_from(ids), min_size=1, unique=True))
    answers = {key: data.draw(VALUES) for key in chosen}
    found = match_answers(answers, ids)
    assert found == answers
    assert found is not answers  # changing the one does not change the other


@given(IDS.filter(lambda ids: len(ids) == 1), st.one_of(VALUES, PLAIN_DICTS))
def test_any_plain_value_answers_the_only_one(ids, value):
    assert match_answers(value, ids) == {ids[0]: value}


@given(IDS.filter(lambda ids: len(ids) > 1), st.one_of(VALUES, PLAIN_DICTS))
def test_a_plain_value_answers_none_of_several(ids, value):
    with pytest.raises(AnswerError) as caught:
        match_answers(value, ids)
    assert all(key in str(caught.value) for key in ids)


@given(st.one_of(VALUES, PLAIN_DICTS))
def test_where_nothing_is_open_nothing_can_be_answered(value):
    with pytest.raises(AnswerError, match="no open question"):
        match_answers(value, [])


@given(IDS, st.text(alphabet="0123456789abcdef", min_size=32, max_size=32), st.data())
def test_an_id_that_is_not_open_is_refused_even_beside_one_that_is(ids, stale, data):
    if stale in ids:
        return
    answers = {
        stale: 1,
        **dict.fromkeys(data.draw(st.lists(st.sampled_from(ids), unique=True)) if ids else [], 2),
    }
    with pytest.raises(AnswerError) as caught:
        match_answers(answers, ids)
    assert stale in str(caught.value)
    assert all(key in str(caught.value) for key in ids)


def test_a_dict_that_has_an_open_id_and_something_else_is_refused():
    """As an answer to the only question it would be surprising, and as a list of answers it is wrong."""
    with pytest.raises(AnswerError, match="name"):
        match_answers({"0" * 32: 1, "name": 2}, ["0" * 32])


def test_ids_need_not_look_like_ours():
    """The ids of another store or version are the user's to give back as they were."""
    assert match_answers({"q1": 1}, ["q1", "q2"]) == {"q1": 1}


def test_open_ids_may_be_any_iterable():
    assert match_answers("x", iter(["0" * 32])) == {"0" * 32: "x"}


def test_an_interrupt_and_a_command_are_values():
    assert Interrupt("q", "i") == Interrupt("q", "i")
    assert Command() == Command(resume=None)
    assert Command(resume=1) != Command()
