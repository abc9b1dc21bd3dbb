"""Stores by URL: ``checkpointer="sqlite:///runs.db"``."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING
from urllib.parse import unquote, urlsplit

from weft.errors import InputError

if TYPE_CHECKING:
    from weft.checkpoint.base import Checkpointer

_POSSIBLE = (
    '"sqlite:///runs.db" (relative), "sqlite:////var/lib/runs.db" (absolute), '
    '"postgresql://user@host:5432/database" or "memory:"'
)


def from_url(url: str) -> Checkpointer:
    """The store that a URL names. Nothing is opened yet.

    Characters that mean something in a URL are written as in every URL: ``sqlite:///100%25.db`` is the
    file ``100%.db``. What may stand in the URL of a Postgres database is libpq's to say.

    Raises:
        InputError: The URL names no store; the message says what is possible.
        ImportError: It names a Postgres database, and psycopg is missing.
    """
    try:
        scheme, host, path, query, fragment = urlsplit(url)
    except ValueError as error:
        raise InputError(f"{_shown(url)} is no URL; possible are {_POSSIBLE}") from error
    if scheme in {"postgres", "postgresql"}:
        return _postgres(url)
    if scheme == "memory" and not (host or path or query or fragment):
        return _memory()
    if scheme == "sqlite" and not (host or query or fragment) and len(path) > 1 and path.startswith("/"):
        return _sqlite(unquote(path[1:]))
    raise InputError(f"{_shown(url)} names no store; possible are {_POSSIBLE}")


def _memory() -> Checkpointer:
    from weft.checkpoint.memory import InMemorySaver  # noqa: PLC0415 - only the store in use is imported

    return InMemorySaver()


def _sqlite(path: str) -> Checkpointer:
    from weft.checkpoint.sqlite import SqliteSaver  # noqa: PLC0415 - the same

    return SqliteSaver(path)


def _postgres(url: str) -> Checkpointer:
    from weft.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - the same; and it needs psycopg

    return PostgresSaver(url)


def _shown(url: str) -> str:
    """The URL for a message: a password and what the options say stay out of it."""
    return repr(re.sub(r"\?.*", "?…", re.sub(r"//.*@", "//…@", url)))
