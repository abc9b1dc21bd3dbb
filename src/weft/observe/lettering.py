"""Text in pictures: what can be shown of a name, how wide it is, and how it is shortened.

There are no fonts to ask where a picture is made, and who looks at it may have others. So widths are those of a
wide one (DejaVu Sans), by kinds of letters: text is never wider than reckoned with, sometimes narrower.
"""

from __future__ import annotations

import unicodedata

_NARROW = frozenset("ijlI.,:;'|!")
_SLIM = frozenset('frt()[]{}/\\"`-* ')
_BROAD = frozenset("mwMW@%&")
_JOINERS = "\u200c\u200d"  # invisible, but scripts and emoji are made with them
_WIDE = frozenset("WF")
_CLUSTERED = frozenset({"Mn", "Me", "Cf", "Sk"})  # a letter is not to be parted from these


def shown(text: str) -> str:
    """The text as one line of what can be seen: all else is escaped as in Python, and nothing is ``''``."""
    line = "".join(
        each if each.isprintable() or each in _JOINERS else _escaped(each) for each in " ".join(text.split())
    )
    return line or "''"


def shortened(text: str, width: float, *, size: float) -> str:
    """The text, or its two ends if it is wider than this; names often differ in the last letters only."""
    if text_width(text, size=size) <= width:
        return text
    room = (width - text_width("…", size=size)) / 2
    head, tail = _fitting(text, room, size), _fitting(text[::-1], room, size)[::-1]
    while tail and unicodedata.category(tail[0]) in _CLUSTERED:
        tail = tail[1:]
    return f"{head}…{tail}"


def text_width(text: str, *, size: float) -> float:
    """How wide a line of text is at most, in the unit of the font's size."""
    return size * sum(map(_letter_width, text))


def is_wide(text: str) -> bool:
    """Whether there are East Asian letters in it."""
    return any(unicodedata.east_asian_width(letter) in _WIDE for letter in text)


def _fitting(text: str, width: float, size: float) -> str:
    used = 0.0
    for place, letter in enumerate(text):
        used += size * _letter_width(letter)
        if used > width:
            return text[:place]
    return text


def _letter_width(letter: str) -> float:
    """In parts of the font's size."""
    if letter in _NARROW:
        return 0.35
    if letter in _SLIM:
        return 0.46
    if letter in _BROAD:
        return 1.0
    if letter.isascii():
        return 0.72 if letter.isupper() else 0.64
    if unicodedata.category(letter) in {"Mn", "Me", "Cf"}:
        return 0.0
    return 1.1 if unicodedata.east_asian_width(letter) in _WIDE else 0.8


def _escaped(letter: str) -> str:
    return letter.encode("unicode_escape").decode("ascii")
