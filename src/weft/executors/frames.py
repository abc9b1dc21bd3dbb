"""What a process and its worker say to each other: numbered frames of bytes on a socket."""

from __future__ import annotations

import contextlib
import socket
import struct
import threading
from enum import IntEnum

_HEADER = struct.Struct("!BQQ")


class Kind(IntEnum):
    """What a frame is. To the worker: the first three; from it: the rest."""

    HELLO = 0  # how the worker is to be
    JOB = 1  # its number, and what to call
    TELL = 2  # the number of a job that nobody waits for
    BEGUN = 3
    WROTE = 4
    LOGGED = 5
    BEAT = 6
    RETURNED = 7
    RAISED = 8


class Line:
    """One end of the socket. Any thread may send; one reads."""

    def __init__(self, sock: socket.socket) -> None:
        self._sock = sock
        self._file = sock.makefile("rb", buffering=1 << 16)
        self._sending = threading.Lock()

    def send(self, kind: Kind, number: int = 0, data: bytes = b"") -> None:
        """Send a frame.

        Raises:
            OSError: Nobody is at the other end.
        """
        with self._sending:
            self._sock.sendall(_HEADER.pack(kind, number, len(data)) + data)

    def read(self) -> tuple[Kind, int, bytes] | None:
        """The next frame; None when the other end is gone."""
        try:
            header = self._file.read(_HEADER.size)
            if len(header) < _HEADER.size:
                return None
            kind, number, size = _HEADER.unpack(header)
            data = self._file.read(size)
        except (OSError, ValueError):  # reset by a process that was killed, or closed by us
            return None
        return None if len(data) < size else (Kind(kind), number, data)

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)
        self._sock.close()
