"""Ends processes, with all that they have started, when the one that they work for is gone.

Run as a script by an executor, whose process may be killed and can do nothing then. It reads lines from its standard
input: ``+123`` for a group of processes to end, ``-123`` for one that has ended by itself, ``.`` when there will be no
more. It imports nothing of ours.
"""

import contextlib
import os
import select
import signal
import sys


def main() -> None:
    """Wait until nobody is at the other end of the standard input, or the parent is dead."""
    parent = int(sys.argv[1])
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    poll = select.poll()
    poll.register(0, select.POLLIN)
    with contextlib.suppress(AttributeError, OSError):
        # What the parent has forked may hold the other end.
        poll.register(os.pidfd_open(parent), select.POLLIN)
    os.set_blocking(0, False)
    groups: set[int] = set()
    rest, is_over = b"", False
    while not is_over:
        poll.poll()
        is_over = os.getppid() != parent
        while (found := _read()) is not None:
            is_over = is_over or not found
            *lines, rest = (rest + found).split(b"\n")
            for line in lines:
                if line == b".":
                    is_over = True
                else:
                    (groups.add if line[:1] == b"+" else groups.discard)(int(line[1:]))
            if not found:
                break
    for group in groups:
        with contextlib.suppress(OSError):
            os.killpg(group, signal.SIGKILL)


def _read() -> bytes | None:
    """What there is to read; None when there is nothing yet, b"" at the end."""
    try:
        return os.read(0, 65_536)
    except BlockingIOError:
        return None


if __name__ == "__main__":
    main()
