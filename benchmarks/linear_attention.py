"""Measures how the memory and time of linear attention grow with the sequence length.

    python3 benchmarks/linear_attention.py

Each length has its own process, which runs the operation forward and backward. The memory is the peak of resident
memory during a run, less what was resident before it (compiled code and inputs). The time is the median of a few more
runs. The last line is a JSON object with the figures; `growth` is the ratio of the peaks when the sequence is 8 times
as long, and `time_growth` that of the times.
"""

from __future__ import annotations

import argparse
import ctypes
import dataclasses
import functools
import gc
import json
import os
import re
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from configs.schema import MeshConfig
from meshtf import mtf, tf
from models.ops.linear_attention import causal_linear_attention
from runtime.mesh.placement import place

SHAPE = {"batch": 2, "heads": 8, "features_per_head": 64}
FACTOR = 8
N_TIMED = 5


@dataclasses.dataclass(frozen=True)
class Figures:
    """The figures of one length.

    Attributes:
        length: sequence length.
        peak_bytes: peak memory of a run.
        first_seconds: duration of the first run, which compiles.
        seconds: median duration of later runs.
    """

    length: int
    peak_bytes: int
    first_seconds: float
    seconds: float


def resident_bytes(field: str) -> int:
    """Returns the resident memory of this process (Linux): VmRSS now, VmHWM at the peak."""
    (kibibytes,) = re.findall(rf"{field}:\s+(\d+) kB", Path("/proc/self/status").read_text())
    return int(kibibytes) * 1024


def release_freed_memory() -> None:
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def reset_peak() -> None:
    """Resets the peak to the memory that is resident now."""
    Path("/proc/self/clear_refs").write_text("5")


def attention_and_gradients(length: int) -> tf.types.experimental.ConcreteFunction:
    """Returns a compiled function of queries, keys, values and the gradient of the outputs."""
    shape = [SHAPE["batch"], length, SHAPE["heads"], SHAPE["features_per_head"]]
    names = ["batch", "sequence", "heads", "features_per_head"]
    mesh_shape = mtf.Shape([mtf.Dimension(name, size) for name, size in zip(names, shape, strict=True)])

    def run(*arrays: tf.Tensor) -> list[tf.Tensor]:
        graph = mtf.Graph()
        mesh = mtf.Mesh(graph, "mesh")
        *inputs, d_outputs = [mtf.import_tf_tensor(mesh, array, mesh_shape) for array in arrays]
        outputs = causal_linear_attention(*inputs)
        gradients = mtf.gradients([outputs], inputs, [d_outputs])
        mesh_impl = place(MeshConfig(), ["/device:CPU:0"]).implementation(SHAPE["batch"])
        lowering = mtf.Lowering(graph, {mesh: mesh_impl}, autostack=False)
        return [lowering.export_to_tf_tensor(tensor) for tensor in (outputs, *gradients)]

    return tf.function(run, autograph=False).get_concrete_function(*[tf.TensorSpec(shape)] * 4)


def peak_of(run: Callable[[], list[tf.Tensor]]) -> int:
    """Returns the peak memory of a run in bytes, results included."""
    release_freed_memory()
    reset_peak()
    before = resident_bytes("VmRSS")
    results = [result.numpy() for result in run()]
    peak_bytes = resident_bytes("VmHWM") - before
    # A lower figure would mean that memory of an earlier run was still resident before this one.
    assert peak_bytes >= sum(result.nbytes for result in results), f"measured {peak_bytes} bytes, less than the results"
    return peak_bytes


def seconds_of(run: Callable[[], list[tf.Tensor]]) -> float:
    """Returns the duration of a run, results included."""
    start = time.perf_counter()
    assert all(np.isfinite(result).all() for result in run())
    return time.perf_counter() - start


def measure_here(length: int) -> Figures:
    """Runs once to compile, once to measure memory, and a few times to measure the time."""
    function = attention_and_gradients(length)
    shape = (SHAPE["batch"], length, SHAPE["heads"], SHAPE["features_per_head"])
    inputs = [tf.constant(np.random.default_rng(seed).normal(size=shape).astype(np.float32)) for seed in range(4)]
    run = functools.partial(function, *inputs)
    first_seconds, peak_bytes = seconds_of(run), peak_of(run)
    return Figures(length, peak_bytes, first_seconds, statistics.median(seconds_of(run) for _ in range(N_TIMED)))


def measure(length: int) -> Figures:
    """Measures in a new process, which returns freed memory to the system at once."""
    command = [sys.executable, str(Path(__file__).resolve()), "--measure_here", str(length)]
    environment = {**os.environ, "MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
    environment["TF_ENABLE_ONEDNN_OPTS"] = "0"  # with it, TensorFlow keeps freed memory in a pool
    run = subprocess.run(command, env=environment, stdout=subprocess.PIPE, text=True, check=True)
    return Figures(**json.loads(run.stdout.splitlines()[-1]))


def measured_growth(length: int) -> float:
    """Returns the ratio of the peaks at 8 times a length and at that length."""
    return measure(FACTOR * length).peak_bytes / measure(length).peak_bytes


def main() -> None:
    """Runs the benchmark."""
    parser = argparse.ArgumentParser(description="Measure linear attention, forward and backward.")
    parser.add_argument("--length", type=int, default=1024, help="the shorter sequence (default 1024)")
    parser.add_argument("--measure_here", type=int, metavar="LENGTH", help="one length, in this process")
    arguments = parser.parse_args()
    if arguments.measure_here:
        print(json.dumps(dataclasses.asdict(measure_here(arguments.measure_here))))
        return
    short, long = measure(arguments.length), measure(FACTOR * arguments.length)
    for figures in (short, long):
        memory, times = f"{figures.peak_bytes / 2**20:>8,.0f} MiB", f"{figures.seconds:.3f} s"
        print(f"{figures.length:>6,} positions   {memory}   {times} (the first time {figures.first_seconds:.1f} s)")
    growth = {"growth": long.peak_bytes / short.peak_bytes, "time_growth": long.seconds / short.seconds}
    print(json.dumps({"figures": [dataclasses.asdict(figures) for figures in (short, long)], **growth}))


if __name__ == "__main__":
    main()
