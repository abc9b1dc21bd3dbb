"""Progress in a notebook: a table that is shown once and then updated in place."""

from __future__ import annotations

import contextvars
import html
import importlib
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import Future
from contextlib import suppress
from typing import Any

from weft.observe.progress_lines import plain_text
from weft.observe.progress_look import Line, Look, fitting
from weft.observe.progress_tally import Tally
from weft.observe.progress_words import duration, per_second, time_left

_EVERY = 0.25  # seconds between two updates
_CLOCK = 1.0  # seconds, where nothing changes but the time
_MOST = 40  # lines

# Colours are those of the notebook's theme, where it names them; the others can be read on white and on black.
_STYLE = """<style>
.weft-progress{border-collapse:collapse;font-size:13px;line-height:1.5;color:inherit;background:none}
.weft-progress td{padding:1px 10px 1px 0!important;border:0;text-align:left!important;vertical-align:top;
 background:none!important;color:inherit}
.weft-progress tr{background:none!important}
.weft-progress td.n{text-align:right!important;white-space:nowrap;font-variant-numeric:tabular-nums}
.weft-progress .bar{width:140px;height:6px;margin-top:7px;border-radius:3px;background:rgba(128,128,128,.28)}
.weft-progress .bar div{height:6px;border-radius:3px;background:#3b82d6}
.weft-progress .bar div.done{background:#3f9c54}
.weft-progress .dim{opacity:.68}
.weft-progress .bad{color:var(--jp-error-color1,var(--vscode-errorForeground,#dc4a4a))}
.weft-progress .slow{color:var(--jp-warn-color0,var(--vscode-editorWarning-foreground,#b7791f))}
</style>"""

_CLASSES = {"failed": "bad", "waiting": "slow", "retrying": "slow", "queued": "slow"}


def is_notebook() -> bool:
    """Whether this process is the kernel of a notebook."""
    ipython = sys.modules.get("IPython")
    shell = ipython.get_ipython() if ipython is not None else None
    return getattr(shell, "kernel", None) is not None


class NotebookView:
    """A table under the cell that began the run."""

    def __init__(self, tally: Tally) -> None:
        self._tally = tally
        self._is_told = threading.Event()
        self._has_ended = False
        self.over: Future[None] = Future()
        self._handle: Any = None

    def start(self) -> None:
        """Show it, where this is called; a thread of its own updates it."""
        display = importlib.import_module("IPython.display").display
        self._handle = display(self._drawn(), raw=True, display_id=True)
        # In a context of this one: some kernels find in it the cell that the output belongs to.
        run = contextvars.copy_context().run
        threading.Thread(target=run, args=(self._run,), name="weft-progress", daemon=True).start()

    def tell(self, line: str) -> None:
        """What begins is seen anyway."""

    def stop(self) -> Future[None]:
        """End, and give what is done when the last counts are shown; never waits."""
        self._has_ended = True
        self._is_told.set()
        return self.over

    def _run(self) -> None:
        try:
            self._update()
        finally:
            self.over.set_result(None)

    def _update(self) -> None:
        seen, idle = -1, 0.0
        while not self._has_ended:
            if seen != self._tally.changes or idle >= _CLOCK:
                seen, idle = self._tally.changes, 0.0
                self._show()
            idle += _EVERY
            self._is_told.wait(_EVERY)
        self._show()

    def _show(self) -> None:
        with suppress(Exception):  # the notebook is gone, and the run goes on without
            self._handle.update(self._drawn(), raw=True)

    def _drawn(self) -> dict[str, str]:
        looks = self._tally.look()
        summaries = [text for text, _ in self._tally.summaries()] if self._has_ended else []
        return {"text/html": as_html(looks, summaries), "text/plain": plain_text(looks, summaries)}


def as_html(looks: list[Look], summaries: list[str]) -> str:
    """The table, and below it, in the end, what has become of the runs."""
    shown, left_out = fitting(looks, _MOST)
    rows = "".join(row for look in shown for row in _rows(look)) + _more(left_out)
    ends = "".join(f'<tr><td colspan="6">{html.escape(text)}</td></tr>' for text in summaries)
    return f'{_STYLE}<table class="weft-progress">{rows}{ends}</table>'


def _rows(look: Look) -> Iterator[str]:
    said = [f"<b>{html.escape(look.name)}</b>", duration(look.elapsed), look.runs, _details(look.own, "")]
    yield f'<tr><td colspan="6">{" &nbsp; ".join(filter(None, said))}</td></tr>'
    for line in look.lines:
        yield _row(line)
    yield _more(look.left_out)


def _more(left_out: int) -> str:
    return f'<tr><td colspan="6" class="dim">and {left_out} more</td></tr>' if left_out else ""


def _row(line: Line) -> str:
    kind = ' class="done"' if line.share == 1 else ""
    bar = "" if line.is_open else f'<div class="bar"><div{kind} style="width:{line.share:.1%}"></div></div>'
    rate = "" if line.rate is None else per_second(line.rate)
    left = "" if line.left is None else time_left(line.left)
    return (
        f'<tr><td style="padding-left:{14 + 16 * line.depth}px!important">{html.escape(line.name)}</td><td>{bar}</td>'
        f'<td class="n">{line.count}</td><td class="n dim">{rate}</td><td class="n dim">{left}</td>'
        f"<td>{_details(line.parts, line.error)}</td></tr>"
    )


def _details(parts: tuple[tuple[str, str], ...], error: str) -> str:
    said = [f'<span class="{_CLASSES.get(kind, "dim")}">{html.escape(text)}</span>' for kind, text in parts]
    text = ", ".join(said)
    return f'{text}: <span class="bad">{html.escape(error)}</span>' if error else text
