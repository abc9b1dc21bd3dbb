"""The colours of timelines, on light and on dark; text has a contrast of at least 4.5 on what is behind it."""

from __future__ import annotations

from collections.abc import Mapping

LIGHT: Mapping[str, str] = {
    "page": "#ffffff",
    "ink": "#1b2533",
    "dim": "#556172",
    "line": "#e3e8ef",
    "soft": "#f0f3f8",
    "hover": "#f6f8fb",
    "run": "#3f74b8",
    "on-run": "#ffffff",
    "wait": "#e4e9f0",
    "wait-line": "#b3bfd0",
    "retry": "#b97a00",
    "ask": "#8557c9",
    "bad": "#c5374f",
    "bad-ink": "#a8243b",
    "bad-soft": "#fde8ec",
    "gone": "#707b8c",
    "good": "#1d7466",
    "good-soft": "#dff4ef",
    "tip": "#1b2533",
    "tip-ink": "#f4f6f9",
}
DARK: Mapping[str, str] = {
    "page": "#13171f",
    "ink": "#eef1f6",
    "dim": "#a3aebf",
    "line": "#262e3b",
    "soft": "#1d2430",
    "hover": "#1a202b",
    "run": "#6c9fdd",
    "on-run": "#0c1420",
    "wait": "#2a3342",
    "wait-line": "#4c5a70",
    "retry": "#e0a935",
    "ask": "#b08ee8",
    "bad": "#ef7d90",
    "bad-ink": "#ff9dae",
    "bad-soft": "#401d27",
    "gone": "#8a95a6",
    "good": "#5fcab4",
    "good-soft": "#12352f",
    "tip": "#eef1f6",
    "tip-ink": "#13171f",
}


def variables(palette: Mapping[str, str]) -> str:
    """As custom properties."""
    return "".join(f"--{name}:{colour};" for name, colour in palette.items())
