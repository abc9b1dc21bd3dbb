"""Tests without waiting: virtual time, orders that a seed decides, and threads that take turns.

    faces.py       run, virtual_time, virtual_clock, sleep: what tests use
    loop.py        an asyncio loop whose time jumps when nothing is ready
    clock.py       what a run gets from it: time, chance, threads, the machine
    baton.py       threads, of which one works at a time
    standstill.py  who waits where, when nothing can happen any more

Each file needs only those below it.
"""

from weft.testing.clock import VirtualClock
from weft.testing.faces import run, sleep, virtual_clock, virtual_time
from weft.testing.loop import VirtualLoop
from weft.testing.standstill import StandstillError

__all__ = ["StandstillError", "VirtualClock", "VirtualLoop", "run", "sleep", "virtual_clock", "virtual_time"]
