"""What signals do to code of ours: Python runs their handlers in the middle of whatever the main thread is doing."""

from __future__ import annotations

import signal
import threading

#: Not at SIGINT: ``KeyboardInterrupt`` is no ``Exception``, and nobody takes it for an error.
_LOOKED_AT = signal.valid_signals() - {signal.SIGINT}

# Beneath the library's own, which makes an enum of each answer: this is asked for each run.
_handler_of = getattr(signal, "_signal", signal).getsignal


def handlers_may_raise() -> bool:
    """Whether what this thread does may be interrupted by an ``Exception``, as time limits by SIGALRM raise it."""
    if threading.current_thread() is not threading.main_thread():
        return False
    return any(map(callable, map(_handler_of, _LOOKED_AT)))


def raise_again(error: BaseException) -> None:
    """Raise what is no ``Exception``, on a loop: that ends with it, as it does where it is hit while it waits."""
    raise error


#: What ends a loop, whatever it is doing.
ENDS_A_LOOP = (KeyboardInterrupt, SystemExit)
