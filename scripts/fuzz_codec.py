"""Give the codec bytes that nobody encoded, and watch what the interpreter is asked to do.

    python scripts/fuzz_codec.py --payloads 1000000 [--seed N]

Payloads are mutations of encoded values of every kind, trees made by the grammar of the format with whatever at
each place, and what was used against others (objects that other libraries' serialisers call, import or
unpickle), alone and inside of each extension type. Each is decoded, described and read as an error, under an
audit hook. The run fails, and says with which payload, when

- anything but a value or a `CorruptDataError` comes out, or it takes more than a second;
- anything is imported, compiled, executed, opened, connected or started. Allowed is reading the file of a time
  zone that exists, and the thread that a value deeper than the caller's stack is read in.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import importlib.util
import json
import logging
import marshal
import os
import pickle
import random
import sys
import time
import urllib.error
import zoneinfo
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
from msgspec.msgpack import Ext, encode

from weft.checkpoint.codec import Codec
from weft.checkpoint.wire import Tag
from weft.errors import CorruptDataError

ROOT = Path(__file__).resolve().parent.parent
TAGS = [number for name, number in vars(Tag).items() if name.isupper()]
SLOWEST = 1.0  # seconds
HEADERS = bytes([*range(0x80, 0xA0), *range(0xC0, 0xE0)])
LOADED = (asyncio, json, logging, msgspec, urllib.error)  # so that their errors can be named


def load_values() -> Any:
    """The module of the tests that makes values of every kind."""
    sys.path.insert(0, str(ROOT / "tests" / "support"))
    path = ROOT / "tests" / "checkpoint" / "test_codec_values.py"
    spec = importlib.util.spec_from_file_location("test_codec_values", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


# What was used against others


class Evil:
    def __reduce__(self) -> Any:
        return os.system, ("touch /tmp/weft-fuzz-was-here",)


def attacks() -> list[bytes]:
    """Payloads as they were used against other serialisers."""
    call = ("os", "system", "touch /tmp/weft-fuzz-was-here")
    plain: list[Any] = [
        # msgpack extensions that import a name and call it: one argument, several, by keyword, a method, models
        *(Ext(code, encode(call)) for code in range(8)),
        *(Ext(code, encode(("os", "system", (call[2],)))) for code in range(8)),
        *(Ext(code, encode(("subprocess", "Popen", {"args": ["true"]}))) for code in range(8)),
        Ext(3, encode(("builtins", "str", "x", "__class__.__mro__"))),
        # JSON documents that name a constructor
        {"lc": 2, "type": "constructor", "id": ["os", "system"], "args": [call[2]], "kwargs": {}},
        {"lc": 2, "type": "constructor", "id": ["pathlib", "Path"], "method": "unlink", "args": ["/tmp/x"]},
        {"py/object": "os.system", "py/newargs": [call[2]]},
        {"py/reduce": [{"py/function": "os.system"}, {"py/tuple": [call[2]]}]},
        {"py/repr": "os/__import__('os').system('true')"},
        {"exc_type": "system", "exc_module": "os", "exc_message": [call[2]]},
        {"__reduce__": ["os.system", call[2]], "__class__": "os.system", "__init__": {"__globals__": {}}},
        {"$type": "os:system", "$error": "os:system"},
        "!!python/object/apply:os.system ['true']",
        "__import__('os').system('true')",
        "{{''.__class__.__mro__[1].__subclasses__()}}",
    ]
    raw = [pickle.dumps(Evil(), protocol) for protocol in range(6)]
    raw += [
        b"cos\nsystem\n(S'true'\ntR.",
        b"c__builtin__\neval\n(S'1'\ntR.",
        marshal.dumps(compile("1", "x", "eval")),
    ]
    names = ["os:system", "builtins:eval", "builtins:exec", "builtins:open", "subprocess:Popen", "pickle:loads",
             "ctypes:CDLL", "antigravity:x", "this:x", "importlib:import_module", "os:environ", "sys:modules",
             "builtins:type", "builtins:object", "builtins:BaseException", "urllib.error:HTTPError",
             "asyncio.exceptions:CancelledError", "builtins:ExceptionGroup", "builtins:OSError.__new__",
             ":", "", "a:b.c"]  # fmt: skip
    for name in names:
        plain += [
            Ext(Tag.OBJECT, encode([name, ["args"], [call[2]]])),
            Ext(Tag.OBJECT, encode([name, ["__class__", "__dict__"], {}, {}, {"__reduce__": 1}])),
            Ext(Tag.ENUM, encode([name, "x"])),
            error(name, [call[2]]),
            error(name, [], slots={"args": ("x",), "exceptions": [1], "message": "m", "obj": 1}),
            Ext(Tag.DEFAULT_DICT, encode([name, "a", 1])),
            Ext(Tag.PATH, encode([name, "/etc/passwd"])),
            Ext(Tag.IP, encode([name, "1.2.3.4"])),
            Ext(Tag.ZONE_INFO, name.replace(":", "/").encode()),
        ]
    keys = (
        "../../etc/passwd",
        "/etc/passwd",
        "os.path/x",
        "Europe",
        "zone.tab",
        "tzdata.zi",
        "a" * 5_000,
        "CON",
        "x\0y",
    )
    plain += [Ext(Tag.ZONE_INFO, key.encode()) for key in keys]
    made = (
        [encode(one) for one in plain]
        + raw
        + [encode(one) for one in raw]
        + [encode(one.hex()) for one in raw]
    )
    inside = [encode(Ext(tag, body)) for tag in TAGS for body in made[::3]]
    return (
        made + inside + [encode(Ext(tag, encode([msgspec.Raw(body)]))) for tag in TAGS for body in made[::5]]
    )


def error(name: Any, args: Any, *, exact: Any = True, slots: Any = None, **other: Any) -> Ext:
    form = [name, args, exact, slots or {}, other.get("attributes", {}), None, "", "text"]
    return Ext(Tag.ERRORS, encode([Ext(Tag.ERROR, encode(form))]))


# Made by the grammar


class Grammar:
    def __init__(self, rng: random.Random, names: list[str]) -> None:
        self.rng = rng
        self.names = names

    def value(self, depth: int = 4) -> Any:
        rng = self.rng
        choice = rng.random()
        if depth <= 0 or choice < 0.35:
            return self.scalar()
        if choice < 0.5:
            return [self.value(depth - 1) for _ in range(rng.randrange(5))]
        if choice < 0.6:
            keys = (rng.choice((rng.choice(self.names), self.scalar())) for _ in range(rng.randrange(4)))
            return {
                key if isinstance(key, str | int | bytes | bool | None) else str(key): self.value(depth - 1)
                for key in keys
            }
        return Ext(rng.choice(TAGS) if rng.random() < 0.97 else rng.randint(-128, 127), self.payload(depth))

    def scalar(self) -> Any:
        rng = self.rng
        odd = (None, True, False, 0, 1, -1, 2**63, 2**64 - 1, -(2**63), 1.5, float("nan"), "", b"", "x" * 40)
        return rng.choice(
            (*odd, rng.choice(self.names), rng.randint(-99, 9999), rng.random(), rng.randbytes(4))
        )

    def payload(self, depth: int) -> bytes:
        rng = self.rng
        if rng.random() < 0.1:
            return rng.choice(
                (b"", rng.randbytes(rng.randrange(20)), b"1.5", b"Europe/Berlin", b"NaN", b"1e99999999")
            )
        if rng.random() < 0.3:
            return self.record(depth)
        items = [self.value(depth - 1) for _ in range(rng.choice((0, 1, 2, 2, 3, 3, 6, 9)))]
        return encode(items if rng.random() < 0.9 else self.value(depth - 1))

    def record(self, depth: int) -> bytes:
        """As a registered type or an error is written, or nearly so."""
        rng = self.rng
        name = rng.choice(self.names)
        if rng.random() < 0.5:
            fields = [
                rng.choice(("x", "y", "name", "rest", "_hidden", "__class__"))
                for _ in range(rng.randrange(3))
            ]
            return encode(
                [name, fields, *(self.value(depth - 1) for _ in range(len(fields) + rng.randrange(2)))]
            )
        slots = {
            key: self.value(depth - 2)
            for key in rng.sample(("errno", "object", "start", "end", "message", "exceptions", "value"), 2)
        }
        args, notes = self.value(depth - 1), rng.choice((None, [], self.value(0)))
        form = [
            name,
            args if rng.random() < 0.3 else [args],
            rng.random() < 0.5,
            slots,
            {"a": args},
            notes,
            "tb",
            "text",
        ]
        return encode(form[: rng.choice((8, 8, 8, 8, 7, 1))])


class Payloads:
    def __init__(self, rng: random.Random, values: Any, codec: Codec) -> None:
        self.rng = rng
        make = values.Values(rng)
        self.kinds: Counter[str] = Counter()
        sound = [codec.encode(make.value(rng.choice((1, 2, 3)))) for _ in range(3_000)]
        sound += [codec.encode_error(make.one_own_error(2)) for _ in range(200)]
        self.sound = [data for data in sound if len(data) < 4_000]
        self.attacks = attacks()
        own = [f"{cls.__module__}:{cls.__qualname__}" for cls in (*values.TYPES, values.Own)]
        loaded = ["builtins:ValueError", "builtins:OSError", "builtins:UnicodeDecodeError", "builtins:ExceptionGroup",
                  "asyncio.exceptions:CancelledError", "weft.errors:ParallelExecutionError", "urllib.error:HTTPError",
                  "os:system", "builtins:eval", "PosixPath", "IPv4Address", "list", "RED", "READ", "x"]  # fmt: skip
        self.grammar = Grammar(rng, own + loaded)

    def __iter__(self) -> Any:
        yield from self.attacks
        self.kinds["attack"] += len(self.attacks)
        while True:
            kind = self.rng.choice(("mutation", "mutation", "tree", "mutated attack", "splice", "random"))
            self.kinds[kind] += 1
            yield getattr(self, kind.replace(" ", "_"))()

    def tree(self) -> bytes:
        return encode(self.grammar.value())

    def mutation(self) -> bytes:
        return self._mutated(self.rng.choice(self.sound))

    def mutated_attack(self) -> bytes:
        return self._mutated(self.rng.choice(self.attacks))

    def splice(self) -> bytes:
        """A part of one in the place of a part of another, or a whole one as the payload of an extension."""
        one, other = self.rng.choice(self.sound), self.rng.choice(self.sound)
        if self.rng.random() < 0.3:
            return encode(Ext(self.rng.choice(TAGS), one))
        at, to = sorted(self.rng.randrange(len(one) + 1) for _ in range(2))
        start, end = sorted(self.rng.randrange(len(other) + 1) for _ in range(2))
        return one[:at] + other[start:end] + one[to:]

    def random(self) -> bytes:
        return self.rng.randbytes(self.rng.randrange(40))

    def _mutated(self, data: bytes) -> bytes:
        rng = self.rng
        changed = bytearray(data)
        for _ in range(rng.choice((1, 1, 1, 2, 4))):
            at = rng.randrange(len(changed) + 1)
            what = rng.randrange(6)
            if what == 0:
                changed[at : at + 1] = bytes([rng.randrange(256)])
            elif what == 1:
                changed[at : at + 1] = bytes([rng.choice(HEADERS)])
            elif what == 2:
                changed[at : at + 1] = bytes([rng.choice(TAGS)])
            elif what == 3:
                del changed[at : at + rng.randint(1, 8)]
            elif what == 4:
                changed[at:at] = changed[at : at + rng.randint(1, 30)]
            else:
                changed[at:at] = rng.choice(
                    (b"\xdd\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff", b"\xc9\xff\xff\xff\xff\x06", b"\xc0")
                )
        return bytes(changed)


# The watch


class Watch:
    """What the interpreter was asked to do while payloads were read."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        self.allowed: Counter[str] = Counter()
        sys.addaudithook(self._hook)

    def _hook(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.on or event.startswith("object.__"):  # looking at attributes is no act
            return
        if event == "open" and any(str(args[0]).startswith(root + os.sep) for root in zoneinfo.TZPATH):
            self.allowed["the file of a time zone"] += 1
        elif (
            event in ("_thread.start_new_thread", "threading.Thread.start")
            and "_on_a_fresh_stack" in _callers()
        ):
            self.allowed["a fresh stack"] += 1
        elif not event.startswith("sys._getframe"):
            self.seen.append(f"{event} {args!r}"[:300])


def _callers() -> set[str]:
    frame, names = sys._getframe(1), set()
    while frame is not None:
        names.add(frame.f_code.co_name)
        frame = frame.f_back  # type: ignore[assignment] # the last has none
    return names


def run(count: int, seed: int) -> int:
    rng = random.Random(seed)
    values = load_values()
    codec = Codec(values.TYPES)
    payloads = Payloads(rng, values, codec)
    watch = Watch()
    readers = {"decode": codec.decode, "describe": codec.describe, "decode_error": codec.decode_error}
    ends: Counter[str] = Counter()
    for reader in readers.values():  # what the first use of anything imports is no payload's doing
        for data in (
            b"",
            codec.encode([1, {2: 3}]),
            codec.encode_error(ValueError(1)),
            codec.encode(zoneinfo.ZoneInfo("UTC")),
        ):
            with contextlib.suppress(CorruptDataError):
                reader(data)
    began = time.perf_counter()
    slowest = 0.0
    for number, data in enumerate(payloads):
        if number >= count:
            break
        for name, reader in readers.items():
            start = time.perf_counter()
            watch.on = True
            try:
                reader(data)
                end = "a value"
            except CorruptDataError as refused:
                end = type(refused).__name__
            except BaseException as wrong:
                watch.on = False
                print(f"seed {seed}, payload {number}, {name}: {wrong!r}\n{data.hex()}")
                return 1
            watch.on = False
            ends[f"{name}: {end}"] += 1
            took = time.perf_counter() - start
            slowest = max(slowest, took)
            if watch.seen or took > SLOWEST:
                print(f"seed {seed}, payload {number}, {name}: {took:.3f} s, {watch.seen}\n{data.hex()}")
                return 1
    took = time.perf_counter() - began
    print(f"seed {seed}: {count} payloads in {took:.0f} s, each read in {len(readers)} ways, no violation")
    print(
        f"  made: {dict(payloads.kinds)}\n  ended: {dict(ends)}\n"
        f"  allowed: {dict(watch.allowed)}, slowest {slowest:.3f} s"
    )
    return 0


def main() -> int:
    options = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    options.add_argument("--payloads", type=int, default=100_000)
    options.add_argument("--seed", type=int, default=random.SystemRandom().randrange(2**32))
    given = options.parse_args()
    return run(given.payloads, given.seed)


if __name__ == "__main__":
    sys.exit(main())
