"""Which store a command uses."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from weft.checkpoint.base import Checkpointer
from weft.checkpoint.memory import InMemorySaver
from weft.checkpoint.sqlite import SqliteSaver
from weft.cli.endings import Refusal
from weft.engine.options import as_checkpointer
from weft.runnable import Runnable

VARIABLE = "WEFT_CHECKPOINTER"
DEFAULT = "sqlite:///weft.db"


def store_for(workflow: Runnable, url: str | None, *, must_exist: bool = False) -> Checkpointer:
    """The store of a run: the one asked for, else the workflow's own, else a file in this folder.

    Raises:
        Refusal: The store is to be there already, and is not.
        InputError: The URL is wrong.
    """
    own = workflow.checkpointer
    if url is None and own is not None and not isinstance(own, InMemorySaver):
        return _checked(own, must_exist=must_exist)
    return _opened(url, must_exist=must_exist)


@contextmanager
def existing_store(url: str | None) -> Iterator[Checkpointer]:
    """A store that is only looked into, and not created.

    Raises:
        Refusal: There is none.
        InputError: The URL is wrong.
    """
    store = _opened(url, must_exist=True)
    try:
        yield store
    finally:
        store.close()


def store_words(url: str | None) -> Sequence[str]:
    """How this store is named on another command line, if it has to be."""
    return () if url is None or url == os.environ.get(VARIABLE) else ("--checkpointer", url)


def outlives_us(store: Checkpointer) -> bool:
    """Whether another process can go on with what is recorded here."""
    return not isinstance(store, InMemorySaver)


def _opened(url: str | None, *, must_exist: bool) -> Checkpointer:
    store = as_checkpointer(url or DEFAULT)
    assert store is not None
    return _checked(store, must_exist=must_exist)


def _checked(store: Checkpointer, *, must_exist: bool) -> Checkpointer:
    if must_exist and isinstance(store, SqliteSaver) and not Path(store.path).exists():
        raise Refusal(f"there is no store {store.path!r}; name another with --checkpointer or ${VARIABLE}")
    return store
