"""What a process and its worker say to each other: numbered frames of bytes on a socket."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import struct
import threading
from collections import deque
from enum import IntEnum

_MARK = 0x77656674  # what a body writes there by mistake does not begin so
_HEADER = struct.Struct("!IBQQ")

#: Before the data of a job: the seconds for which it has waited.
AGE = struct.Struct("!d")

#: With which code a worker leaves when its socket was taken from it.
CUT_OFF = 113

#: Bytes that are read at once, and up to which a frame is sent in one piece with its header.
_PIECE = 1 << 16


class Kind(IntEnum):
    """What a frame is. To the worker: the first three; from it: the rest; both ways: the last."""

    HELLO = 0  # how the worker is to be
    JOB = 1  # its number, and what to call
    TELL = 2  # the number of a job that nobody waits for
    BEGUN = 3
    WROTE = 4
    LOGGED = 5
    BEAT = 6
    RETURNED = 7
    RAISED = 8
    BACK = 9  # the number of a job that another is to do, if it was not begun; it was not, and will not be


Frame = tuple[Kind, int, bytes]


class SilenceError(Exception):
    """Nothing was said for as long as somebody wanted to listen."""


class RubbishError(Exception):
    """What was read is no frame."""


def frame_of(kind: Kind, number: int = 0, data: bytes = b"") -> bytes:
    """A frame as bytes."""
    return _HEADER.pack(_MARK, kind, number, len(data)) + data


class Line:
    """One end of the socket. Any thread may send; one reads.

    Args:
        sock: The socket.
        pidfd: Of the process at the other end, where the system has such: its death ends the line, although something
            that it has forked may still hold its end.
    """

    def __init__(self, sock: socket.socket, pidfd: int | None = None) -> None:
        self._sock = sock
        self._inode = os.fstat(sock.fileno()).st_ino
        self._pidfd = pidfd
        self._poll = select.poll()
        self._poll.register(sock, select.POLLIN)
        if pidfd is not None:
            self._poll.register(pidfd, select.POLLIN)
        self._read = bytearray()
        self._at = 0  # how much of it was given out
        self._sending = threading.Lock()
        self._soon: deque[bytes] = deque()

    # Sending

    def send(self, kind: Kind, number: int = 0, data: bytes = b"") -> None:
        """Send a frame.

        Raises:
            OSError: Nobody is at the other end, or this end is not ours any more.
        """
        if len(data) < _PIECE:
            self.send_all(frame_of(kind, number, data))
        else:
            self.send_all(_HEADER.pack(_MARK, kind, number, len(data)), data)

    def send_all(self, *pieces: bytes) -> None:
        """Send frames as bytes, with nothing in between.

        Raises:
            OSError: As above.
        """
        with self._sending:
            if not self.is_ours:
                raise OSError("the socket was closed by somebody else")
            for piece in pieces:
                self._sock.sendall(piece)
        self._send_soon()

    def send_soon(self, kind: Kind, number: int) -> None:
        """Send a short frame as soon as that can be done without waiting; where the line is full or gone, never."""
        self._soon.append(frame_of(kind, number))
        self._send_soon()

    def _send_soon(self) -> None:
        while self._soon and self._sending.acquire(blocking=False):
            try:
                while self._soon:
                    self._sock.send(self._soon.popleft(), socket.MSG_DONTWAIT)
            except OSError:
                self._soon.clear()
            finally:
                self._sending.release()

    @property
    def is_ours(self) -> bool:
        """Not if a body has closed the socket, and perhaps opened something else in its place."""
        try:
            return os.fstat(self._sock.fileno()).st_ino == self._inode
        except OSError:
            return False

    # Reading

    def read(self, seconds: float | None = None) -> Frame | None:
        """The next frame; None when the other end is gone.

        Raises:
            SilenceError: Nothing came within so many seconds.
            RubbishError: What came is no frame.
        """
        while (frame := self._next()) is None:
            if not self._fill(seconds):
                return None
        return frame

    def _next(self) -> Frame | None:
        missing = _HEADER.size - (len(self._read) - self._at)
        if missing > 0:
            return None
        mark, kind, number, size = _HEADER.unpack_from(self._read, self._at)
        if mark != _MARK or kind not in _KINDS:
            raise RubbishError(bytes(self._read[self._at : self._at + 40]))
        begin = self._at + _HEADER.size
        if len(self._read) < begin + size:
            return None
        with memoryview(self._read) as view:
            data = bytes(view[begin : begin + size])
        self._at = begin + size
        if self._at == len(self._read):
            self._read, self._at = bytearray(), 0
        return Kind(kind), number, data

    def _fill(self, seconds: float | None) -> bool:
        """Read some more; False at the end."""
        if self._at:
            del self._read[: self._at]
            self._at = 0
        try:
            ready = self._poll.poll(None if seconds is None else seconds * 1000)
            if not ready:
                raise SilenceError
            # When the process is dead, all that it has said is here already: nothing more is waited for.
            said = any(fd == self._sock.fileno() for fd, _ in ready)
            found = self._sock.recv(4 * _PIECE, 0 if said else socket.MSG_DONTWAIT)
        except (OSError, ValueError):  # reset by a process that was killed, or closed by us
            return False
        self._read += found
        return bool(found)

    # Its end

    def close(self) -> None:
        """Hang up."""
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_RDWR)  # whoever is just sending stops
        with self._sending:
            self._sock.close()

    def let_go(self) -> None:
        """This process was forked, and the line is its parent's."""
        self._sock.close()


_KINDS = frozenset(Kind)
