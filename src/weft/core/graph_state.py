"""The state of a graph: a dict that notes how it is changed.

What nodes get is a real dict, with real dicts and lists in it, whose changing methods note what they change. A change
can be taken (to be recorded), undone (before a retry), applied (on replay), and merged with those of other branches.

- What is written is taken over when the change is taken: until then ``state["x"] = x`` leaves ``x`` the very object
  that it was, and what is done to it counts. Afterwards the state has a copy of its own. Only plain dicts and lists
  are looked into; any other object is a value, shared by reference.
- A :class:`StateBranch` is the state as one branch sees it, with two sets of notes: since the last take, for recording
  and undoing, and since it began, for merging. Notes are kept by container: what it held before, no more than once.
- A list knows from which place on its items came when: at which *moment*, the completion of the node that put them
  there. From the first place that a node has changed on, all items have come with that node. So they stand in the
  order of their moments, and what was appended on several branches can be brought into this order too.

A *change* is data that can be stored, a dict by key with one of these for each::

    ("set", value)   another value           ("new", value)   a key that was not there
    ("del",)         the key is gone         ("anew", value)  it was removed, and came again at the end
    ("in", change)   inside the dict there
    ("app", items, inside)                  appended to the list there; inside: by place, ("in", ...) and the like
    ("cut", start, count, items, inside)    items in place of count others; the places inside are those afterwards
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from itertools import pairwise
from math import inf
from typing import Any, Final, Self, SupportsIndex, TypeAlias

from weft.errors import GraphError

Change: TypeAlias = dict[Any, tuple[Any, ...]]


class Moment:
    """When a node was completed, as a number; infinitely late until it is known."""

    __slots__ = ("number",)

    def __init__(self, number: float = inf) -> None:
        self.number = number


_BEFORE: Final = Moment(-inf)
"""When everything came that a branch began with."""


# What nodes get


class NotingDict(dict[Any, Any]):
    """A dict that notes its changes; made by :class:`StateBranch`."""

    __slots__ = ("_key", "_notes", "_parent")

    _notes: _Notes | None
    _parent: _Container | None
    _key: Any

    def _touch(self) -> _DictNote:
        assert self._notes is not None
        if self._notes.guard is not None:
            self._notes.guard()
        note = self._notes.now.get(id(self))
        if note is None:
            note = self._notes.now[id(self)] = _DictNote(self)
        assert isinstance(note, _DictNote)
        return note

    def __setitem__(self, key: Any, value: Any) -> None:
        if isinstance(value, NotingDict | NotingList) and self.get(key) is value:
            return  # state["x"] = state["x"]
        self._touch().before_set(key)
        super().__setitem__(key, value)

    def __delitem__(self, key: Any) -> None:
        if key in self:
            self._touch().before_del(key)
        super().__delitem__(key)

    def clear(self) -> None:
        for key in [*self]:
            del self[key]

    def pop(self, key: Any, *default: Any) -> Any:
        if key in self:
            self._touch().before_del(key)
        return super().pop(key, *default)

    def popitem(self) -> tuple[Any, Any]:
        if self:
            self._touch().before_del(next(reversed(self)))
        return super().popitem()

    def setdefault(self, key: Any, default: Any = None) -> Any:
        if key not in self:
            self[key] = default
        return self[key]

    def update(self, *other: Any, **more: Any) -> None:
        for key, value in dict(*other, **more).items():
            self[key] = value

    def __ior__(self, other: Any) -> Self:  # type: ignore[misc]
        self.update(other)
        return self

    @classmethod
    def fromkeys(cls, keys: Iterable[Any], value: Any = None) -> dict[Any, Any]:
        """A dict that is no part of the state."""
        return dict.fromkeys(keys, value)

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return dict, (dict(self),)


class NotingList(list[Any]):
    """A list that notes its changes; made by :class:`StateBranch`."""

    __slots__ = ("_came", "_key", "_notes", "_parent")

    _notes: _Notes | None
    _parent: _Container | None
    _key: Any
    _came: Moment | list[tuple[int, Moment]]  # when its items came; if not all at once, from which place on

    def _touch(self, first: int | None = None) -> _ListNote:
        """Note that everything from this place on may change; None: only what is appended."""
        assert self._notes is not None
        if self._notes.guard is not None:
            self._notes.guard()
        note = self._notes.now.get(id(self))
        if note is None:
            note = self._notes.now[id(self)] = _ListNote(self)
        assert isinstance(note, _ListNote)
        if first is not None and first < note.size and note.whole is None:
            note.whole = self[: note.size]
        return note

    def _mark(self, first: int, moment: Moment) -> None:
        """The items from this place on came at this moment."""
        came = self._came if isinstance(self._came, list) else [(0, self._came)]
        while came and came[-1][0] >= first:
            came.pop()
        if len(came) > 1 and came[-1][1].number == came[-2][1].number:
            came.pop()  # not before it was known: so one branch alone does not pile up moments
        if not came or came[-1][1] is not moment:
            came.append((first, moment))
        self._came = came

    def append(self, item: Any) -> None:
        self._touch()
        super().append(item)

    def extend(self, items: Iterable[Any]) -> None:
        self._touch()
        super().extend([*items])

    def __iadd__(self, items: Iterable[Any]) -> Self:  # type: ignore[misc]
        self.extend(items)
        return self

    def __imul__(self, count: SupportsIndex) -> Self:
        self[:] = [*self] * count
        return self

    def insert(self, place: SupportsIndex, item: Any) -> None:
        start = slice(place, None).indices(len(self))[0]
        self._touch(start)
        super().insert(place, item)

    def pop(self, place: SupportsIndex = -1) -> Any:
        self._touch(self._first(place))
        return super().pop(place)

    def remove(self, item: Any) -> None:
        del self[self.index(item)]

    def clear(self) -> None:
        self._touch(0)
        super().clear()

    def sort(self, **options: Any) -> None:
        self._touch(0)
        super().sort(**options)

    def reverse(self) -> None:
        self._touch(0)
        super().reverse()

    def __setitem__(self, place: Any, value: Any) -> None:
        if (
            isinstance(value, NotingDict | NotingList)
            and not isinstance(place, slice)
            and self[place] is value
        ):
            return
        if isinstance(place, slice):
            value = [*value]
        self._touch(self._first(place))
        super().__setitem__(place, value)

    def __delitem__(self, place: Any) -> None:
        self._touch(self._first(place))
        super().__delitem__(place)

    def _first(self, place: Any) -> int:
        """The first place that may change."""
        if not isinstance(place, slice):
            index: int = place.__index__()
            return max(0, index + len(self) if index < 0 else index)
        start, stop, step = place.indices(len(self))
        return start if step > 0 else max(0, min(start, stop + 1))

    def __reduce_ex__(self, protocol: SupportsIndex) -> tuple[Any, ...]:
        return list, ([*self],)


_Container: TypeAlias = NotingDict | NotingList


def plain(value: Any) -> Any:
    """The value with dicts and lists of its own, none of which notes anything.

    Raises:
        GraphError: It contains itself, or is nested too deeply.
    """
    try:
        return _plain(value)
    except RecursionError:
        raise GraphError(
            "the state contains something that contains itself, or is nested too deeply"
        ) from None


def _plain(value: Any) -> Any:
    if type(value) in (dict, NotingDict):
        return {key: _plain(item) for key, item in value.items()}
    if type(value) in (list, NotingList):
        return [_plain(item) for item in value]
    return value


def moments_of(items: NotingList, first: int = 0) -> list[Moment]:
    """When the items from this place on came, each."""
    if isinstance(items._came, Moment):
        return [items._came] * (len(items) - first)
    moments: list[Moment] = []
    end = len(items)
    for start, moment in reversed(items._came):
        moments += [moment] * (end - max(start, first))
        if start <= first:
            break
        end = start
    moments.reverse()
    return moments


# Notes


@dataclass(slots=True)
class _Notes:
    """What was changed in all containers of one branch, by the id of each."""

    now: dict[int, _DictNote | _ListNote] = field(default_factory=dict)  # since the last take
    since_fork: dict[int, _DictNote | _ListNote] = field(default_factory=dict)
    guard: Callable[[], None] | None = None  # raises where who changes something may not


class _DictNote:
    """What a dict held before."""

    __slots__ = ("container", "fresh", "old", "whole")

    def __init__(self, container: NotingDict) -> None:
        self.container = container
        self.old: dict[Any, Any] = {}  # what stood at keys that were overwritten or removed
        self.fresh: dict[Any, None] = {}  # keys that were inserted, in their order
        self.whole: dict[Any, Any] | None = None  # all of it, once the order of what was there has changed

    def before_set(self, key: Any) -> None:
        if key not in self.container:
            self.fresh[key] = None
        elif key not in self.fresh:
            self.old.setdefault(key, self.container[key])

    def before_del(self, key: Any) -> None:
        if key in self.fresh:
            del self.fresh[key]
            return
        if self.whole is None:
            self.whole = {
                each: self.old.get(each, value)
                for each, value in self.container.items()
                if each not in self.fresh
            }
        self.old.setdefault(key, self.container[key])

    def undo(self) -> None:
        container = self.container
        if self.whole is not None:
            dict.clear(container)
            dict.update(container, self.whole)
            return
        for key in self.fresh:
            dict.__delitem__(container, key)
        dict.update(container, self.old)

    def join(self, later: _DictNote) -> None:
        """Take in what was noted after this."""
        for key, value in later.old.items():
            if key not in self.fresh:
                self.old.setdefault(key, value)
            elif key not in self.container or key in later.fresh:
                del self.fresh[key]
        self.fresh |= later.fresh

    def written(self) -> Iterator[Any]:
        """The keys that hold something that was not there before."""
        yield from (key for key in self.old if key in self.container and key not in self.fresh)
        yield from self.fresh

    def entry(self, key: Any) -> tuple[Any, ...] | None:
        """What became of a key; None for nothing."""
        value = self.container.get(key)
        if key in self.fresh:
            return ("anew" if key in self.old else "new", plain(value))
        if key not in self.old:
            return None
        if key not in self.container:
            return ("del",)
        return None if _is_kept(value, self.old[key]) else ("set", plain(value))


class _ListNote:
    """What a list held before."""

    __slots__ = ("container", "moments", "size", "whole")

    def __init__(self, container: NotingList) -> None:
        self.container = container
        self.size = len(container)
        self.whole: list[Any] | None = None  # all of it, once something else than its end has changed
        self.moments: list[Moment] | None = None  # when what was appended came, if on other branches

    def undo(self) -> None:
        if self.whole is not None:
            list.__setitem__(self.container, slice(None), self.whole)
        else:
            list.__delitem__(self.container, slice(self.size, None))

    def join(self, later: _ListNote) -> None:
        """Take in what was noted after this."""
        if self.whole is None and later.whole is not None and later.changed_before(self.size):
            self.whole = later.whole[: self.size]

    def changed_before(self, size: int) -> bool:
        """Whether something in front of this place is not what it was."""
        assert self.whole is not None
        now = self.container
        return len(now) < size or any(now[place] is not self.whole[place] for place in range(size))

    def begin(self) -> list[Any]:
        return self.container[: self.size] if self.whole is None else self.whole

    def splice(self) -> tuple[int, int, int]:
        """Where the change begins, how many items are gone, and how many have come."""
        if self.whole is None:
            return self.size, 0, len(self.container) - self.size
        before, after = self.whole, self.container
        shorter = min(len(before), len(after))
        start = next((place for place in range(shorter) if before[place] is not after[place]), shorter)
        end = 0
        while end < shorter - start and before[-1 - end] is after[-1 - end]:
            end += 1
        return start, len(before) - start - end, len(after) - start - end


def _is_longer(value: list[Any], old: NotingList) -> bool:
    if len(value) < len(old):
        return False
    return all(item is kept for item, kept in zip(value, old, strict=False))


def _is_in_place(value: Any, parent: NotingDict, key: Any) -> bool:
    """Whether it is a part of the state that was here before, and has come back."""
    return isinstance(value, NotingDict | NotingList) and value._parent is parent and value._key == key


def _is_kept(value: Any, old: Any) -> bool:
    return value is old and isinstance(value, NotingDict | NotingList)


class StateBranch:
    """The state as one branch of a graph sees it.

    Args:
        value: What it begins with, which is copied.
        digest: What stands for all changes recorded until now.
        guard: Raises where whoever is about to change something may not.

    Attributes:
        state: What nodes get.
        digest: Stands for all changes that were recorded on the way here.
    """

    def __init__(
        self, value: Mapping[Any, Any], *, digest: bytes = b"", guard: Callable[[], None] | None = None
    ) -> None:
        self._notes = _Notes(guard=guard)
        self._moment = _BEFORE
        self.digest = digest
        self.state: NotingDict = self._adopted(plain({**value}), None, None)
        self._moment = Moment()

    def __repr__(self) -> str:
        return f"<StateBranch {self.state!r:.80}>"

    def copy(self) -> StateBranch:
        """The same for a branch that begins here."""
        return StateBranch(self.state, digest=self.digest, guard=self._notes.guard)

    def take(self) -> Change:
        """What was changed since the last time; empty if nothing was. What was written is taken over.

        Raises:
            GraphError: Something contains itself.
        """
        if not self._notes.now:
            return {}
        if self._notes.guard is not None:
            self._notes.guard()  # what is there may be another's by now
        self._recognise_appending()
        change = self._change(self._notes.now, is_exact=True)
        for note in self._notes.now.values():
            self._take_over(note)
        for key, note in self._notes.now.items():
            known = self._notes.since_fork.setdefault(key, note)
            if known is not note:
                known.join(note)  # type: ignore[arg-type]
        self._notes.now = {}
        return change

    def undo(self) -> None:
        """Forget all changes since the last take."""
        for note in self._notes.now.values():
            note.undo()
        self._notes.now = {}

    def apply(self, change: Change) -> None:
        """Do what another has done, and take it."""
        _apply(self.state, change)
        self.take()

    def complete(self, number: float) -> None:
        """The node is completed that did what was done since the last one was: as which, in the order of all."""
        self.take()
        self._moment.number = number
        self._moment = Moment()

    def record(self, data: bytes) -> None:
        """A change was recorded, as these bytes."""
        self.digest = blake2b(self.digest + data, digest_size=16).digest()

    def begin(self) -> None:
        """What was changed until now is how it began."""
        self.take()
        self._notes.since_fork = {}

    @property
    def has_changes(self) -> bool:
        """Whether anything was changed since it began."""
        return bool(self._notes.now or self._notes.since_fork)

    def changes(self) -> Change:
        """What was changed since it began, in a form that can be merged."""
        self.take()
        return self._change(self._notes.since_fork, is_exact=False)

    def all_changes(self) -> Change:
        """What was changed since it began, in the form that :meth:`apply` takes."""
        self.take()
        return self._change(self._notes.since_fork, is_exact=True)

    def size_at_last_take(self, items: NotingList) -> int:
        """How many items of a list are where they were."""
        note = self._notes.now.get(id(items))
        if isinstance(note, _ListNote):
            return note.size if note.whole is None else 0
        return len(items)

    def at_begin(self, key: Any) -> Any:
        """What a key held when it began; None if it was not there."""
        note = self._notes.since_fork.get(id(self.state))
        if isinstance(note, _DictNote) and key in note.old:
            return self._before(note.old[key])
        if isinstance(note, _DictNote) and key in note.fresh:
            return None
        return self._before(self.state.get(key))

    def _before(self, value: Any) -> Any:
        """A value as it was when the branch began."""
        note = self._notes.since_fork.get(id(value)) if isinstance(value, NotingDict | NotingList) else None
        if isinstance(value, NotingList):
            items = note.begin() if isinstance(note, _ListNote) else value
            return [self._before(item) for item in items]
        if not isinstance(value, NotingDict):
            return plain(value)
        held = {**value}
        if isinstance(note, _DictNote):
            held = {key: item for key, item in value.items() if key not in note.fresh} | note.old
        return {key: self._before(item) for key, item in held.items()}

    # What other branches did

    def put(self, container: Any, key: Any, value: Any) -> None:
        """Write a value, which may be a part of another branch's state: then its lists know when their items came.

        Raises:
            GraphError: It contains itself.
        """
        container[key] = made = self._adopted(plain(value), container, key)
        self._date(made, value)

    def _date(self, made: Any, value: Any) -> None:
        if isinstance(made, NotingDict):
            for key, item in made.items():
                self._date(item, value[key])
        elif isinstance(made, NotingList):
            note = self._notes.now[id(made)] = _ListNote(made)
            note.size = 0  # all of it has come since the last take
            note.moments = moments_of(value) if isinstance(value, NotingList) else [self._moment] * len(made)

    def append(self, items: NotingList, values: Sequence[Any], moments: Sequence[Moment]) -> None:
        """Append what another branch has appended, each at its moment; :meth:`arrange` is to follow."""
        note = items._touch()
        note.moments = note.moments or []
        note.moments += moments
        list.extend(items, values)

    def arrange(self, items: NotingList) -> list[int]:
        """Order what other branches have appended by when it came; where each was before, empty if in that place.

        Of what came at the same moment, that was appended first stays the first.
        """
        note = self._notes.now[id(items)]
        assert isinstance(note, _ListNote)
        assert note.moments is not None
        numbers = [moment.number for moment in note.moments]
        if all(earlier <= later for earlier, later in pairwise(numbers)):
            return []
        order = sorted(range(len(numbers)), key=numbers.__getitem__)
        appended = items[note.size :]
        list.__setitem__(items, slice(note.size, None), [appended[place] for place in order])
        note.moments = [note.moments[place] for place in order]
        return order

    # Taking over

    def _adopted(self, value: Any, parent: _Container | None, key: Any) -> Any:
        """The value as a part of the state."""
        if type(value) is dict:
            made: _Container = (held := NotingDict())
            dict.update(held, {each: self._adopted(item, held, each) for each, item in value.items()})
        elif type(value) is list:
            made = items = NotingList()
            items._came = self._moment
            list.extend(items, [self._adopted(item, items, place) for place, item in enumerate(value)])
        else:
            return value
        made._notes, made._parent, made._key = self._notes, parent, key
        return made

    def _take_over(self, note: _DictNote | _ListNote) -> None:
        if isinstance(note, _DictNote):
            held = note.container
            for key in note.written():
                value = held[key]
                if not _is_in_place(value, held, key):
                    dict.__setitem__(held, key, self._adopted(plain(value), held, key))
            return
        start, _, count = note.splice()
        items = note.container
        for place in range(start, start + count):
            list.__setitem__(items, place, self._adopted(plain(items[place]), items, place))
        if note.moments is None:
            items._mark(start, self._moment)
            return
        for place, moment in enumerate(note.moments, note.size):
            items._mark(place, moment)
        note.moments = None

    def _recognise_appending(self) -> None:
        """``state["x"] = state["x"] + [item]`` appends, and is to be merged as that."""
        for note in [*self._notes.now.values()]:
            if not isinstance(note, _DictNote):
                continue
            for key, old in [*note.old.items()]:
                value: Any = note.container.get(key)
                if key in note.fresh or id(old) in self._notes.now or not isinstance(old, NotingList):
                    continue
                if (type(value) is list or self._is_put(value)) and _is_longer(value, old):
                    del note.old[key]
                    dict.__setitem__(note.container, key, old)
                    self._append_rest(old, value)

    def _is_put(self, value: Any) -> bool:
        """Whether it is a list that was put here since the last take."""
        note = self._notes.now.get(id(value))
        return isinstance(note, _ListNote) and note.size == 0 and note.moments is not None

    def _append_rest(self, items: NotingList, longer: list[Any]) -> None:
        size = len(items)
        items.extend(longer[size:])
        known = self._notes.now.pop(id(longer), None)
        if isinstance(known, _ListNote) and known.moments is not None:
            items._touch().moments = known.moments[size:]

    # What has changed

    def _change(self, notes: Mapping[int, _DictNote | _ListNote], *, is_exact: bool) -> Change:
        """As data, what these notes say; of all that is still part of the state."""
        below: dict[int, list[_Container]] = {}  # by container, those in it in which something has changed
        seen: set[int] = set()
        for note in notes.values():
            container: _Container | None = note.container
            while container is not None and id(container) not in seen:
                seen.add(id(container))
                if container._parent is not None:
                    below.setdefault(id(container._parent), []).append(container)
                container = container._parent
        return self._dict_change(self.state, _Changed(notes, below, is_exact))

    def _dict_change(self, container: NotingDict, changed: _Changed) -> Change:
        note = changed.notes.get(id(container))
        change: Change = {}
        if isinstance(note, _DictNote):
            for key in (*(key for key in note.old if key not in note.fresh), *note.fresh):
                entry = note.entry(key)
                if entry is not None:
                    change[key] = entry
        for part in changed.below.get(id(container), ()):
            if part._key not in change and container.get(part._key) is part:
                inside = self._inside(part, changed)
                if inside is not None:
                    change[part._key] = inside
        return change

    def _inside(self, part: _Container, changed: _Changed) -> tuple[Any, ...] | None:
        if isinstance(part, NotingDict):
            change = self._dict_change(part, changed)
            return ("in", change) if change else None
        return self._list_change(part, changed)

    def _list_change(self, container: NotingList, changed: _Changed) -> tuple[Any, ...] | None:
        note = changed.notes.get(id(container))
        start, gone, come = note.splice() if isinstance(note, _ListNote) else (len(container), 0, 0)
        is_longer = not gone and start + come == len(container)
        if not is_longer and not changed.is_exact:
            return ("set", plain(container))  # in a merge places mean nothing
        inside = {}
        for part in changed.below.get(id(container), ()):
            place = _place_of(container, part)
            if place is not None and not start <= place < start + come:
                entry = self._inside(part, changed)
                if entry is not None:
                    inside[place] = entry
        items = plain(container[start : start + come])
        if is_longer:
            return ("app", items, inside) if items or inside else None
        return ("cut", start, gone, items, inside)


@dataclass(frozen=True, slots=True)
class _Changed:
    notes: Mapping[int, _DictNote | _ListNote]
    below: Mapping[int, Sequence[_Container]]
    is_exact: bool


def _place_of(container: NotingList, part: _Container) -> int | None:
    """Where in a list a part of it is; it was there when it was taken over, and may have been moved."""
    known: int = part._key
    if known < len(container) and container[known] is part:
        return known
    place = next((place for place, item in enumerate(container) if item is part), None)
    if place is not None:
        part._key = place
    return place


# Applying


def _apply(container: Any, change: Change) -> None:
    for key, entry in change.items():
        _apply_entry(container, key, entry)


def _apply_entry(container: Any, key: Any, entry: tuple[Any, ...]) -> None:
    match entry:
        case ("set" | "new", value):
            container[key] = value
        case ("anew", value):
            container.pop(key, None)
            container[key] = value
        case ("del",):
            container.pop(key, None)
        case ("in", change):
            _apply(container[key], change)
        case ("app", items, inside):
            container[key].extend(items)
            _apply(container[key], inside)
        case ("cut", start, count, items, inside):
            container[key][start : start + count] = items
            _apply(container[key], inside)
        case _:
            raise GraphError(f"{entry!r:.80} is no change of the state")
