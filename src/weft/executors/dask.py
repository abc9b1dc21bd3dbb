"""Bodies on a Dask cluster."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Iterable
from contextvars import ContextVar
from functools import partial
from typing import Any

from weft.errors import DefinitionError
from weft.executors.cluster import ClusterExecutor, Job
from weft.executors.hosted import call_apart, stop


class DaskExecutor(ClusterExecutor):
    """Runs bodies on the workers of a Dask cluster, each in a process beside its worker.

    Args:
        client: A ``distributed.Client``, or the address of a scheduler, such as ``"tcp://host:8786"``.
        memory: How much each of those processes may use: bytes, or a text such as ``"2GB"``.
        resources: What a worker must have for a body, as ``{"GPU": 1}``; see Dask's worker resources.
        carry: Context variables whose values bodies see as they were where the call was asked for.

    Raises:
        DefinitionError: The client is none, or the package ``distributed`` is not there.
    """

    def __init__(
        self,
        client: Any,
        *,
        memory: int | str | None = None,
        resources: dict[str, float] | None = None,
        carry: Iterable[ContextVar[Any]] = (),
    ) -> None:
        super().__init__(memory=memory, carry=carry)
        try:
            from distributed import Client  # noqa: PLC0415 - it takes long to import
        except ImportError as error:
            raise DefinitionError(
                "a DaskExecutor needs the package distributed: pip install 'weft[dask]'"
            ) from error
        if isinstance(client, str):
            client = Client(client)
        if not isinstance(client, Client):
            raise DefinitionError(
                f"a DaskExecutor takes a distributed.Client or a scheduler's address, not {client!r}"
            )
        self.client = client
        self._options = {"resources": resources} if resources else {}
        self._at_work: dict[int, Any] = {}

    def submit(self, number: int, bodies: list[bytes]) -> concurrent.futures.Future[bytes]:
        """See :class:`weft.executors.cluster.ClusterExecutor`."""
        found: concurrent.futures.Future[bytes] = concurrent.futures.Future()
        there = self._at_work[number] = self.client.submit(
            call_apart, number, bodies, self.memory, key=f"weft-{number}", pure=False, **self._options
        )
        there.add_done_callback(partial(self._pass_on, number, found))
        return found

    def _pass_on(self, number: int, found: concurrent.futures.Future[bytes], there: Any) -> None:
        try:
            found.set_result(there.result())
        except BaseException as error:  # also of the cluster's own end
            found.set_exception(error)
        finally:
            # Or a worker that is lost later would have what it has done begun again.
            there.release()
            self._at_work.pop(number, None)

    def stop(self, future: concurrent.futures.Future[bytes], job: Job, *, kill: bool) -> None:
        """See :class:`weft.executors.cluster.ClusterExecutor`."""
        self.client.run(stop, [job.place], kill=kill, on_error="ignore")

    def size(self) -> int:
        """The threads of all workers."""
        return sum(self.client.nthreads().values())
