"""The state of a graph: it does what a dict does, and says what was done to it."""

from __future__ import annotations

import copy
import json
import pickle
import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from weft.core.graph_state import StateBranch, plain
from weft.core.state_merge import Conflict, Part, merge
from weft.errors import GraphError, StateConflictError

KEYS = ["a", "b", "c", "d"]


def same(one, other):
    """Equal, and in the same order."""
    return json.dumps(one) == json.dumps(other)


# It is a dict


def test_it_works_where_a_dict_does():
    state = StateBranch({"n": 1, "list": [1, {"x": 2}], "dict": {"y": [3]}}).state
    assert state == {"n": 1, "list": [1, {"x": 2}], "dict": {"y": [3]}}
    assert isinstance(state, dict)
    assert isinstance(state["list"], list)
    assert json.loads(json.dumps(state)) == state
    assert {**state} == dict(state) == state.copy() == state | {} == state
    assert state["list"] + [1] == [1, {"x": 2}, 1]
    assert list(state) == ["n", "list", "dict"]
    match state:
        case {"dict": {"y": [value]}}:
            assert value == 3


@pytest.mark.parametrize(
    "copied", [copy.deepcopy, copy.copy, lambda state: pickle.loads(pickle.dumps(state)), plain]
)
def test_a_copy_is_a_plain_dict(copied):
    branch = StateBranch({"list": [1]})
    made = copied(branch.state)
    assert type(made) is dict
    assert made == {"list": [1]}
    made["x"] = 1
    assert branch.take() == {}


def test_what_is_given_is_not_changed():
    given_state = {"list": [1], "dict": {}}
    branch = StateBranch(given_state)
    branch.state["list"].append(2)
    branch.state["dict"]["x"] = 1
    assert given_state == {"list": [1], "dict": {}}


def test_other_objects_are_the_same_objects():
    thing = object()
    branch = StateBranch({"thing": thing, "more": [thing]})
    assert branch.state["thing"] is branch.copy().state["more"][0] is thing


def test_what_is_put_in_stays_the_same_object_until_it_is_taken():
    """``items = []; state["items"] = items; items.append(1)`` is what people write."""
    branch, items = StateBranch({}), []
    branch.state["items"] = items
    items.append(1)
    branch.state.setdefault("more", []).append(2)
    assert branch.take() == {"items": ("new", [1]), "more": ("new", [2])}
    branch.state["items"].append(3)
    assert items == [1]
    assert branch.take() == {"items": ("app", [3], {})}


@pytest.mark.parametrize(
    ("do", "error"),
    [
        (lambda state: state["none"], KeyError),
        (lambda state: state.pop("none"), KeyError),
        (lambda state: state.__delitem__("none"), KeyError),
        (lambda state: state["list"].pop(7), IndexError),
        (lambda state: state["list"].remove(7), ValueError),
        (lambda state: state["list"].__setitem__(7, 0), IndexError),
        (lambda state: state["list"].__setitem__(slice(0, 3, 2), [0]), ValueError),
        (lambda state: state["list"].extend(7), TypeError),
        (lambda state: state["list"].sort(key=lambda item: item["x"]), TypeError),
        (lambda state: state["dict"].popitem(), KeyError),
        (lambda state: state.update([1]), TypeError),
    ],
)
def test_what_fails_fails_as_it_does_on_plain_ones(do, error):
    held = {"list": [1, 2, 3], "dict": {}}
    branch = StateBranch(held)
    with pytest.raises(error):
        do(branch.state)
    branch.undo()
    assert branch.state == held
    with pytest.raises(error):
        do(plain(held))


def test_what_contains_itself_is_refused():
    branch = StateBranch({})
    loop = []
    loop.append(loop)
    branch.state["loop"] = loop
    with pytest.raises(GraphError, match="contains itself"):
        branch.take()


# What changes are


def test_changes_say_what_was_done():
    branch = StateBranch(
        {"n": 1, "gone": 1, "moved": 1, "list": [{"x": 1}, 2, 3], "queue": [1, 2, 3], "in": {"k": [1]}}
    )
    state = branch.state
    state["n"] = 2
    del state["gone"]
    state["moved"] = state.pop("moved")
    state["new"] = {"z": 1}
    state["list"][0]["x"] = 5
    state["list"].append(4)
    state["queue"].pop(0)
    state["in"]["k"] += [2]
    state["tmp"] = 1
    del state["tmp"]
    assert branch.take() == {
        "n": ("set", 2),
        "gone": ("del",),
        "moved": ("anew", 1),
        "new": ("new", {"z": 1}),
        "list": ("app", [4], {0: ("in", {"x": ("set", 5)})}),
        "queue": ("cut", 0, 1, [], {}),
        "in": ("in", {"k": ("app", [2], {})}),
    }
    assert branch.take() == {}


@pytest.mark.parametrize(
    "spelling", ["state['h'] = state['h'] + ['x']", "state['h'] = [*state['h'], 'x']", "state['h'] += ['x']"]
)
def test_a_longer_list_in_its_place_is_appending(spelling):
    branch = StateBranch({"h": [{"a": 1}, "b"]})
    exec(spelling, {"state": branch.state})
    assert branch.take() == {"h": ("app", ["x"], {})}
    assert branch.state == {"h": [{"a": 1}, "b", "x"]}


def test_one_container_in_two_places_becomes_two():
    """As it would after a resume, where all that is left of it is its value."""
    branch = StateBranch({"a": [1]})
    branch.state["b"] = branch.state["a"]
    branch.state["b"].append(2)
    assert branch.take() == {"b": ("new", [1, 2]), "a": ("app", [2], {})}
    branch.state["b"].append(3)
    assert branch.state == {"a": [1, 2], "b": [1, 2, 3]}
    assert branch.take() == {"b": ("app", [3], {})}


def test_a_change_is_not_changed_any_more():
    branch = StateBranch({})
    branch.state["a"] = {"list": [1]}
    change = branch.take()
    branch.state["a"]["list"].append(2)
    assert change == {"a": ("new", {"list": [1]})}


def test_appending_costs_what_is_appended():
    branch = StateBranch({"list": [{}] * 10})
    for turn in range(3_000):
        branch.state["list"].append(turn)
        assert branch.take() == {"list": ("app", [turn], {})}
    assert len(branch._notes.since_fork) == 1


# Random operations


def value_of(random):
    return random.choice(
        [lambda: random.randrange(5), lambda: [random.randrange(3)], lambda: {"x": [1], "a": 2}, lambda: [{}]]
    )()


def containers_of(value):
    found = [value]
    for held in found:
        found += [
            item
            for item in (held.values() if isinstance(held, dict) else held)
            if isinstance(item, dict | list)
        ]
    return found


def do_something(random, root):
    """One random operation on some dict or list in there; the same for the same state of ``random``."""
    held = random.choice(containers_of(root))
    (change_dict if isinstance(held, dict) else change_list)(random, held)


def change_dict(random, held):
    key, value = random.choice(KEYS), value_of(random)
    match random.randrange(9):
        case 0 | 1:
            held[key] = value
        case 2:
            held.pop(key, None)
        case 3:
            held.setdefault(key, value)
        case 4:
            held.update({key: value, "e": 1})
        case 5 if held:
            held.popitem()
        case 6 if key in held:
            del held[key]
        case 7 if random.random() < 0.2:
            held.clear()
        case 8 if isinstance(held.get(key), list):
            held[key] = held[key] + [value]
        case _:
            held |= {key: value}


def change_list(random, held):
    value, place = value_of(random), random.randrange(-3, 4)
    part = slice(random.choice([None, *range(-3, 4)]), random.choice([None, *range(-3, 4)]))
    match random.randrange(12):
        case 0 | 1 | 2:
            held.append(value)
        case 3:
            held.extend([value, 7])
        case 4:
            held.insert(place, value)
        case 5 if held:
            held.pop()
        case 6 if held:
            held.pop(place % len(held))
        case 7 if held:
            held[place % len(held)] = value
        case 8:
            held[part] = [value, 1]
        case 9:
            del held[part]
        case 10:
            held.sort(key=json.dumps)
        case 11:
            random.choice(
                [
                    held.reverse,
                    held.clear,
                    lambda: held.__imul__(1),
                    lambda: held.__setitem__(slice(None, None, -1), [*held]),
                ]
            )()
        case _:
            held += [value]


def start(random):
    return {"a": [1, {"x": [2]}, 3], "b": {"c": {}, "d": [[]]}, "c": value_of(random)}


@settings(max_examples=600, deadline=None)
@given(st.integers(0, 2**32))
def test_it_does_what_plain_ones_do_and_can_be_undone_and_replayed(seed):
    print(f"{seed=}")
    rng = random.Random(seed)
    model = start(rng)
    branch, replayed, begun = StateBranch(model), StateBranch(model), copy.deepcopy(model)
    for _ in range(rng.randrange(8)):
        before = copy.deepcopy(model)
        for _ in range(rng.randrange(6)):
            operation = rng.getrandbits(32)
            do_something(random.Random(operation), model)
            do_something(random.Random(operation), branch.state)
            assert same(branch.state, model)
        if rng.random() < 0.3:
            branch.undo()
            model = before
            assert same(branch.state, model)
        change = branch.take()
        model = copy.deepcopy(model)  # taken over: what stood in two places stands for itself
        assert same(branch.state, model)
        assert json.dumps(change) is not None  # nothing of ours is in it
        replayed.apply(change)
        assert same(replayed.state, model)
        assert branch.take() == {}
    again = StateBranch(begun)
    merge(again, [Part("all", branch, lambda other: False)])
    assert again.state == model
    assert {key: branch.at_begin(key) for key in begun} == begun
    assert all(branch.at_begin(key) is None for key in model if key not in begun)


# Merging


def branches(state, *bodies, seen=()):
    """A branch for each body, as if all began with this state; ``seen`` says who began on whom: (2, 0)."""
    parts = []
    for number, body in enumerate(bodies):
        base = next((parts[earlier].branch for later, earlier in seen if later == number), None)
        branch = StateBranch(state) if base is None else base.copy()
        exec(body, {"state": branch.state})
        parts.append(
            Part(
                f"branch {number}", branch, lambda other, number=number: (number, parts.index(other)) in seen
            )
        )
    return parts


def merged(state, *bodies, seen=(), order=None, **options):
    target = StateBranch(state)
    parts = branches(state, *bodies, seen=seen)
    conflicts = merge(target, parts if order is None else [parts[place] for place in order], **options)
    return plain(target.state), [each.path for each in conflicts]


def test_the_documents_history():
    add_a, add_b = 'state["history"].append("branch_a")', 'state["history"].append("branch_b")'
    state = {"history": ["start"]}
    assert merged(state, add_a, add_b) == ({"history": ["start", "branch_a", "branch_b"]}, [])
    assert merged(state, add_a, add_b, order=(1, 0)) == ({"history": ["start", "branch_b", "branch_a"]}, [])


@pytest.mark.parametrize(
    ("state", "one", "other", "expected"),
    [
        ({}, "state['a'] = 1", "state['b'] = 2", {"a": 1, "b": 2}),
        ({"a": 0, "b": 0}, "state['a'] = 1", "state['b'] = 2", {"a": 1, "b": 2}),
        ({"a": 0}, "del state['a']", "state.pop('a')", {}),
        ({"d": {"x": {}}}, "state['d']['x']['y'] = 1", "state['d']['x']['z'] = 2", {"d": {"x": {"y": 1, "z": 2}}}),
        ({}, "state.setdefault('h', []).append(1)", "state.setdefault('h', []).append(2)", {"h": [1, 2]}),
        ({}, "state.setdefault('d', {})['x'] = 1", "state.setdefault('d', {})['y'] = 2", {"d": {"x": 1, "y": 2}}),
        ({}, "state['d'] = {'l': [1]}", "state['d'] = {'l': [2]}", {"d": {"l": [1, 2]}}),
        ({"h": [0]}, "state['h'] = state['h'] + [1]", "state['h'].extend([2, 3])", {"h": [0, 1, 2, 3]}),
        ({"l": [{}, {}]}, "state['l'][0]['x'] = 1", "state['l'][1]['y'] = 2", {"l": [{"x": 1}, {"y": 2}]}),
        ({"l": [{}]}, "state['l'][0]['x'] = 1; state['l'] += [2]", "state['l'] += [3]", {"l": [{"x": 1}, 2, 3]}),
        ({"l": [{"m": []}]}, "state['l'][0]['m'].append(1)", "state['l'][0]['m'].append(2)", {"l": [{"m": [1, 2]}]}),
        ({"q": [1, 2]}, "state['q'].pop(0)", "pass", {"q": [2]}),
        ({"n": 1}, "pass", "pass", {"n": 1}),
    ],
)  # fmt: skip
def test_what_can_be_merged_is_merged(state, one, other, expected):
    assert merged(state, one, other) == (expected, [])


@pytest.mark.parametrize(
    ("state", "one", "other", "expected", "path"),
    [
        ({"n": 0}, "state['n'] = 1", "state['n'] = 2", {"n": 2}, ("n",)),
        ({"n": 0}, "state['n'] = 1", "del state['n']", {}, ("n",)),
        ({"n": 0}, "del state['n']", "state['n'] = 2", {"n": 2}, ("n",)),
        ({}, "state['n'] = 1", "state['n'] = 1", {"n": 1}, ("n",)),
        ({}, "state['n'] = [1]", "state['n'] = 2", {"n": 2}, ("n",)),
        ({}, "state['d'] = {'x': 1}", "state['d'] = {'x': 2}", {"d": {"x": 2}}, ("d", "x")),
        ({"d": {"x": 0}}, "state['d']['x'] = 1", "state['d']['x'] = 2", {"d": {"x": 2}}, ("d", "x")),
        ({"d": {"x": 0}}, "state['d'] = {}", "state['d']['y'] = 2", {"d": {"x": 0, "y": 2}}, ("d",)),
        ({"d": {"x": 0}}, "state['d']['y'] = 2", "state['d'] = {}", {"d": {}}, ("d",)),
        ({"l": [1, 2]}, "state['l'].append(3)", "state['l'].pop(0)", {"l": [2]}, ("l",)),
        ({"l": [1, 2]}, "state['l'].pop(0)", "state['l'].append(3)", {"l": [1, 2, 3]}, ("l",)),
        ({"l": [1, 2]}, "state['l'].sort(reverse=True)", "state['l'].pop(0)", {"l": [2]}, ("l",)),
        ({"l": [{"x": 0}]}, "state['l'][0]['x'] = 1", "state['l'][0]['x'] = 2", {"l": [{"x": 2}]}, ("l", 0, "x")),
    ],
)  # fmt: skip
def test_else_the_last_one_wins_and_it_is_said(state, one, other, expected, path):
    assert merged(state, one, other) == (expected, [path])
    with pytest.raises(StateConflictError) as caught:
        merged(state, one, other, on_conflict="error")
    assert caught.value.path == path
    assert caught.value.branches == ("branch 0", "branch 1")


# When what was appended came


def completed(state, *steps):
    """A branch on which nodes did this, each with the number as which it was completed."""
    branch = StateBranch(state)
    for number, body in steps:
        exec(body, {"state": branch.state})
        branch.complete(number)
    return branch


def together(state, *branches, order=None, target=None):
    parts = [Part(f"branch {place}", branch, lambda other: False) for place, branch in enumerate(branches)]
    target = target or StateBranch(state)
    conflicts = merge(target, parts if order is None else [parts[place] for place in order])
    assert conflicts == []
    return target


WAYS = {
    "of a list that was there": ({"h": [0]}, "state['h']", "state['h'].append({})", [0]),
    "of a list that all have created": ({}, "state['h']", "state.setdefault('h', []).append({})", []),
    "in a dict": ({"d": {"h": [0]}}, "state['d']['h']", "state['d']['h'].append({})", [0]),
    "in a dict that all have created": (
        {},
        "state['d']['h']",
        "state.setdefault('d', {{}}).setdefault('h', []).append({})",
        [],
    ),
    "in a list": ({"l": [[], [0]]}, "state['l'][1]", "state['l'][1].append({})", [0]),
    "by writing it anew": ({"h": [0]}, "state['h']", "state['h'] = [*state['h'], {}]", [0]),
}


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 0, 1)])
@pytest.mark.parametrize(("state", "found", "append", "before"), WAYS.values(), ids=[*WAYS])
def test_what_was_appended_stands_in_the_order_in_which_it_was_completed(state, found, append, before, order):
    """Whatever the order of the branches; also when the result is a branch that meets others."""
    branches = [
        completed(state, *((number, append.format(number)) for number in numbers))
        for numbers in ((1, 5, 6), (2, 4, 9), (3, 8))
    ]
    inner = together(state, *branches, order=order)
    assert eval(found, {"state": inner.state}) == [*before, 1, 2, 3, 4, 5, 6, 8, 9]
    exec(append.format(10), {"state": inner.state})
    inner.complete(10)
    outer = together(state, completed(state, (7, append.format(7)), (11, append.format(11))), inner)
    assert eval(found, {"state": outer.state}) == [*before, *range(1, 12)]
    assert outer.take() == {}


def test_from_the_first_place_on_that_a_node_has_changed_all_has_come_with_it():
    one = completed(
        {"h": [0]},
        (1, "state['h'] += ['a', 'b', 'c']"),
        (3, "state['h'].remove('b'); state['h'].append('d')"),
        (5, "state['h'].pop(); state['h'].insert(2, 'e')"),
    )
    other = completed({"h": [0]}, (2, "state['h'].append('x')"), (4, "state['h'].append('y')"))
    assert together({"h": [0]}, one, other).state == {"h": [0, "a", "x", "y", "e", "c"]}


def test_what_is_undone_was_not_appended():
    one = completed({"h": []}, (1, "state['h'].append('a')"))
    one.state["h"].pop()
    one.undo()
    one.state["h"].append("b")
    one.complete(3)
    other = completed({"h": []}, (2, "state['h'].append('x')"), (4, "state['h'].append('y')"))
    assert together({"h": []}, one, other).state == {"h": ["a", "x", "b", "y"]}


def test_what_is_replayed_has_come_when_it_is_completed_now():
    """A resume applies what was recorded and tells the completions in their order."""
    live, again = ([StateBranch({"h": []}) for _ in range(2)] for _ in range(2))
    for number, place in enumerate((0, 1, 1, 0)):
        live[place].state["h"].append(number)
        live[place].state.setdefault("new", []).append(number)
        again[place].apply(live[place].take())
        for branches in (live, again):
            branches[place].complete(number)
    first, second = (together({"h": []}, *branches) for branches in (live, again))
    assert first.state == second.state == {"h": [0, 1, 2, 3], "new": [0, 1, 2, 3]}
    assert first.digest == second.digest


def test_a_list_that_won_and_is_only_longer_keeps_when_it_came():
    """The second branch replaces what the first has done; for a third, both have only appended."""
    start = {"h": [0]}
    first, second = completed(start, (1, "state['h'].pop()")), completed(start, (2, "state['h'].append('a')"))
    inner = StateBranch(start)
    parts = [Part(name, branch, lambda other: False) for name, branch in (("1", first), ("2", second))]
    assert [each.path for each in merge(inner, parts)] == [("h",)]
    inner.state["h"].append("b")
    inner.complete(4)
    third = completed(start, (3, "state['h'].append('x')"), (5, "state['h'].append('y')"))
    assert together(start, third, inner).state == {"h": [0, "a", "x", "b", "y"]}


def test_who_began_on_one_of_two_that_created_a_list_appends_to_what_both_have_made():
    bodies = "state['h'] = [1]", "state['h'] = [2]", "state['h'].append(3)"
    assert merged({}, *bodies, seen={(2, 1)}) == ({"h": [1, 2, 3]}, [])
    bodies = "state['d'] = {'x': [1]}", "state['d'] = {'x': [2]}", "state['d']['x'].append(3)"
    assert merged({}, *bodies, seen={(2, 1)}) == ({"d": {"x": [1, 2, 3]}}, [])


def test_the_digest_stands_for_the_order_only_where_it_is_not_that_of_the_branches():
    def digest(*numbers):
        body = "state['h'].append(1)"
        one, other = (completed({"h": []}, *((number, body) for number in each)) for each in numbers)
        return together({"h": []}, one, other).digest

    assert digest((1, 2), (3, 4)) == digest((1, 3), (5, 9))
    assert len({digest((1, 2), (3, 4)), digest((1, 3), (2, 4)), digest((1, 4), (2, 3))}) == 3


@settings(max_examples=300, deadline=None)
@given(st.integers(0, 2**32))
def test_lists_are_merged_by_completion_whatever_else_is_done_to_them(seed):
    """What a branch holds at the end came when its place was last changed; a model that says it item by item."""
    print(f"{seed=}")
    rng = random.Random(seed)
    start = rng.choice([{}, {"h": ["s", "t"]}])
    size = len(start.get("h", ()))
    branches = [StateBranch(start) for _ in range(3)]
    models = [[-1] * size for _ in branches]
    for number in range(rng.randrange(20)):
        place = rng.randrange(3)
        branch, model = branches[place], models[place]
        items = branch.state.setdefault("h", [])
        for _ in range(rng.randrange(3)):
            before = [*items]
            first = rng.randint(min(size, len(items)), len(items))
            items[first:] = rng.choice([[], [(number, rng.random())], [*items[first:], object()]])
            kept = next(
                (at for at in range(min(len(before), len(items))) if before[at] is not items[at]), None
            )
            kept = min(len(before), len(items)) if kept is None else kept
            model[kept:] = [number] * (len(items) - kept)
        branch.complete(number)
    target = together(start, *branches)
    dated = [
        (number, item)
        for branch, model in zip(branches, models, strict=True)
        for number, item in [*zip(model, branch.state.get("h", []), strict=True)][size:]
    ]
    assert target.state.get("h", []) == [
        *start.get("h", []),
        *(item for _, item in sorted(dated, key=lambda each: each[0])),
    ]


def test_a_conflict_says_where_and_what_to_do():
    with pytest.raises(StateConflictError) as caught:
        merged({"d": {"x": 0}}, "state['d']['x'] = 1", "state['d']['x'] = 2", on_conflict="error")
    assert str(caught.value) == (
        "parallel branches have both changed state['d']['x']: one in branch 0, the other in branch 1; change different "
        "keys, append to a list, combine them with state_reducers={'d': ...}, or let the last one win with "
        'on_state_conflict="last"'
    )


def test_who_wins_is_said():
    target = StateBranch({"n": 0})
    conflicts = merge(target, branches({"n": 0}, "state['n'] = 1", "state['n'] = 2"))
    assert conflicts == [Conflict(("n",), ("branch 0", "branch 1"))]


def test_what_a_branch_overwrites_that_it_has_seen_is_no_conflict():
    """The second one began on the first, which had forked."""
    bodies = (
        "state['n'] = 1; state['h'].append('x')",
        "state['n'] += 1; state['h'].append('y')",
        "state['h'].append('z')",
    )
    seen = {(1, 0), (2, 0)}
    result = merged({"n": 0, "h": []}, *bodies, seen=seen, on_conflict="error")
    assert result == ({"n": 2, "h": ["x", "y", "z"]}, [])


def test_what_is_inside_of_something_that_another_branch_has_moved_is_found():
    """A place in a list means nothing where something else was appended meanwhile."""
    bodies = "state['l'].append({'by': 1})", "state['l'].append({'by': 2})", "state['l'][0]['more'] = 1"
    state, conflicts = merged({"l": []}, *bodies, seen={(2, 1)})
    assert state == {"l": [{"by": 2, "more": 1}]}
    assert conflicts == [("l",)]


def test_reducers_get_the_value_at_the_fork():
    add = {"n": lambda at_fork, merged, mine: merged + mine - at_fork}
    assert merged({"n": 10}, *["state['n'] += 1"] * 5, reducers=add) == ({"n": 15}, [])
    nested = merged(
        {"n": 10},
        "state['n'] += 1",
        "state['n'] += 5",
        "state['n'] += 7",
        seen={(1, 0), (2, 0)},
        reducers=add,
    )
    assert nested == ({"n": 23}, [])


def test_a_reducer_of_one_change_is_not_asked():
    assert merged({"n": 1}, "state['n'] = 2", "pass", reducers={"n": None}) == ({"n": 2}, [])


def test_reducers_get_plain_values_of_their_own():
    kept = []

    def longest(at_fork, merged, mine):
        kept.extend([at_fork, merged, mine])
        return max(merged, mine, key=len)

    state = {"l": [1]}
    assert merged(state, "state['l'].pop()", "state['l'].extend([2, 3])", reducers={"l": longest})[0] == {
        "l": [1, 2, 3]
    }
    assert kept == [[1], [], [1, 2, 3]]
    assert {type(each) for each in kept} == {list}


def test_a_failing_reducer_says_which_it_is():
    with pytest.raises(ZeroDivisionError) as caught:
        merged({"n": 1}, "state['n'] = 2", "state['n'] = 3", reducers={"n": lambda *values: 1 / 0})
    assert caught.value.__notes__ == ["raised by the reducer of state['n'], for what branch 1 did"]


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_branches_that_change_different_keys_merge_in_any_order(seed):
    print(f"{seed=}")
    rng = random.Random(seed)
    model = {key: {"a": [1, 2], "b": {}} for key in KEYS}
    parts = []
    for key in KEYS:
        branch = StateBranch(model)
        for _ in range(rng.randrange(6)):
            do_something(rng, branch.state[key])
            if rng.random() < 0.3:
                branch.take()
        parts.append(Part(key, branch, lambda other: False))
    expected = {key: part.branch.state[key] for key, part in zip(KEYS, parts, strict=True)}
    for _ in range(3):
        rng.shuffle(parts)
        target = StateBranch(model)
        assert merge(target, parts, on_conflict="error") == []
        assert target.state == expected
        replayed = StateBranch(model)
        replayed.apply(target.changes())
        assert replayed.state == expected


@settings(max_examples=200, deadline=None)
@given(st.integers(0, 2**32))
def test_a_merge_of_anything_works_and_the_last_of_a_key_wins(seed):
    print(f"{seed=}")
    rng = random.Random(seed)
    model = start(rng)
    parts = []
    for number in range(3):
        branch = StateBranch(model)
        for _ in range(rng.randrange(5)):
            do_something(rng, branch.state)
        parts.append(Part(str(number), branch, lambda other: False))
    target = StateBranch(model)
    merge(target, parts)
    for key in KEYS:
        writers = [part.branch for part in parts if key in part.branch.changes()]
        if not writers:
            assert target.state.get(key) == model.get(key)
        elif len(writers) == 1:
            assert target.state.get(key) == writers[0].state.get(key)
        elif isinstance(writers[-1].state.get(key), int):
            assert target.state[key] == writers[-1].state[key]
    assert not any(part.branch.take() for part in parts)


# Standing for what was recorded


def test_the_digest_stands_for_what_was_recorded_on_the_way():
    one, other = StateBranch({}), StateBranch({})
    assert one.digest == other.digest
    one.record(b"x")
    one.record(b"y")
    other.record(b"xy")
    assert one.digest != other.digest
    branch = one.copy()
    assert branch.digest == one.digest
    branch.record(b"z")
    first, second = one.copy(), one.copy()
    merge(first, [Part("", branch, lambda other: False)])
    merge(second, [Part("", one, lambda other: False)])
    assert len({one.digest, branch.digest, first.digest, second.digest}) == 4


def test_the_digest_is_the_same_in_every_version():
    """It is part of the identity of recorded calls: with another one, what is stored would all run again."""
    branch = StateBranch({"h": []})
    assert branch.digest == b""
    branch.record(b"x")
    assert branch.digest.hex() == "442a44457137672b3218c1007dc8f76a"
    parts = branches({"h": []}, "state['h'].append(1)", "state['h'].append(2)")
    for part in parts:
        part.branch.record(part.name.encode())
    merge(branch, parts)
    assert branch.digest.hex() == "7a89dcc0a756b89b666958fe35dc406d"


# Where a branch begins


def test_what_was_done_before_it_begins_is_no_change_of_it():
    """Also if it was not yet taken."""
    branch = StateBranch({"h": [1], "n": 0})
    branch.state["n"] = 1
    branch.state["h"].append(2)
    assert branch.has_changes
    branch.begin()
    assert not branch.has_changes
    assert branch.changes() == branch.all_changes() == branch.take() == {}
    assert (branch.at_begin("n"), branch.at_begin("h")) == (1, [1, 2])
    branch.state["h"].append(3)
    assert branch.all_changes() == {"h": ("app", [3], {})}


@pytest.mark.parametrize("nothing", ["state['h'].clear()", "state['h'].reverse()", "state['h'].sort()"])
def test_what_changes_nothing_of_an_empty_list_is_no_change(nothing):
    append = nothing + "; state['h'].append({})"
    assert merged({"h": []}, append.format(1), append.format(2)) == ({"h": [1, 2]}, [])
    branch = StateBranch({"h": []})
    exec(append.format(1), {"state": branch.state})
    assert branch.take() == {"h": ("app", [1], {})}
