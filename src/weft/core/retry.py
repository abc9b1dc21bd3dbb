"""Whether a failed attempt is followed by another, and after how long."""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from weft.errors import CheckpointError, DefinitionError, NodeTimeoutError, UsageError

#: Errors that another attempt would meet again: mistakes of the program rather than of the world.
_PERMANENT = (
    CheckpointError,
    UsageError,
    ValueError,
    TypeError,
    ArithmeticError,
    ImportError,
    LookupError,
    NameError,
    SyntaxError,
    RuntimeError,
    ReferenceError,
    StopIteration,
    StopAsyncIteration,
    OSError,
)

RetryOn = type[Exception] | Sequence[type[Exception]] | Callable[[Exception], bool]


def default_retry_on(error: Exception) -> bool:
    """Whether an error looks passing: connections, server errors (HTTP 5xx), timeouts, unknown errors.

    The rule is LangGraph's; the HTTP status is looked for by name, so that no client library is imported.
    """
    if isinstance(error, ConnectionError | NodeTimeoutError):
        return True
    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(status, int):
        return status >= 500
    return not isinstance(error, _PERMANENT)


#: Names of errors of the network, in the libraries that people use for it; none of them is imported.
_OF_THE_NETWORK = frozenset(
    {
        "APIConnectionError",
        "APITimeoutError",
        "ChunkedEncodingError",
        "ClientConnectionError",
        "ConnectTimeoutError",
        "ConnectionError",
        "EndpointConnectionError",
        "IncompleteRead",
        "NetworkError",
        "RemoteDisconnected",
        "ServerDisconnectedError",
        "Timeout",
        "TimeoutException",
        "URLError",
        "gaierror",
    }
)

#: HTTP statuses below 500 that pass: timeout, too early, too many requests.
_PASSING = frozenset({408, 425, 429})


def transient(error: Exception) -> bool:
    """Whether an error looks passing, as those of networks and services do; what ``retry=3`` tries again.

    That is: what says when to come back (:func:`retry_after`), timeouts, lost connections, the HTTP statuses 408, 425,
    429 and 5xx, each found by name in what httpx, requests, aiohttp, urllib, botocore and the clients of model
    providers raise; and else what :func:`default_retry_on` says.
    """
    if isinstance(error, NodeTimeoutError | TimeoutError | ConnectionError) or retry_after(error) is not None:
        return True
    status = _status_of(error)
    if status is not None:
        return status >= 500 or status in _PASSING
    if any(cls.__name__ in _OF_THE_NETWORK for cls in type(error).__mro__):
        return True
    return default_retry_on(error)


def _status_of(error: Exception) -> int | None:
    try:
        response = getattr(error, "response", None)
        if isinstance(response, Mapping):  # botocore
            response = None
            found = error.response["ResponseMetadata"]["HTTPStatusCode"]  # type: ignore[attr-defined]  # it is there
        else:
            found = next(
                (
                    value
                    for owner in (error, response)
                    for name in ("status_code", "status", "code")
                    if isinstance(value := getattr(owner, name, None), int) and not isinstance(value, bool)
                ),
                None,
            )
        return found if isinstance(found, int) and 100 <= found < 600 else None
    except Exception:  # an attribute of a foreign error may raise anything: then it says nothing
        return None


@dataclass(frozen=True)
class RetryPolicy:
    """How often and how long apart a call is tried.

    Attributes:
        initial_interval: Seconds before the second attempt.
        backoff_factor: What the interval is multiplied with after each attempt.
        max_interval: The longest interval, in seconds.
        max_attempts: How many attempts there are at most, the first included.
        jitter: Whether to add up to a second at random, so that many calls do not return at once.
        retry_on: An error class, several, or a function that says whether to try again.
    """

    initial_interval: float = 0.5
    backoff_factor: float = 2.0
    max_interval: float = 128.0
    max_attempts: int = 3
    jitter: bool = True
    retry_on: RetryOn = default_retry_on

    def __post_init__(self) -> None:
        if isinstance(self.max_attempts, bool) or not isinstance(self.max_attempts, int):
            raise DefinitionError(f"max_attempts must be a whole number, not {self.max_attempts!r}")
        if self.max_attempts < 1:
            raise DefinitionError(f"max_attempts must be at least 1, not {self.max_attempts!r}")
        for name in ("initial_interval", "backoff_factor", "max_interval"):
            value = getattr(self, name)
            if (
                isinstance(value, bool) or not isinstance(value, int | float) or not value >= 0
            ):  # NaN is refused too
                raise DefinitionError(f"{name} must be a number of at least 0, not {value!r}")
        _check_retry_on(self.retry_on)

    def covers(self, error: Exception) -> bool:
        """Whether this policy retries such an error."""
        if isinstance(self.retry_on, type):
            return isinstance(error, self.retry_on)
        if isinstance(self.retry_on, Sequence):
            return isinstance(error, tuple(self.retry_on))
        return self.retry_on(error)

    def names_timeouts(self) -> bool:
        """Whether it is told in so many words to retry ``TimeoutError``."""
        kinds = [self.retry_on] if isinstance(self.retry_on, type) else self.retry_on
        return isinstance(kinds, Sequence) and any(issubclass(kind, TimeoutError) for kind in kinds)


def _check_retry_on(value: object) -> None:
    kinds = value if isinstance(value, list | tuple) else [value]
    if all(isinstance(kind, type) and issubclass(kind, Exception) for kind in kinds):
        return
    if not callable(value) or isinstance(value, type):
        raise DefinitionError(
            f"retry_on must be an Exception class, several in a list, or a function, not {value!r}"
        )


def next_delay(
    policies: Sequence[RetryPolicy],
    error: BaseException,
    *,
    attempt: int,
    draw: Callable[[], float] = random.random,
) -> float | None:
    """Seconds to wait before the next attempt; None when ``error`` is final.

    Args:
        policies: The first that covers the error decides.
        error: What the attempt raised.
        attempt: The number of that attempt, from 1.
        draw: Gives the jitter, from 0 to 1.
    """
    if not isinstance(error, Exception):
        return None
    policy = next((policy for policy in policies if policy.covers(error)), None)
    if policy is None or attempt >= policy.max_attempts:
        return None
    if isinstance(error, NodeTimeoutError) and error.given_up and not policy.names_timeouts():
        return None  # the body is still running: a second one beside it must be asked for
    if (told := retry_after(error)) is not None:
        return told
    delay = _interval(policy, attempt)
    return delay + draw() if policy.jitter else delay


def retry_after(error: BaseException) -> float | None:
    """Seconds after which the provider wants to be asked again, if the error says so; None if it does not.

    Looked for by name, so that no client library is imported: an attribute ``retry_after`` (seconds), or the HTTP
    header ``retry-after`` (seconds; the form with a date is not read) of ``error.response``.
    """
    try:
        told = getattr(error, "retry_after", None)
        if told is None:
            headers = getattr(getattr(error, "response", None), "headers", None) or {}
            told = float(headers.get("retry-after") or headers.get("Retry-After") or math.nan)
        if isinstance(told, bool) or not isinstance(told, int | float):
            return None
        return float(told) if 0 <= told < math.inf else None
    except Exception:  # an attribute of a foreign error may raise anything: then it says nothing
        return None


def _interval(policy: RetryPolicy, attempt: int) -> float:
    try:
        grown = policy.initial_interval * policy.backoff_factor ** (attempt - 1)
    except OverflowError:
        return policy.max_interval
    return min(policy.max_interval, grown)
