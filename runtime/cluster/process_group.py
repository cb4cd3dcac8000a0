"""The processes that run one command together, as commands see them."""

from __future__ import annotations

import contextlib
import dataclasses
import zlib
from collections.abc import Callable, Iterator
from typing import TypeVar

from runtime.cluster.heartbeat import Heartbeat
from runtime.cluster.spec import ClusterError

Result = TypeVar("Result")

TIMEOUT_SECONDS = 30  # for a process that others wait for and that makes no progress


@dataclasses.dataclass(frozen=True)
class ProcessGroup:
    """This process among those that work together.

    Attributes:
        index: the rank of this process; process 0 logs, and writes shared files.
        size: how many processes there are.
        device: the device of this process; None: it may use every device.
        all_reduce_max: returns the largest of the int32 numbers that the processes pass, once all have called it.
        heartbeat: what this process reports to the others.
        before_step: called before each step that waits for other processes; may raise in all of them.
    """

    index: int
    size: int
    device: str | None = None
    all_reduce_max: Callable[[int], int] = lambda number: number
    heartbeat: Heartbeat = dataclasses.field(default_factory=Heartbeat)
    before_step: Callable[[], None] = lambda: None

    @property
    def is_first(self) -> bool:
        """Whether this is the process that logs and writes shared files."""
        return self.index == 0

    def barrier(self) -> None:
        """Returns when every process has called it."""
        self.all_reduce_max(0)

    def synchronize(self) -> None:
        """Marks a synchronization point; call it before a step that waits for other processes.

        `all_reduce_max` calls it itself.
        """
        self.heartbeat.n_syncs += 1

    def synchronized(self, step: Callable[..., Result]) -> Callable[..., Result]:
        """Wraps a step that waits for other processes, so that each call marks a synchronization point."""

        def synchronized_step(*arrays: object) -> Result:
            self.before_step()
            self.synchronize()
            return step(*arrays)

        return synchronized_step

    @contextlib.contextmanager
    def timeout(self, seconds: int | None = TIMEOUT_SECONDS) -> Iterator[None]:
        """Limits the time between two synchronization points; None: no limit.

        A process that others wait for hangs once its time is over: it ends, and so do the others. Processes that all
        work side by side may take longer, because none waits.
        """
        before = self.heartbeat.timeout_seconds
        self.heartbeat.timeout_seconds = seconds or 0
        self.heartbeat.n_beats += 1
        try:
            yield
        finally:
            self.heartbeat.timeout_seconds = before
            self.heartbeat.n_beats += 1

    def first_process_first(self, action: Callable[[], Result]) -> Result:
        """Runs an action in the first process, then in the others, which find what the first has made."""
        with self.timeout(None):
            if not self.is_first:
                self.barrier()
            result = action()
            if self.is_first:
                self.barrier()
            return result

    def check_same(self, what: str, value: str) -> None:
        """Checks that all processes hold the same text, before a difference makes them wait for each other forever.

        Raises:
            ClusterError: they do not.
        """
        number = zlib.crc32(value.encode()) & 0x7FFFFFFF
        largest, smallest = self.all_reduce_max(number), -self.all_reduce_max(-number)
        if largest != smallest:
            raise ClusterError(
                f"{what}: differs between the {self.size} processes; start each with the same command and files, "
                "except for --host_index"
            )


ALONE = ProcessGroup(0, 1)
