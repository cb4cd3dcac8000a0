"""A trace of training steps for TensorBoard's profile plugin, and the operations that take the most time in them."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import re
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from meshtf import tf, xplane_pb2
from runtime.training.multi_step import MultiStep
from storage.files import write_bytes

UNTRACED_STEPS = 2  # the first ones compile
N_SHOWN = 10
PLUGIN_FOLDER = "plugins/profile"  # where the plugin looks for traces
# An operation of TensorFlow ends in that of the mesh graph which it belongs to, and the processor: h0/attn/einsum/
# parallel_0/MatMul:MatMul. Those that XLA has compiled run asynchronously, and stand in a value of their event.
_EVENT = re.compile(r"(?P<name>[\w./-]+):\w+")
_OPERATION = re.compile(r"(?P<name>[\w./-]+?)/parallel_\d+(_\d+)?(/.*)?")
LOOP = "microbatches"
_LOOP = re.compile(rf"^(.*/)?{LOOP}(/while(_\d+)?)?(/body/_\d+)?(/|$)")
_ASYNCHRONOUS = "ExecutorState::ProcessAsync::Start"
_OTHERS_INSIDE = ("ExecutorState::ProcessAsync::Done", "ExecutorState::Process")  # run what is ready next


@dataclasses.dataclass(frozen=True)
class Cost:
    """What an operation of the mesh graph takes in a step.

    Attributes:
        name: begins with its layer, such as "h0/attn/einsum"; one of a gradient has "/gradients/" in it.
        seconds: in a step, on all processors together.
        share: of the time of all operations.
    """

    name: str
    seconds: float
    share: float


@dataclasses.dataclass(frozen=True)
class Profile:
    """What a trace tells.

    Attributes:
        steps: the first and the last step of the trace, from 1.
        step_seconds: of one step, with what the trace itself takes.
        costs: of each operation, the most expensive first.
        folder: where the trace is.
    """

    steps: tuple[int, int]
    step_seconds: float
    costs: Sequence[Cost]
    folder: str

    def describe(self) -> str:
        """Returns the most expensive operations as a table."""
        first, last = self.steps
        lines = [
            f"profile of steps {first} to {last}: {self.step_seconds:.3g} s a step; TensorBoard's profile plugin shows "
            f"{self.folder}",
            f"{'share':>7}{'ms a step':>12}  operation",
            *(f"{cost.share:>7.1%}{1e3 * cost.seconds:>12.3g}  {cost.name}" for cost in self.costs[:N_SHOWN]),
        ]
        return "\n".join(lines)


class _ProfiledSteps:
    """Training steps of which some are traced, once those before them have been compiled.

    Attributes:
        max_steps: one, so that the trace begins and ends where it should.
    """

    max_steps = 1

    def __init__(self, multi_step: MultiStep, n_steps: int, folder: str, say: Callable[[str], None]) -> None:
        self._multi_step, self._n_steps, self._folder, self._say = multi_step, n_steps, folder, say
        self._n_called, self._started = 0, 0.0
        self._local = contextlib.ExitStack()

    def __call__(self, *inputs: np.ndarray) -> Mapping[str, np.ndarray]:
        """Runs a step; the number of the update is the last but one of its inputs."""
        number = int(inputs[-2][0])
        if self._n_called == UNTRACED_STEPS:
            self._start()
        with tf.profiler.experimental.Trace("train", step_num=number, _r=1):
            outputs = self._multi_step(*inputs)
        self._n_called += 1
        if self._n_called == UNTRACED_STEPS + self._n_steps:
            self._end(number)
        return outputs

    def _start(self) -> None:
        self._traces = Path(self._local.enter_context(tempfile.TemporaryDirectory()))
        tf.profiler.experimental.start(str(self._traces))
        self._started = time.monotonic()

    def _end(self, number: int) -> None:
        seconds = (time.monotonic() - self._started) / self._n_steps
        tf.profiler.experimental.stop()
        (file,) = self._traces.rglob("*.xplane.pb")
        trace = file.read_bytes()
        self._local.close()
        write_bytes(f"{self._folder}/{file.parent.name}/{file.name}", trace)
        steps = number + 2 - self._n_steps, number + 1
        self._say(Profile(steps, seconds, costs(trace, self._n_steps), self._folder).describe())

    def close(self) -> None:
        """Ends a trace that training has not come to the end of."""
        n_left = UNTRACED_STEPS + self._n_steps - self._n_called
        if n_left <= 0:
            return
        if self._n_called > UNTRACED_STEPS:
            tf.profiler.experimental.stop(save=False)
        self._local.close()
        self._say(f"--profile {self._n_steps}: training has ended {n_left} steps too early; no trace is written")


@contextlib.contextmanager
def profiled(multi_step: MultiStep, n_steps: int, model_path: str, say: Callable[[str], None]) -> Iterator[MultiStep]:
    """Yields the same training steps, of which `n_steps` are traced after the first two.

    Args:
        multi_step: runs the steps.
        n_steps: how many to trace.
        model_path: of the run, which gets the trace.
        say: takes the table of the most expensive operations.
    """
    steps = _ProfiledSteps(multi_step, n_steps, f"{model_path}/{PLUGIN_FOLDER}", say)
    try:
        yield steps
    finally:
        steps.close()


# Reading a trace.


def costs(trace: bytes, n_steps: int) -> list[Cost]:
    """Returns what each operation of the mesh graph takes, the most expensive first.

    Args:
        trace: a serialized XSpace, as TensorFlow's profiler writes it. Where it has GPUs, the time of an operation is
            that of its kernels there, otherwise that of the thread which runs it.
        n_steps: in the trace.
    """
    space = xplane_pb2.XSpace.FromString(trace)
    on_gpus = [plane for plane in space.planes if plane.name.startswith("/device:GPU")]
    seconds: collections.Counter[str] = collections.Counter()
    for plane in on_gpus or [plane for plane in space.planes if plane.name == "/host:CPU"]:
        for line in plane.lines:
            for name, picoseconds in _own_times(plane, line):
                if found := _OPERATION.match(name):
                    seconds[_outside_of_loop(found["name"])] += picoseconds / 1e12 / n_steps
    total = seconds.total()
    return [Cost(name, own, own / total) for name, own in seconds.most_common()]


def _outside_of_loop(name: str) -> str:
    """Returns the name that an operation has without microbatches: not microbatches/while/h0/attn/einsum."""
    return _LOOP.sub("", name) or LOOP


def _own_times(plane: xplane_pb2.XPlane, line: xplane_pb2.XLine) -> Iterator[tuple[str, int]]:
    """Yields the operation and the picoseconds of each event, without the events inside that are of others."""
    open_events: list[list] = []  # name, end, own picoseconds
    for event in sorted(line.events, key=lambda event: (event.offset_ps, -event.duration_ps)):
        name = _operation_of(plane, event)
        if name is None:
            continue
        while open_events and open_events[-1][1] <= event.offset_ps:
            yield _closed(open_events.pop())
        if open_events:
            open_events[-1][2] -= event.duration_ps
        open_events.append([name, event.offset_ps + event.duration_ps, event.duration_ps])
    yield from map(_closed, open_events)


def _closed(event: list) -> tuple[str, int]:
    return event[0], event[2]


def _operation_of(plane: xplane_pb2.XPlane, event: xplane_pb2.XEvent) -> str | None:
    """Returns the operation of TensorFlow that an event is of, "" for the executor's, None for a part of another."""
    name = plane.event_metadata[event.metadata_id].name
    values = {plane.stat_metadata[stat.metadata_id].name: stat for stat in event.stats}
    if "tf_op" in values:
        return _text(plane, values["tf_op"])
    if name in _OTHERS_INSIDE:
        return ""
    if name == _ASYNCHRONOUS:
        return _text(plane, values["name"])
    found = _EVENT.fullmatch(name)
    return found and found["name"]


def _text(plane: xplane_pb2.XPlane, stat: xplane_pb2.XStat) -> str:
    """Returns the text of a value, which is held by the plane where it is the same in several events."""
    return stat.str_value or plane.stat_metadata[stat.ref_value].name
