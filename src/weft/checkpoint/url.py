"""Stores by URL: ``checkpointer="sqlite:///runs.db?days=30"``."""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Final
from urllib.parse import parse_qsl, quote, unquote_to_bytes, urlsplit, urlunsplit

from weft.errors import InputError

if TYPE_CHECKING:
    from weft.checkpoint.base import Checkpointer

_POSSIBLE = (
    '"sqlite:///runs.db" (relative), "sqlite:////var/lib/runs.db" (absolute), '
    '"postgresql://user@host:5432/database" or "memory:", and after a "?" options such as "days=30"'
)


def _flag(text: str) -> bool:
    return {"true": True, "false": False}[text.lower()]


# What may stand behind the "?", and what it is; the names are those of the arguments.
_KEEP: Final[Mapping[str, Callable[[str], Any]]] = {
    "days": float,
    "failed_days": float,
    "last": int,
    "max_bytes": str,
}
_FILE: Final[Mapping[str, Callable[[str], Any]]] = {"timeout": float, "lease": float}
_SERVER: Final[Mapping[str, Callable[[str], Any]]] = {
    "schema": str,
    "timeout": float,
    "lease": float,
    "pooled": _flag,
    "direct": str,
}


def from_url(url: str) -> Checkpointer:
    """The store that a URL names. Nothing is opened yet.

    Characters that mean something in a URL are written as in every URL: ``sqlite:///100%25.db`` is the file
    ``100%.db``. Behind a ``?`` there may be arguments of the store (``timeout``, ``lease``; of Postgres also
    ``schema``, ``pooled`` and ``direct``) and the limits of a :class:`~weft.Keep`:
    ``sqlite:///runs.db?days=30&max_bytes=2GB``. What else may stand in the URL of a Postgres database is libpq's to
    say.

    Raises:
        InputError: The URL names no store, or an option is none; the message says what is possible.
        ImportError: It names a Postgres database, and psycopg is missing.
    """
    try:
        url.encode()
        if {*url} & {*"\t\r\n"}:  # which would be left out
            raise ValueError("a URL is one line")  # noqa: TRY301 - as the others
        scheme, host, path, query, fragment = urlsplit(url)
    except ValueError as error:  # half a character is one too
        raise InputError(f"{_shown(url)} is no URL; possible are {_POSSIBLE}") from error
    if scheme in {"postgres", "postgresql"}:
        options, rest = _options(url, query, _SERVER)
        return _postgres(_without(url, query, rest), options)
    if not fragment and not host:
        if scheme == "memory" and not path:
            return _memory(_all_options(url, query, {}))
        if scheme == "sqlite" and len(path) > 1 and path.startswith("/"):
            # Every byte counts: of two names that are no UTF-8, `unquote` would make one.
            return _sqlite(os.fsdecode(unquote_to_bytes(path[1:])), _all_options(url, query, _FILE))
    raise InputError(f"{_shown(url)} names no store; possible are {_POSSIBLE}")


def _all_options(url: str, query: str, known: Mapping[str, Callable[[str], Any]]) -> dict[str, Any]:
    options, rest = _options(url, query, known)
    if rest:
        possible = ", ".join([*known, *_KEEP])
        raise InputError(f"{_shown(url)}: there is no option {rest[0][0]!r}; there are {possible}")
    return options


def _options(
    url: str, query: str, known: Mapping[str, Callable[[str], Any]]
) -> tuple[dict[str, Any], list[tuple[str, str]]]:
    """The options of a store that stand in a URL, and what else does."""
    found: dict[str, Any] = {}
    keep: dict[str, Any] = {}
    rest = []
    for name, text in parse_qsl(query, keep_blank_values=True):
        read = known.get(name) or _KEEP.get(name)
        if read is None:
            rest.append((name, text))
            continue
        try:
            (found if name in known else keep)[name] = read(text)
        except (ValueError, KeyError):
            raise InputError(f"{_shown(url)}: {name} cannot be {text!r}") from None
    if keep:
        from weft.checkpoint.keep import Keep  # noqa: PLC0415 - only what is used is imported

        found["keep"] = Keep(**keep)
    return found, rest


def _without(url: str, query: str, rest: list[tuple[str, str]]) -> str:
    """The URL with this query; as it was where that is the same."""
    if not query or len(rest) == len(parse_qsl(query, keep_blank_values=True)):
        return url
    kept = "&".join(f"{quote(name, safe='')}={quote(text, safe='')}" for name, text in rest)
    return urlunsplit(urlsplit(url)._replace(query=kept))


def _memory(options: dict[str, Any]) -> Checkpointer:
    from weft.checkpoint.memory import InMemorySaver  # noqa: PLC0415 - only the store in use is imported

    return InMemorySaver(**options)


def _sqlite(path: str, options: dict[str, Any]) -> Checkpointer:
    from weft.checkpoint.sqlite import SqliteSaver  # noqa: PLC0415 - the same

    return SqliteSaver(path, **options)


def _postgres(url: str, options: dict[str, Any]) -> Checkpointer:
    from weft.checkpoint.postgres import PostgresSaver  # noqa: PLC0415 - the same; and it needs psycopg

    return PostgresSaver(url, **options)


def _shown(url: str) -> str:
    """The URL for a message: a password and what the options say stay out of it."""
    return repr(re.sub(r"\?.*", "?…", re.sub(r"//.*@", "//…@", url)))
