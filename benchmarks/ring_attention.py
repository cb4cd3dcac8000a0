"""Measures what a process holds and sends, as a long sequence is split over more processes.

    python3 benchmarks/ring_attention.py --set n_ctx=8192 --processes 1 2 4

Every process counts the payload of its collectives; the plan says what it should be, and the counters of the loopback
device, which all processes of this machine share, what is really sent, headers included. The last line is a JSON object
with the figures. Linux only, because it reads /proc; nothing else may use the loopback device meanwhile.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from commands.local_processes import free_ports
from configs.errors import UserError
from configs.load import load_config
from configs.schema import MeshConfig, RunConfig
from meshtf import tf
from runtime.cluster.rendezvous import connect
from runtime.cluster.spec import Cluster
from runtime.mesh.multi_process import Collectives, Group, ProcessPlacement, place_process
from runtime.mesh.placement import Placement, place
from runtime.planning.dry_run import build_dry_step, dry_placement
from runtime.run.memory import peak_resident_bytes
from runtime.training.steps import build_train_step

LONG = ("n_ctx=4096", "n_layer=2", 'attention_types=[[["global"],2]]', "train_batch_size=1")
MIB = 2**20


@dataclasses.dataclass(frozen=True)
class Row:
    """The figures of a number of processes; bytes a step are those that all of them send together.

    Attributes:
        peak_mib: of the largest process, above what it held before it built its step.
        seconds: of a step.
        payload_bytes: counted at the collectives.
        planned_bytes: by the plan.
        loopback_bytes: by the counters of the loopback device.
    """

    n_processes: int
    peak_mib: float
    seconds: float
    payload_bytes: float
    planned_bytes: float
    loopback_bytes: float


class CountedCollectives(Collectives):
    """Adds up what one process sends by ring algorithms, as `runtime.planning.dry_run.Transfer` counts it.

    Attributes:
        sent_bytes: by the newest graph: one that creates variables is traced twice.
    """

    sent_bytes = 0.0
    _graph: tf.Graph | None = None

    def _add(self, share: float, x: tf.Tensor) -> None:
        graph = tf.compat.v1.get_default_graph()
        self.sent_bytes = share * _bytes(x) + (self.sent_bytes if graph is self._graph else 0.0)
        self._graph = graph

    def reduce(self, x: tf.Tensor, group: Group, merge_operation: str) -> tf.Tensor:
        """See `Collectives.reduce`."""
        self._add(2 * (group.size - 1) / group.size, x)
        return super().reduce(x, group, merge_operation)

    def gather(self, x: tf.Tensor, group: Group) -> tf.Tensor:
        """See `Collectives.gather`."""
        self._add(group.size - 1, x)
        return super().gather(x, group)

    def all_to_all(self, parts: tf.Tensor, group: Group) -> tf.Tensor:
        """See `Collectives.all_to_all`."""
        self._add((group.size - 1) / group.size, parts)
        return super().all_to_all(parts, group)

    def send(self, x: tf.Tensor, group: Group, key: int) -> None:
        """See `Collectives.send`."""
        self._add(1, x)
        super().send(x, group, key)


def _bytes(x: tf.Tensor) -> int:
    return x.shape.num_elements() * x.dtype.size


def counted(placement: ProcessPlacement) -> ProcessPlacement:
    """Returns a placement whose `collectives` count what graphs without loops send, each time that they run."""
    return dataclasses.replace(placement, collectives=CountedCollectives(placement.devices[0]))


def planned_bytes(config: RunConfig, n_processes: int) -> float:
    """Returns the bytes that all processes send in a step, by the plan."""
    step = build_dry_step(config, dry_placement(config.mesh, n_processes))
    return n_processes * sum(transfer.sent_bytes for transfer in step.transfers)


def on_mesh(config: RunConfig, n_processes: int) -> RunConfig:
    """Returns the run with its sequence split over the processes."""
    mesh = MeshConfig(mesh_shape=(("x", n_processes),), layout=(("sequence", "x"),))
    return dataclasses.replace(config, mesh=mesh if n_processes > 1 else MeshConfig())


def serve_steps(config: RunConfig, hosts: Sequence[str], index: int) -> None:
    """Runs as many steps as each line of standard input says; then prints seconds, peak bytes and payload of a step."""
    config = on_mesh(config, len(hosts))
    if len(hosts) == 1:
        _serve(config, place(config.mesh, ["/device:CPU:0"]))
        return
    with connect(Cluster(tuple(hosts), index), wait_seconds=120.0) as group:
        _serve(config, counted(place_process(config.mesh, index, group.size, group.device)))


def _serve(config: RunConfig, placement: Placement | ProcessPlacement) -> None:
    base, training = peak_resident_bytes(), config.training
    step = build_train_step(config, placement)
    placement.store.initialize(training.seed)
    shape = (training.train_batch_size, config.model.n_ctx)
    ids = np.random.default_rng(0).integers(0, config.model.n_vocab, (2, *shape), dtype=np.int32)
    weights = np.full(shape, 1.0 / np.prod(shape), np.float32)
    sent = placement.collectives.sent_bytes if isinstance(placement, ProcessPlacement) else 0.0
    for line in sys.stdin:
        start = time.perf_counter()
        for _ in range(int(line)):
            step(*ids, weights, np.float32(1e-4), np.int32(0), np.int32(0))
        print(time.perf_counter() - start, peak_resident_bytes() - base, sent, flush=True)


def loopback_bytes() -> int:
    """Returns the bytes that the loopback device has sent since the machine started."""
    (line,) = (line for line in Path("/proc/net/dev").read_text().splitlines() if line.strip().startswith("lo:"))
    return int(line.split(":")[1].split()[8])


def measure(arguments: argparse.Namespace, config: RunConfig, n_processes: int) -> Row:
    """Runs processes that train together."""
    hosts = [f"127.0.0.1:{port}" for port in free_ports(n_processes)]
    command = [sys.executable, __file__, "--model", arguments.model, *(f"--set={value}" for value in arguments.set)]
    processes = [
        subprocess.Popen(
            [*command, "--hosts", *hosts, "--host_index", str(index)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for index in range(n_processes)
    ]
    try:
        _answers(processes, 1)
        before = loopback_bytes()
        seconds, peaks, sent = np.transpose(_answers(processes, arguments.steps))
        moved = (loopback_bytes() - before) / arguments.steps
    finally:
        for process in processes:
            process.kill()
            process.wait()
    planned = planned_bytes(on_mesh(config, n_processes), n_processes) if n_processes > 1 else 0.0
    return Row(n_processes, peaks.max() / MIB, seconds.max() / arguments.steps, sent.sum(), planned, moved)


def _answers(processes: Sequence[subprocess.Popen], n_steps: int) -> list[list[float]]:
    for process in processes:
        print(n_steps, file=process.stdin, flush=True)
    answers = [process.stdout.readline() for process in processes]
    if not all(answers):
        raise SystemExit("a process has ended; its output is above")
    return [list(map(float, answer.split())) for answer in answers]


def parse_arguments() -> argparse.Namespace:
    """Parses the command line."""
    parser = argparse.ArgumentParser(description="Measure a long sequence on more and more processes.")
    parser.add_argument("--model", default="benchmark_small", help="a name (configs/NAME.json) or a path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4], help="how many (default 1 2 4)")
    parser.add_argument("--steps", type=int, default=3, help="steps measured (default 3)")
    parser.add_argument("--hosts", nargs="+", help=argparse.SUPPRESS)  # of the measured processes
    parser.add_argument("--host_index", type=int, help=argparse.SUPPRESS)
    return parser.parse_args()


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    arguments = parse_arguments()
    try:
        config = load_config(arguments.model, [*LONG, *arguments.set])
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    if arguments.hosts is not None:
        serve_steps(config, arguments.hosts, arguments.host_index)
        return 0
    rows = []
    print("processes  peak MiB  seconds  payload MB  planned MB  loopback MB")
    for n_processes in arguments.processes:
        row = measure(arguments, config, n_processes)
        rows.append(dataclasses.asdict(row))
        moved = (f"{size / 1e6:11.1f}" for size in (row.payload_bytes, row.planned_bytes, row.loopback_bytes))
        print(f"{n_processes:9}  {row.peak_mib:8.0f}  {row.seconds:7.2f}", *moved, flush=True)
    print(json.dumps({"model": config.name, "n_ctx": config.model.n_ctx, "rows": rows}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
