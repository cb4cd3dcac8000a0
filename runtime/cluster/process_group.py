"""The processes that do one thing together, as the verbs see them: one alone, or all of a cluster."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from runtime.checkpoint.checkpoints import Writers
from runtime.cluster.rendezvous import joined
from runtime.cluster.spec import Cluster, ClusterError

Result = TypeVar("Result")


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process among those that work together.

    Attributes:
        index: which of them it is; the first, 0, is the one that speaks, and that writes what is written once.
        size: how many they are.
        device: of this process where there are many; None: one process may use every device.
        greatest: of the int32 numbers that the processes call it with, once all have called it.
        promising: see `Membership.promising`.
        synchronize: see `Membership.synchronize`.
    """

    index: int
    size: int
    device: str | None
    all_reduce_max: Callable[[int], int]
    timeout: Callable[..., contextlib.AbstractContextManager[None]]
    synchronize: Callable[[], None]

    @property
    def is_first(self) -> bool:
        return self.index == 0

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.all_reduce_max(0)

    def writers(self) -> Writers:
        """Those who write a checkpoint."""
        return Writers(self.index, self.size, self.barrier)

    def synchronized(self, step: Callable[..., Result]) -> Callable[..., Result]:
        """A step in which the processes wait for each other."""

        def met(*arrays: object) -> Result:
            self.synchronize()
            return step(*arrays)

        return met

    def first_process_first(self, action: Callable[[], Result]) -> Result:
        """Does it in the first process, and then in the others, which find what the first has made."""
        with self.timeout(None):
            if not self.is_first:
                self.barrier()
            result = action()
            if self.is_first:
                self.barrier()
            return result

    def check_same(self, what: str, value: str) -> None:
        """Finds processes that were told different things, before they wait for each other without end.

        Raises:
            ClusterError: a text is not the same in all processes.
        """
        number = zlib.crc32(value.encode()) & 0x7FFFFFFF
        all_reduce_max, least = self.all_reduce_max(number), -self.all_reduce_max(-number)
        if all_reduce_max != least:
            raise ClusterError(
                f"{what}: not the same in all {self.size} processes; start each with the same command and files, "
                "but for --host_index"
            )


ALONE = ProcessGroup(0, 1, None, lambda number: number, contextlib.nullcontext, lambda: None)


@contextlib.contextmanager
def assembled(cluster: Cluster | None) -> Iterator[ProcessGroup]:
    """The processes of a cluster once they have met; None: this process alone. See `joined`."""
    if cluster is None:
        yield ALONE
        return
    with joined(cluster) as membership:
        yield ProcessGroup(
            cluster.index,
            cluster.size,
            membership.device,
            membership.all_reduce_max,
            membership.timeout,
            membership.synchronize,
        )
