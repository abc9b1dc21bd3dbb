"""Bodies on a Ray cluster."""

from __future__ import annotations

import concurrent.futures
import logging
from collections.abc import Iterable
from contextvars import ContextVar
from typing import Any

from weft.errors import DefinitionError
from weft.executors.cluster import ClusterExecutor, Job
from weft.executors.hosted import call_apart


class RayExecutor(ClusterExecutor):
    """Runs bodies as Ray tasks, each in a process beside Ray's worker.

    ``ray.init`` is called with the address if Ray is not connected yet.

    Args:
        address: Of the cluster; None for the one that Ray finds, or a new one on this machine.
        num_cpus: Cores that a body needs.
        num_gpus: GPUs that it needs; which, is in its environment as Ray sets it.
        resources: What else, as ``{"accelerator": 1}``.
        memory: How much its process may use: bytes, or a text such as ``"2GB"``.
        carry: Context variables whose values bodies see as they were where the call was asked for.

    Raises:
        DefinitionError: The package ``ray`` is not there.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        num_cpus: float = 1,
        num_gpus: float = 0,
        resources: dict[str, float] | None = None,
        memory: int | str | None = None,
        carry: Iterable[ContextVar[Any]] = (),
    ) -> None:
        super().__init__(memory=memory, carry=carry)
        try:
            import ray  # noqa: PLC0415 - it takes long to import
        except ImportError as error:
            raise DefinitionError("a RayExecutor needs the package ray: pip install 'weft[ray]'") from error
        if not ray.is_initialized():
            ray.init(address=address, logging_level=logging.WARNING)
        self._ray = ray
        self._num_cpus = num_cpus
        options: dict[str, Any] = {"num_cpus": num_cpus, "max_retries": 3, "retry_exceptions": False}
        if num_gpus:
            options["num_gpus"] = num_gpus
        if resources:
            options["resources"] = resources
        self._call = ray.remote(call_apart).options(**options)
        self._refs: dict[int, Any] = {}

    def submit(self, number: int, bodies: list[bytes]) -> concurrent.futures.Future[bytes]:
        """See :class:`weft.executors.cluster.ClusterExecutor`."""
        ref = self._refs[number] = self._call.remote(number, bodies, self.memory)
        future: concurrent.futures.Future[bytes] = ref.future()
        future.add_done_callback(lambda _: self._refs.pop(number, None))
        return future

    def stop(self, future: concurrent.futures.Future[bytes], job: Job, *, kill: bool) -> None:
        """See :class:`weft.executors.cluster.ClusterExecutor`. Ray has no way to tell a body, only to end it."""
        ref = self._refs.get(job.place[0])
        if kill and ref is not None:
            self._ray.cancel(ref, force=False)

    def size(self) -> int:
        """The cores of the cluster, shared by what each body needs."""
        cores = self._ray.cluster_resources().get("CPU", 1)
        return max(1, int(cores / max(self._num_cpus, 0.01)))
