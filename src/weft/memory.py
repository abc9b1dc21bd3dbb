"""Long-term memory: what workflows remember from one thread to the next.

A store keeps small documents (a dict each) under a *namespace* and a *key*. A namespace is a path of labels,
``("users", "ada", "notes")``; a search looks below a prefix of it. Unlike a journal, which belongs to one
run, a store is shared by all the runs that are given it::

    store = InMemoryStore()
    store.put(("users", "ada"), "tea", {"likes": "earl grey", "cups": 3})
    store.search(("users",), filter={"cups": {"$gte": 2}})

A store of your own is a subclass of :class:`BaseStore` with one method, :meth:`BaseStore.batch`; one that
waits for a network overrides :meth:`BaseStore.abatch` too, and every async verb goes through it.
"""

from __future__ import annotations

import copy
import operator
import re
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any, Generic, Literal, TypeAlias, TypeVar

from weft.errors import InputError

Namespace: TypeAlias = tuple[str, ...]
Value: TypeAlias = dict[str, Any]
Index: TypeAlias = Literal[False] | list[str] | None

R = TypeVar("R")


# --- What a store gives ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Item:
    """A remembered document. Its value is a copy: to change what is remembered, ``put`` it again."""

    namespace: Namespace
    key: str
    value: Value = field(hash=False)
    created_at: datetime  # UTC; the first put of this key
    updated_at: datetime  # UTC; the last one

    def dict(self) -> Value:
        """The item in types that JSON knows: the namespace as a list, the times in ISO 8601."""
        return {
            "namespace": list(self.namespace),
            "key": self.key,
            "value": self.value,
            "created_at": self.created_at.isoformat(),
            "updated_at": self.updated_at.isoformat(),
        }


@dataclass(frozen=True)
class SearchItem(Item):
    """An item that a search found. ``score`` says how well it fits the query; None if there was none."""

    score: float | None = None

    def dict(self) -> Value:
        """As :meth:`Item.dict`, with the score."""
        return {**super().dict(), "score": self.score}


# --- What a store is asked: checked when made, so that a store never sees a bad one -----------------------


class Op(Generic[R]):
    """One request to a store; ``R`` is what it gives."""


@dataclass(frozen=True)
class GetOp(Op[Item | None]):
    """Look one item up. ``refresh_ttl`` False lets its time go on; otherwise it begins again."""

    namespace: Namespace
    key: str
    refresh_ttl: bool | None = None

    def __post_init__(self) -> None:
        _check_address(self.namespace, self.key)


@dataclass(frozen=True)
class SearchOp(Op[list[SearchItem]]):
    """Look for items below a namespace; the options are those of :meth:`BaseStore.search`."""

    namespace_prefix: Namespace
    filter: Mapping[str, Any] | None = None
    limit: int = 10
    offset: int = 0
    query: str | None = None
    refresh_ttl: bool | None = None

    def __post_init__(self) -> None:
        _check_labels(self.namespace_prefix)
        _check_page(self.limit, self.offset)


@dataclass(frozen=True)
class PutOp(Op[None]):
    """Remember ``value`` for ``ttl`` minutes, or for ever; a value of None forgets what is there."""

    namespace: Namespace
    key: str
    value: Mapping[str, Any] | None
    index: Index = None
    ttl: float | None = None

    def __post_init__(self) -> None:
        _check_address(self.namespace, self.key)
        if self.value is not None:
            _check_value(self.key, self.value)
        if self.ttl is not None:
            _check_ttl(self.ttl)


@dataclass(frozen=True)
class MatchCondition:
    """How a namespace has to begin or end; the label ``"*"`` stands for any one label."""

    match_type: Literal["prefix", "suffix"]
    path: Namespace

    def __post_init__(self) -> None:
        if self.match_type not in {"prefix", "suffix"}:
            raise InputError(f"a namespace is matched by 'prefix' or 'suffix', not by {self.match_type!r}")
        _check_labels(self.path)

    def matches(self, namespace: Namespace) -> bool:
        """Whether the namespace begins (or ends) so."""
        length = len(self.path)
        if length > len(namespace):
            return False
        start = 0 if self.match_type == "prefix" else len(namespace) - length
        labels = namespace[start : start + length]
        return all(want in ("*", label) for want, label in zip(self.path, labels, strict=True))


@dataclass(frozen=True)
class ListNamespacesOp(Op[list[Namespace]]):
    """List the namespaces that fit all conditions, sorted, cut to ``max_depth`` labels, each once."""

    match_conditions: tuple[MatchCondition, ...] | None = None
    max_depth: int | None = None
    limit: int = 100
    offset: int = 0

    def __post_init__(self) -> None:
        _check_page(self.limit, self.offset)
        if self.max_depth is not None and self.max_depth < 1:
            raise InputError(f"max_depth must be at least 1, not {self.max_depth!r}")


# --- Stores -----------------------------------------------------------------------------------------------


class BaseStore(ABC):
    """A place for long-term memory: every verb is made of :meth:`batch`, which a store writes.

    Every method raises :class:`weft.InputError` (a ``ValueError``) for a namespace that is no tuple of
    non-empty strings without a ".", a key that is no string, or an option out of its range.
    """

    @abstractmethod
    def batch(self, ops: Iterable[Op[Any]]) -> list[Any]:
        """Do the operations one after another and give their results in that order."""

    async def abatch(self, ops: Iterable[Op[Any]]) -> list[Any]:
        """As :meth:`batch`, which it calls in place; a store that waits for a network overrides it."""
        return self.batch(ops)

    def put(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Index = None,
        *,
        ttl: float | None = None,
    ) -> None:
        """Remember a copy of ``value`` under ``namespace`` and ``key``, instead of what is there.

        Args:
            namespace: Where: a path of labels, at least one.
            key: The name of the item there.
            value: A dict.
            index: Which fields to embed, for stores that search by meaning; others ignore it.
            ttl: After how many *minutes* without a put or a read it is forgotten; None: never.

        Raises:
            InputError: ``value`` is no dict, or holds something that this store cannot keep.
        """
        self._do(_put(namespace, key, value, index, ttl))

    def get(self, namespace: Namespace, key: str, *, refresh_ttl: bool | None = None) -> Item | None:
        """The item, or None. Reading begins its ``ttl`` again unless ``refresh_ttl=False``."""
        return self._do(GetOp(namespace, key, refresh_ttl))

    def search(
        self,
        namespace_prefix: Namespace,
        /,
        *,
        query: str | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
    ) -> list[SearchItem]:
        """The items at or below a namespace: ``("a",)`` covers ``("a", "b")`` and never ``("ab",)``.

        Args:
            namespace_prefix: Where to look; ``()`` looks everywhere.
            query: What to look for, in words. It orders the items, the best first, and gives each its
                ``score``; it leaves none out.
            filter: What fields must hold, all of them: a value they equal, ``{"$gt": 3}`` with ``$eq``,
                ``$ne``, ``$gt``, ``$gte``, ``$lt`` or ``$lte`` (several must all hold), or a dict of
                conditions on the fields inside. A missing field counts as None; what cannot be compared
                with the bound does not match it.
            limit: How many items at most.
            offset: How many to skip before.
            refresh_ttl: False leaves the ``ttl`` of the items found alone; otherwise it begins again.

        Raises:
            InputError: Also for an operator that is none of these.
        """
        return self._do(SearchOp(namespace_prefix, filter, limit, offset, query, refresh_ttl))

    def delete(self, namespace: Namespace, key: str) -> None:
        """Forget the item, if there is one."""
        self._do(PutOp(namespace, key, None))

    def list_namespaces(
        self,
        *,
        prefix: Namespace | None = None,
        suffix: Namespace | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        """The namespaces that hold items, sorted.

        Args:
            prefix: How they begin; the label ``"*"`` stands for any one label.
            suffix: How they end, likewise.
            max_depth: Cut them to this many labels, and list what is then equal once.
            limit: How many namespaces at most.
            offset: How many to skip before.
        """
        return self._do(_listing(prefix, suffix, max_depth, limit, offset))

    async def aput(
        self,
        namespace: Namespace,
        key: str,
        value: Mapping[str, Any],
        index: Index = None,
        *,
        ttl: float | None = None,
    ) -> None:
        """As :meth:`put`."""
        await self._ado(_put(namespace, key, value, index, ttl))

    async def aget(self, namespace: Namespace, key: str, *, refresh_ttl: bool | None = None) -> Item | None:
        """As :meth:`get`."""
        return await self._ado(GetOp(namespace, key, refresh_ttl))

    async def asearch(
        self,
        namespace_prefix: Namespace,
        /,
        *,
        query: str | None = None,
        filter: Mapping[str, Any] | None = None,
        limit: int = 10,
        offset: int = 0,
        refresh_ttl: bool | None = None,
    ) -> list[SearchItem]:
        """As :meth:`search`."""
        return await self._ado(SearchOp(namespace_prefix, filter, limit, offset, query, refresh_ttl))

    async def adelete(self, namespace: Namespace, key: str) -> None:
        """As :meth:`delete`."""
        await self._ado(PutOp(namespace, key, None))

    async def alist_namespaces(
        self,
        *,
        prefix: Namespace | None = None,
        suffix: Namespace | None = None,
        max_depth: int | None = None,
        limit: int = 100,
        offset: int = 0,
    ) -> list[Namespace]:
        """As :meth:`list_namespaces`."""
        return await self._ado(_listing(prefix, suffix, max_depth, limit, offset))

    def _do(self, op: Op[R]) -> R:
        result: R = self.batch([op])[0]
        return result

    async def _ado(self, op: Op[R]) -> R:
        result: R = (await self.abatch([op]))[0]
        return result


class InMemoryStore(BaseStore):
    """A store that lasts as long as the process. Any thread may use it.

    Values are copied in and out, so nobody's later change of a dict is seen by anybody else. A batch is seen
    by other threads as a whole, and its reads see its earlier writes. A search gives items in the order in
    which their namespaces, and in these their keys, were first put; with a ``query``, the share of the
    query's words that a value contains is its score. ``now`` gives the time (aware, UTC), for tests.
    """

    def __init__(self, *, now: Callable[[], datetime] = lambda: datetime.now(UTC)) -> None:
        self._now = now
        self._lock = threading.RLock()  # re-entrant: copying a value may run code of the user's
        self._spaces: dict[Namespace, dict[str, _Entry]] = {}  # no namespace in it is empty
        self._puts_until_sweep = _FEWEST_PUTS_BETWEEN_SWEEPS

    def batch(self, ops: Iterable[Op[Any]]) -> list[Any]:
        """Do the operations in order; one that fails ends the batch, those before it stay done."""
        todo = list(ops)
        with self._lock:
            return [self._apply(op) for op in todo]

    def _apply(self, op: Op[Any]) -> Any:
        match op:
            case GetOp():
                return self._get(op)
            case SearchOp():
                return self._search(op)
            case PutOp(value=None):
                return self._forget(op.namespace, op.key)
            case PutOp():
                return self._put(op)
            case ListNamespacesOp():
                return self._list_namespaces(op)
            case _:
                raise InputError(f"not an operation that this store knows: {op!r}")

    def _get(self, op: GetOp) -> Item | None:
        entry = self._find(op.namespace, op.key)
        if entry is None:
            return None
        self._touch(entry, op.refresh_ttl)
        return Item(entry.namespace, entry.key, copy.deepcopy(entry.value), entry.created, entry.updated)

    def _search(self, op: SearchOp) -> list[SearchItem]:
        fits = _fields_fit(op.filter or {})
        found = [entry for entry in self._below(op.namespace_prefix) if fits(entry.value)]
        page = _ranked(found, op.query)[op.offset : op.offset + op.limit]
        for entry, _ in page:
            self._touch(entry, op.refresh_ttl)
        return [
            SearchItem(e.namespace, e.key, copy.deepcopy(e.value), e.created, e.updated, score)
            for e, score in page
        ]

    def _put(self, op: PutOp) -> None:
        value = _kept(op)
        self._sweep_now_and_then()
        old, now = self._find(op.namespace, op.key), self._now()
        entry = _Entry(
            op.namespace,
            op.key,
            value,
            created=old.created if old else now,
            updated=now,
            ttl=op.ttl,
            touched=now,
        )
        self._spaces.setdefault(op.namespace, {})[op.key] = entry

    def _forget(self, namespace: Namespace, key: str) -> None:
        space = self._spaces.get(namespace, {})
        space.pop(key, None)
        if not space:
            self._spaces.pop(namespace, None)

    def _list_namespaces(self, op: ListNamespacesOp) -> list[Namespace]:
        conditions = op.match_conditions or ()
        living = {entry.namespace for entry in self._below(())}
        fitting = {n[: op.max_depth] for n in living if all(c.matches(n) for c in conditions)}
        return sorted(fitting)[op.offset : op.offset + op.limit]

    def _find(self, namespace: Namespace, key: str) -> _Entry | None:
        entry = self._spaces.get(namespace, {}).get(key)
        return entry if entry and not entry.expired(self._now()) else None

    def _below(self, prefix: Namespace) -> Iterator[_Entry]:
        now = self._now()
        for namespace, space in self._spaces.items():
            if namespace[: len(prefix)] == prefix:
                yield from (entry for entry in space.values() if not entry.expired(now))

    def _touch(self, entry: _Entry, refresh_ttl: bool | None) -> None:
        if refresh_ttl is not False:
            entry.touched = self._now()

    def _sweep_now_and_then(self) -> None:
        """Let go of what has expired, once in as many puts as there are items: cheap however many."""
        self._puts_until_sweep -= 1
        if self._puts_until_sweep > 0:
            return
        now = self._now()
        entries = [entry for space in self._spaces.values() for entry in space.values()]
        for entry in entries:
            if entry.expired(now):
                self._forget(entry.namespace, entry.key)
        self._puts_until_sweep = max(len(entries), _FEWEST_PUTS_BETWEEN_SWEEPS)


_FEWEST_PUTS_BETWEEN_SWEEPS = 64


@dataclass(slots=True)
class _Entry:
    namespace: Namespace
    key: str
    value: Value  # never changed and never given away
    created: datetime
    updated: datetime
    ttl: float | None  # minutes
    touched: datetime  # when the ttl began: at the put, or again at a read

    def expired(self, now: datetime) -> bool:
        return self.ttl is not None and (now - self.touched).total_seconds() >= self.ttl * 60


def _kept(op: PutOp) -> Value:
    assert op.value is not None
    try:
        return copy.deepcopy(dict(op.value))
    except Exception as error:  # whatever a value's own copying may raise
        raise InputError(f"the value of {op.key!r} cannot be copied, so not kept: {error}") from error


# --- Making and checking operations -----------------------------------------------------------------------


def _put(namespace: Namespace, key: str, value: Mapping[str, Any], index: Index, ttl: float | None) -> PutOp:
    _check_value(key, value)  # for `put(..., None)` must not be the deletion that PutOp takes it for
    return PutOp(namespace, key, value, index, ttl)


def _listing(
    prefix: Namespace | None,
    suffix: Namespace | None,
    max_depth: int | None,
    limit: int,
    offset: int,
) -> ListNamespacesOp:
    begins = () if prefix is None else (MatchCondition("prefix", prefix),)
    ends = () if suffix is None else (MatchCondition("suffix", suffix),)
    return ListNamespacesOp(begins + ends, max_depth, limit, offset)


def _check_address(namespace: object, key: object) -> None:
    _check_labels(namespace)
    if namespace == ():
        raise InputError("a namespace needs at least one label, like ('users', 'ada'); got ()")
    if not isinstance(key, str):
        raise InputError(f"a key must be a string, not {key!r}")


def _check_labels(namespace: object) -> None:
    if not isinstance(namespace, tuple):
        raise InputError(f"a namespace is a tuple of strings, like ('users', 'ada'), not {namespace!r}")
    for label in namespace:
        if not isinstance(label, str):
            raise InputError(f"the labels of a namespace are strings; {label!r} in {namespace!r} is not")
        if not label:
            raise InputError(f"a label of a namespace cannot be empty, as one in {namespace!r} is")
        if "." in label:
            raise InputError(f"a label of a namespace cannot contain '.', as {label!r} in {namespace!r} does")


def _check_value(key: str, value: object) -> None:
    if not isinstance(value, Mapping):
        raise InputError(f"the value of {key!r} must be a dict, not {type(value).__name__}: {value!r}")


def _check_ttl(ttl: float) -> None:
    if not ttl > 0:  # NaN is refused too
        raise InputError(f"ttl is a positive number of minutes, or None for ever; got {ttl!r}")


def _check_page(limit: int, offset: int) -> None:
    if limit < 0 or offset < 0:
        raise InputError(f"limit and offset cannot be negative; got limit={limit!r}, offset={offset!r}")


# --- Filters: a condition becomes a predicate, so that a wrong one is refused before anything is read ------


_Predicate: TypeAlias = Callable[[Any], bool]


def _fields_fit(conditions: Mapping[str, Any]) -> _Predicate:
    """Whether a dict meets the condition on each of its fields."""
    fits = {name: _fits(condition) for name, condition in conditions.items()}
    return lambda value: isinstance(value, Mapping) and all(fits[n](value.get(n)) for n in fits)


def _fits(condition: Any) -> _Predicate:
    if not isinstance(condition, Mapping):
        return lambda value: bool(value == condition)
    if any(str(name).startswith("$") for name in condition):
        bounds = [_bound(name, bound) for name, bound in condition.items()]
        return lambda value: all(within(value) for within in bounds)
    return _fields_fit(condition)


def _bound(name: str, bound: Any) -> _Predicate:
    if name in _EQUALITY:
        return lambda value: bool(_EQUALITY[name](value, bound))
    if name in _ORDER:
        return lambda value: _in_order(_ORDER[name], value, bound)
    known = ", ".join([*_EQUALITY, *_ORDER])
    raise InputError(f"a filter knows no operator {name!r}; it knows {known}")


_EQUALITY = {"$eq": operator.eq, "$ne": operator.ne}
_ORDER = {"$gt": operator.gt, "$gte": operator.ge, "$lt": operator.lt, "$lte": operator.le}


def _in_order(compare: Callable[[Any, Any], Any], value: Any, bound: Any) -> bool:
    """Compare as numbers if both are, also those written as strings ("10" > "9"); else as they are."""
    try:
        return bool(compare(_number(value), _number(bound)))
    except (TypeError, ValueError):
        pass
    try:
        return bool(compare(value, bound))
    except TypeError:
        return False


def _number(value: Any) -> Any:
    return float(value) if isinstance(value, str) else value


# --- Queries ----------------------------------------------------------------------------------------------


def _ranked(entries: list[_Entry], query: str | None) -> list[tuple[_Entry, float | None]]:
    """The entries with their scores, the best first; as they came where these are equal."""
    wanted = _words(query)
    if not wanted:
        return [(entry, None) for entry in entries]
    scored = [(entry, len(wanted & _words(entry.value)) / len(wanted)) for entry in entries]
    return [*sorted(scored, key=lambda pair: -pair[1])]


def _words(value: Any) -> set[str]:
    """The words, in lower case, of all the strings and numbers in a value; field names are not its words."""
    match value:
        case None:
            return set()
        case Mapping():
            return _words(list(value.values()))
        case list() | tuple() | set() | frozenset():
            return set().union(*map(_words, value))
        case _:
            return set(re.findall(r"\w+", str(value).casefold()))
