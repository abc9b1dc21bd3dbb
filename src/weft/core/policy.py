"""What the outcomes of its branches mean for a block: whether it goes on, has its result, or can have none."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from enum import Enum
from typing import ClassVar

from weft.errors import DefinitionError

#: A ratio is a decimal made binary: 0.29 of 100 is 28.999…, yet whoever wrote it tolerates the 29th failure.
_ROUNDING = 1 + 1e-12


class Verdict(Enum):
    """What a block does next."""

    #: Nothing is certain yet.
    GO_ON = "go on"
    #: It has its result; branches that have not ended are not needed.
    DONE = "done"
    #: It can no longer have its result, whatever becomes of the other branches.
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Policy(ABC):
    """When a block of parallel branches is decided.

    Everywhere, ``ok`` branches have ended with a value and ``failed`` in any other way, of ``total``. That is None
    while it is not known, as for a lazy source that is not at its end. A policy holds no state of a run: one object
    serves any number of blocks.
    """

    #: Whether the block returns the outcomes of its branches rather than values.
    gives_outcomes: ClassVar[bool]

    #: Whether it returns the value of one branch.
    gives_one: ClassVar[bool] = False

    @abstractmethod
    def verdict(self, ok: int, failed: int, total: int | None) -> Verdict:
        """What is certain now: asked before the first branch, after each that ends, and when ``total`` gets known."""

    def reason(self, ok: int, failed: int, total: int | None) -> str:
        """For people: why the block was decided, with the numbers that decided."""
        verdict = self.verdict(ok, failed, total)
        if verdict is Verdict.FAILED:
            return self.why_failed(ok, failed, total)
        if verdict is Verdict.DONE:
            return self.why_done(ok, failed, total)
        return f"{_ended(ok, failed, total)}, {failed} failed: not decided yet"

    def why_failed(self, ok: int, failed: int, total: int | None) -> str:
        """For people: why such numbers are FAILED."""
        return _failed(ok, failed, total)

    def why_done(self, ok: int, failed: int, total: int | None) -> str:
        """For people: why such numbers are DONE."""
        return f"{_ended(ok, failed, total)}, {failed} failed"

    def check(self, total: int) -> None:  # noqa: B027 - most policies can hold for any number of branches
        """Refuse what can never succeed with so many branches.

        Raises:
            DefinitionError: As it says; the message has both numbers.
        """


@dataclass(frozen=True, slots=True)
class FailFast(Policy):
    """Every branch must succeed; the first that does not decides."""

    gives_outcomes: ClassVar[bool] = False

    def verdict(self, ok: int, failed: int, total: int | None) -> Verdict:
        if failed:
            return Verdict.FAILED
        return Verdict.DONE if ok == total else Verdict.GO_ON

    def why_failed(self, ok: int, failed: int, total: int | None) -> str:
        return f"{_failed(ok, failed, total)}; {_tolerated('0')}"


@dataclass(frozen=True, slots=True)
class Collect(Policy):
    """All branches end, however they do."""

    gives_outcomes: ClassVar[bool] = True

    def verdict(self, ok: int, failed: int, total: int | None) -> Verdict:
        return Verdict.DONE if ok + failed == total else Verdict.GO_ON


@dataclass(frozen=True, slots=True)
class Tolerate(Policy):
    """All branches end, and some may fail: no more than ``count``, and no more than the share ``ratio``.

    Attributes:
        count: How many may fail; None where only the ratio says.
        ratio: Which share may fail, at least 0 and below 1; None where only the count says. It is of all branches, or,
            while their number is not known, of those that have ended.
        at_least: How many must have ended before a share of those is judged.
    """

    gives_outcomes: ClassVar[bool] = True
    count: int | None = None
    ratio: float | None = None
    at_least: int = 1

    def __post_init__(self) -> None:
        if self.count is None and self.ratio is None:
            raise DefinitionError(
                "tolerate() does not say how many may fail: write tolerate(count=2), tolerate(ratio=0.1), or both"
            )
        if self.count is not None:
            _check_whole("count", self.count, least=0)
        if self.ratio is not None:
            _check_ratio(self.ratio)
        _check_whole("at_least", self.at_least, least=1)
        if self.ratio is None and self.at_least != 1:
            raise DefinitionError(
                f"at_least={self.at_least} is from when on a ratio is judged, and there is no ratio: leave it out"
            )

    def verdict(self, ok: int, failed: int, total: int | None) -> Verdict:
        if failed and (self._over_count(failed) or self._over_ratio(ok, failed, total)):
            return Verdict.FAILED
        return Verdict.DONE if ok + failed == total else Verdict.GO_ON

    def why_failed(self, ok: int, failed: int, total: int | None) -> str:
        most = str(self.count) if self._over_count(failed) else f"{100 * (self.ratio or 0):.4g}%"
        return f"{_failed(ok, failed, total)}; {_tolerated(most)}"

    def _over_count(self, failed: int) -> bool:
        return self.count is not None and failed > self.count

    def _over_ratio(self, ok: int, failed: int, total: int | None) -> bool:
        if self.ratio is None:
            return False
        if total is not None:
            return failed > self.ratio * total * _ROUNDING
        ended = ok + failed
        return ended >= self.at_least and failed > self.ratio * ended * _ROUNDING


@dataclass(frozen=True, slots=True)
class Need(Policy):
    """``count`` branches must succeed; the rest are not waited for.

    Attributes:
        count: How many, at least 1.
    """

    gives_outcomes: ClassVar[bool] = True
    count: int

    def __post_init__(self) -> None:
        _check_whole("need", self.count, least=1)

    def verdict(self, ok: int, failed: int, total: int | None) -> Verdict:
        return _verdict_of_need(self.count, ok, failed, total)

    def why_failed(self, ok: int, failed: int, total: int | None) -> str:
        return _why_need_failed(self.count, ok, failed, total)

    def why_done(self, ok: int, failed: int, total: int | None) -> str:
        return f"{_branches(ok)} succeeded; {self.count} needed"

    def check(self, total: int) -> None:
        if self.count > total:
            raise DefinitionError(
                f"need={self.count} of {_branches(total)} can never be; it may be at most the number of branches"
            )


@dataclass(frozen=True, slots=True)
class Race(Policy):
    """The first branch that succeeds is the block's result; the rest are not waited for."""

    gives_outcomes: ClassVar[bool] = False
    gives_one: ClassVar[bool] = True

    def verdict(self, ok: int, failed: int, total: int | None) -> Verdict:
        return _verdict_of_need(1, ok, failed, total)

    def why_failed(self, ok: int, failed: int, total: int | None) -> str:
        return _why_need_failed(1, ok, failed, total)

    def why_done(self, ok: int, failed: int, total: int | None) -> str:
        return "a branch succeeded; one was needed"

    def check(self, total: int) -> None:
        if total < 1:
            raise DefinitionError("a race needs at least one branch, and there is none")


_NAMED: dict[str, Policy] = {"fail_fast": FailFast(), "collect": Collect(), "race": Race()}


def tolerate(*, count: int | None = None, ratio: float | None = None, at_least: int = 1) -> Tolerate:
    """Let some branches of a block fail: ``on_error=tolerate(count=2)``. The block returns outcomes.

    Args:
        count: How many may fail.
        ratio: Which share may fail, at least 0 and below 1. With both, neither may be exceeded.
        at_least: Where the number of branches is not known beforehand, how many must have ended before a share of
            those is judged.

    Raises:
        DefinitionError: Neither is given, or one is no such number.
    """
    return Tolerate(count, ratio, at_least)


def policy_of(on_error: object = "fail_fast", need: int | None = None) -> Policy:
    """The policy that the options of a block mean.

    Raises:
        DefinitionError: They mean none, or two.
    """
    if need is not None:
        if on_error != "fail_fast":
            raise DefinitionError(
                f"need={need!r} and on_error={on_error!r} are two policies: leave one of them out"
            )
        return Need(need)
    if isinstance(on_error, Policy):
        return on_error
    found = _NAMED.get(on_error) if isinstance(on_error, str) else None
    if found is None:
        raise DefinitionError(
            f'on_error must be "fail_fast", "collect", "race", tolerate(count=...) or tolerate(ratio=...), '
            f"not {on_error!r}; for some successes that are enough leave it out and write need=2"
        )
    return found


def _verdict_of_need(need: int, ok: int, failed: int, total: int | None) -> Verdict:
    if ok >= need:
        return Verdict.DONE
    return Verdict.FAILED if total is not None and total - failed < need else Verdict.GO_ON


def _why_need_failed(need: int, ok: int, failed: int, total: int | None) -> str:
    assert total is not None  # while more branches may come, a need can still be met
    if total < need:
        return f"{need} must succeed, of {_branches(total)} in all"
    return f"{_failed(ok, failed, total)}; {need} must succeed"


def _check_whole(name: str, value: object, *, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < least:
        raise DefinitionError(f"{name} must be a whole number of at least {least}, not {value!r}")


def _check_ratio(value: object) -> None:
    if (
        isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value < 1
    ):  # NaN is refused too
        raise DefinitionError(
            f"ratio must be a number of at least 0 and below 1, not {value!r}; for a number of branches write count="
        )


def _branches(number: int) -> str:
    return "1 branch" if number == 1 else f"{number} branches"


def _ended(ok: int, failed: int, total: int | None) -> str:
    if total is None:
        return f"{_branches(ok + failed)} ended so far"
    return f"{ok + failed} of {_branches(total)} ended"


def _failed(ok: int, failed: int, total: int | None) -> str:
    if total is None:
        return f"{failed} of the {_branches(ok + failed)} that ended so far failed"
    return f"{failed} of {_branches(total)} failed"


def _tolerated(most: str) -> str:
    if most in {"0", "0%"}:
        return "none is tolerated"
    return f"{most} {'is' if most == '1' else 'are'} tolerated"
