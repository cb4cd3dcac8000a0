"""Times a training step, and compares it with the speed of this machine's matrix products.

    python3 benchmarks/train_step.py --model benchmark_small

The ceiling is the time that the step's matrix products alone would take at the speed of one large product of the same
dtype. Steps and products are timed alternately, so that a machine that slows down slows both. The last line is a JSON
object with all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from configs.errors import UserError
from configs.load import load_config
from configs.schema import RunConfig
from meshtf import tf
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import place
from runtime.run.memory import peak_resident_bytes
from runtime.training.steps import build_train_step

CEILING_SIZE = 2048
PRODUCTS_PER_STEP = 4


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results; `share_of_ceiling` counts attention over the whole square, `..._causal` over visible positions."""

    model: str
    step_seconds: float
    tokens_per_second: float
    ceiling_flops_per_second: float
    share_of_ceiling: float
    share_of_ceiling_causal: float
    peak_memory_bytes: int
    seconds_to_first_step: float
    graph_nodes: int


def step_flops(config: RunConfig, attention_share: float) -> float:
    """Counts the floating-point operations of a step's matrix products: 2 per multiply-add, forward and twice backward.

    Args:
        config: the run.
        attention_share: fraction of the square of queries and keys to count.

    Source: Chowdhery et al. 2022, PaLM, appendix B.
    """
    model = config.model
    n_attention = sum(kind != "none" for kind in model.attention_types)
    feed_forward = (3 if model.is_gated else 2) * model.n_embd * model.feed_forward_width
    weights = n_attention * 4 * model.n_embd**2 + model.n_layer * feed_forward + model.n_vocab * model.n_embd
    attention = n_attention * 2 * model.n_ctx * model.n_embd * attention_share
    return 6.0 * (weights + attention) * config.training.train_batch_size * model.n_ctx


def seconds_since_process_start() -> float:
    """Returns the seconds since this process was started (Linux)."""
    started_ticks = int(Path("/proc/self/stat").read_text().rsplit(")", 1)[1].split()[19])
    return time.clock_gettime(time.CLOCK_BOOTTIME) - started_ticks / os.sysconf("SC_CLK_TCK")


def timed(function: Callable[[], object]) -> float:
    """Returns the seconds that a call takes."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def large_product(device: str, dtype: tf.DType) -> Callable[[], object]:
    """Returns a function that multiplies large matrices in sequence, and waits for the last product."""
    with tf.device(device):
        matrix = tf.cast(tf.random.normal([CEILING_SIZE, CEILING_SIZE], stddev=CEILING_SIZE**-0.5), dtype)

    @tf.function
    def multiply() -> tf.Tensor:
        product = matrix
        for _ in range(PRODUCTS_PER_STEP):
            product = tf.matmul(product, matrix)
        return product[0, 0]

    return lambda: multiply().numpy()


def measure(config: RunConfig, device: str, n_steps: int) -> Figures:
    """Builds the step, warms up, and times steps and products alternately."""
    placement = place(config.mesh, [device])
    step = build_train_step(config, placement)
    placement.store.initialize(config.training.seed)
    shape = (config.training.train_batch_size, config.model.n_ctx)
    ids = np.random.default_rng(0).integers(0, config.model.n_vocab, (2, *shape), dtype=np.int32)

    weights = np.full(shape, 1.0 / np.prod(shape), np.float32)

    def run_step() -> object:
        return step(*ids, weights, np.float32(1e-4), np.int32(0), np.int32(0))

    run_step()
    seconds_to_first_step = seconds_since_process_start()
    multiply = large_product(device, tf.as_dtype(config.model.precision))
    run_step(), multiply()
    pairs = [(timed(run_step), timed(multiply)) for _ in range(n_steps)]
    step_seconds, product_seconds = (statistics.median(column) for column in zip(*pairs, strict=True))
    ceiling = PRODUCTS_PER_STEP * 2.0 * CEILING_SIZE**3 / product_seconds
    return Figures(
        model=config.name,
        step_seconds=step_seconds,
        tokens_per_second=shape[0] * shape[1] / step_seconds,
        ceiling_flops_per_second=ceiling,
        share_of_ceiling=step_flops(config, 1.0) / step_seconds / ceiling,
        share_of_ceiling_causal=step_flops(config, 0.5) / step_seconds / ceiling,
        peak_memory_bytes=peak_resident_bytes(),
        seconds_to_first_step=seconds_to_first_step,
        graph_nodes=step.n_graph_nodes(),
    )


def format_table(figures: Figures) -> str:
    """Formats the figures, one per line."""
    rows = {
        "model": figures.model,
        "median step": f"{figures.step_seconds * 1e3:,.1f} ms",
        "speed": f"{figures.tokens_per_second:,.0f} tokens/s",
        "large product": f"{figures.ceiling_flops_per_second / 1e9:,.0f} GFLOP/s",
        "share of the ceiling": f"{figures.share_of_ceiling:.3f}",
        "  causal half only": f"{figures.share_of_ceiling_causal:.3f}",
        "peak memory": f"{figures.peak_memory_bytes / 2**20:,.0f} MiB",
        "start to first step": f"{figures.seconds_to_first_step:.1f} s",
        "graph nodes": f"{figures.graph_nodes:,}",
    }
    return "\n".join(f"{name:<22} {value}" for name, value in rows.items())


def parse_steps(text: str) -> int:
    """Parses --steps, an integer of at least 1."""
    if not (text.isascii() and text.isdigit() and int(text) >= 1):
        raise argparse.ArgumentTypeError(f"{text!r} is not an integer >= 1; give the number of steps")
    return int(text)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time a training step against the machine's matrix products.")
    parser.add_argument("--model", default="benchmark_small", help="a name (configs/NAME.json) or a path")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config")
    parser.add_argument("--gpu_ids", nargs=1, metavar="DEVICE", help="one device, as device:GPU:0")
    parser.add_argument("--steps", type=parse_steps, default=20, help="timed steps (default 20)")
    arguments = parser.parse_args()
    try:
        config = load_config(arguments.model, arguments.set)
        device = choose_devices(arguments.gpu_ids, None)[0]
    except UserError as error:
        print(error, file=sys.stderr)
        return 2
    figures = measure(config, device, arguments.steps)
    print(format_table(figures))
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
