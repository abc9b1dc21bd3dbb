"""The options of a run: keywords of every verb, or LangGraph's ``config=``."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from weft.core.checks import check_count, check_seconds
from weft.engine.limits import Limit, limits_of
from weft.errors import InputError

if TYPE_CHECKING:
    from weft.checkpoint.base import Checkpointer
    from weft.engine.events import Observer

_DURABILITIES = ("sync", "async", "exit")
_MISMATCH = ("rerun", "error")


@dataclass(frozen=True)
class RunOptions:
    """How one run is to be done; what is None was not asked for."""

    checkpointer: Checkpointer | None = None
    run_id: str | None = None
    thread_id: str | None = None
    durability: str = "sync"
    max_concurrent: int | None = None
    limits: tuple[Limit, ...] = ()
    timeout: float | None = None
    grace: float = 1.0
    on_mismatch: str = "rerun"
    retry: Any = (
        None  # on a resume, of failures that the workflow went on from: "failed" for all, or who chooses
    )
    progress: bool = False
    observers: tuple[Observer, ...] = ()
    context: Any = None
    config: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def of(
        cls, config: Mapping[str, Any] | None, keywords: Mapping[str, Any], *, default: Any = None
    ) -> RunOptions:
        """The options from both spellings; a keyword wins.

        Args:
            config: ``{"configurable": {"thread_id": ..., "run_id": ...}, "max_concurrency": ...}``.
            keywords: As the fields of this class; those that are None do not count.
            default: The checkpointer given at definition.

        Raises:
            InputError: An option that does not exist, or a value that it cannot have.
            DefinitionError: A number that can never work.
        """
        named = {name: value for name, value in keywords.items() if value is not None}
        if not config and not named and default is None:
            return _DEFAULT
        given = {**_from_config(config), **named}
        if not given.keys() <= _NAMES:
            unknown = sorted(given.keys() - _NAMES)
            known = ", ".join(sorted(_NAMES - {"config"}))
            raise InputError(f"unknown option {unknown[0]!r}; a run takes: {known}")
        if (limit := given.pop("limit", None)) is not None:
            given["limits"] = limits_of(limit)
        if "retry" in given:
            given["retry"] = _retry_choice(given["retry"])
        if "observers" in given:
            given["observers"] = _observers(given["observers"])
        given["checkpointer"] = as_checkpointer(given.get("checkpointer", default))
        return cls(**given)._checked()

    def _checked(self) -> RunOptions:
        if self.durability not in _DURABILITIES:
            raise InputError(f"durability must be one of {', '.join(_DURABILITIES)}, not {self.durability!r}")
        if self.on_mismatch not in _MISMATCH:
            raise InputError(f"on_mismatch must be one of {', '.join(_MISMATCH)}, not {self.on_mismatch!r}")
        if self.max_concurrent is not None:
            check_count("max_concurrent", self.max_concurrent)
        if self.timeout is not None:
            check_seconds("timeout", self.timeout)
        for name in ("run_id", "thread_id"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise InputError(f"{name} must be a string that is not empty, not {value!r}")
        if self.checkpointer is not None and self.run_id is None and self.thread_id is None:
            raise InputError(
                "a run with a checkpointer needs to be found again: pass thread_id=... (or "
                'config={"configurable": {"thread_id": ...}}), or run_id=...'
            )
        if self.checkpointer is None and self.run_id is not None:
            raise InputError(
                f"run_id={self.run_id!r} needs a checkpointer: without one there is nothing to resume"
            )
        return self


def _retry_choice(value: Any) -> Any:
    if value == "failed":
        return _always
    if callable(value):
        return value
    raise InputError(f'retry must be "failed" or a function of a weft.FailedCall, not {value!r:.80}')


def _observers(value: Any) -> tuple[Observer, ...]:
    if callable(value) or isinstance(value, str) or not isinstance(value, Iterable):
        raise InputError(
            f"observers must be a list of functions that take an event, as in observers=[show], not {value!r:.80}"
        )
    found = tuple(value)
    for each in found:
        if not callable(each):
            raise InputError(f"an observer is a function that takes an event, not {each!r:.80}")
    return found


def _always(_failure: Any) -> bool:
    return True


_DEFAULT = RunOptions()

#: What they are called where they are given.
_NAMES = frozenset(RunOptions.__dataclass_fields__) - {"limits"} | {"limit"}


def as_checkpointer(value: Any) -> Checkpointer | None:
    """A checkpointer from what users write: an object, a URL such as ``sqlite:///runs.db``, or None.

    Raises:
        InputError: It is none of these.
    """
    if value is None or value is False:
        return None
    if isinstance(value, str) or hasattr(value, "__fspath__"):
        from weft.checkpoint.url import from_url  # noqa: PLC0415 - sqlite3 is not imported for runs without it

        return from_url(os.fspath(value))
    if _is_checkpointer(value):
        found: Checkpointer = value
        return found
    raise InputError(
        f"checkpointer must be an InMemorySaver, a SqliteSaver, a URL such as 'sqlite:///runs.db' or an object "
        f"with the methods of weft.Checkpointer, not {value!r}"
    )


def _is_checkpointer(value: Any) -> bool:
    """Whether it looks like one; the protocol itself would be asked for each of its methods, at every run."""
    return (
        hasattr(value, "open_many")
        and hasattr(value, "commit")
        and hasattr(value, "records")
        and hasattr(value, "codec")
    )


def _from_config(config: Mapping[str, Any] | None) -> dict[str, Any]:
    if not config:
        return {}
    if not isinstance(config, Mapping):
        raise InputError(f"config must be a mapping, not {config!r}")
    configurable = config.get("configurable") or {}
    found: dict[str, Any] = {"config": config}
    for name in ("thread_id", "run_id"):
        if (value := configurable.get(name)) is not None:
            found[name] = str(value)
    if (width := config.get("max_concurrency")) is not None:
        found["max_concurrent"] = width
    return found
