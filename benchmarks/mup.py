"""Checks muP: activations that do not grow with the width, and a learning rate that transfers over it.

    python3 benchmarks/mup.py --picture docs/assets/mup.png

Models of several widths are trained for a few steps on one batch of Python's standard library, byte by byte, with the
ordinary parametrization and with muP, which are the same at the smallest width. Drawn are the mean absolute values of
the residual stream after each block and of the logits, and how far the logits have moved since the first step. Then
models are trained with several learning rates, to see which is best at each width. The last line is a JSON object:
`exponents` are the slopes of the logarithms over that of the width after the last step, 0 where nothing depends on it.

Source: Yang et al. 2022, Tensor Programs V, section D.1 (the coordinate check) and figure 1.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from configs.schema import (
    DataConfig,
    EvaluationConfig,
    MeshConfig,
    ModelConfig,
    PredictionConfig,
    RunConfig,
    TrainingConfig,
)
from meshtf import mtf, tf
from models import gpt2
from models.context import Context
from models.dims import Dims
from runtime.mesh.devices import choose_devices
from runtime.mesh.lowering import LoweredStep, compile_step, id_spec, lower, new_mesh
from runtime.mesh.placement import Placement, place
from runtime.training.steps import build_train_step
from storage.pictures import write_png

WIDTHS, TRAINED_WIDTHS = (64, 128, 256, 512), (64, 128, 256)
N_LAYER, N_CTX, BATCH_SIZE, N_VOCAB = 2, 64, 8, 256
CHECKED_RATE, CHECKED_STEPS = 0.01, 4
RATES = tuple(0.001 * 2**power for power in range(7))
NAMES = {False: "ordinary", True: "muP"}


def config_of(width: int, has_mup: bool, opt_name: str) -> RunConfig:
    """Returns the config of a model with four heads and its training."""
    sizes = {"n_embd": width, "n_head": 4, "n_layer": N_LAYER, "n_ctx": N_CTX, "n_vocab": N_VOCAB}
    return RunConfig(
        name="mup",
        model_path="unused",
        model=ModelConfig(**sizes, scale_attn_weights=True, mup_base_width=WIDTHS[0] if has_mup else 0),
        training=TrainingConfig(train_batch_size=BATCH_SIZE, train_steps=1, opt_name=opt_name, gradient_clipping=1.0),
        evaluation=EvaluationConfig(eval_batch_size=BATCH_SIZE),
        prediction=PredictionConfig(),
        data=DataConfig(no_dataset=True),
        mesh=MeshConfig(),
    )


def read_text() -> np.ndarray:
    """Returns the bytes of the modules of Python's standard library, one after the other."""
    files = sorted(Path(os.__file__).parent.glob("*.py"))
    return np.frombuffer(b"".join(file.read_bytes() for file in files), np.uint8).astype(np.int32)


def batches(text: np.ndarray) -> Iterator[tuple[np.ndarray, ...]]:
    """Yields tokens, labels and weights [batch, sequence], from random places, always the same ones."""
    generator = np.random.default_rng(0)
    weights = np.full((BATCH_SIZE, N_CTX), 1.0 / (BATCH_SIZE * N_CTX), np.float32)
    while True:
        starts = generator.integers(0, len(text) - N_CTX, (BATCH_SIZE, 1))
        ids = text[starts + np.arange(N_CTX + 1)]
        yield ids[:, :-1], ids[:, 1:], weights


# The coordinate check.


def build_observation(config: RunConfig, placement: Placement) -> LoweredStep:
    """Builds a step from tokens to the mean absolute `block 1`, ..., and `logits`, and `values`, the logits."""

    def step(tokens: tf.Tensor) -> dict[str, tf.Tensor]:
        graph, mesh = new_mesh()
        dims = Dims.of(config.model, BATCH_SIZE, N_CTX)
        shape = mtf.Shape([dims.batch, dims.sequence])
        logits = gpt2.logits(Context(mesh, config.model, dims), mtf.import_tf_tensor(mesh, tokens, shape))
        stream = mtf.Shape([*shape.dims, dims.embd])
        sums = [operation.outputs[0] for operation in graph.operations if isinstance(operation, mtf.AddOperation)]
        states = [x for x in sums if x.shape == stream][2::2]  # after the embeddings, each half of a block adds to it
        observed = {f"block {number}": state for number, state in enumerate(states, 1)} | {"logits": logits}
        means = {name: mtf.reduce_mean(mtf.abs(x)) for name, x in observed.items()}
        return lower(graph, mesh, placement.implementation(BATCH_SIZE), means | {"values": logits})

    return compile_step(step, id_spec(BATCH_SIZE, N_CTX))


def check_coordinates(config: RunConfig, text: np.ndarray) -> dict[str, list[float]]:
    """Trains on one batch; returns the mean absolute values before each step and after the last, by name."""
    placement = place(config.mesh, choose_devices(None, None)[:1])
    step, observe = build_train_step(config, placement), build_observation(config, placement)
    placement.store.initialize(config.training.seed)
    batch, observed = next(batches(text)), []
    for number in range(CHECKED_STEPS + 1):
        observed.append(dict(observe(batch[0])))
        step(*batch, np.float32(CHECKED_RATE), np.int32(number), np.int32(number))
    moved = [{"change of logits": np.abs(each["values"] - observed[0]["values"]).mean()} for each in observed]
    both = [before | after for before, after in zip(observed, moved, strict=True)]
    return {name: [float(each[name]) for each in both] for name in both[0] if name != "values"}


def exponent(values: Sequence[float]) -> float:
    """Returns the slope of the logarithms of values of each of `WIDTHS` over that of the width."""
    return float(np.polyfit(np.log(WIDTHS), np.log(values), 1)[0])


# The transfer of the learning rate.


def final_losses(config: RunConfig, text: np.ndarray, n_steps: int) -> list[float]:
    """Trains with each rate; returns the mean losses of the last tenth of the steps."""
    placement = place(config.mesh, choose_devices(None, None)[:1])
    step, losses = build_train_step(config, placement), []
    for rate in RATES:
        placement.store.initialize(config.training.seed)
        own = [
            float(step(*batch, np.float32(rate * min(1.0, (number + 1) / 10)), np.int32(number), np.int32(0))["loss"])
            for number, batch in zip(range(n_steps), batches(text), strict=False)
        ]
        losses.append(float(np.mean(own[-max(n_steps // 10, 1) :])))
    return losses


# What is printed and drawn.

Observed = Mapping[int, Mapping[str, Sequence[float]]]  # by width, then name; a value a step


@dataclasses.dataclass(frozen=True)
class Results:
    """The results of one parametrization.

    Attributes:
        exponents: by name, after the last step.
        losses: by width, those of `RATES`.
        best_rates: by width.
    """

    exponents: dict[str, float]
    losses: dict[int, list[float]]
    best_rates: dict[int, float]

    @staticmethod
    def of(observed: Observed, losses: dict[int, list[float]]) -> Results:
        exponents = {name: exponent([observed[width][name][-1] for width in WIDTHS]) for name in observed[WIDTHS[0]]}
        best = {width: RATES[int(np.nanargmin(own))] for width, own in losses.items()}
        return Results(exponents, losses, best)


def draw(observed: Mapping[bool, Observed], results: Mapping[bool, Results], path: str) -> None:
    """Draws a row for each parametrization: each quantity over the width, a line a step, and losses over rates."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg  # imported here because it is slow
    from matplotlib.figure import Figure

    names = list(observed[False][WIDTHS[0]])
    figure = Figure(figsize=(3.0 * (len(names) + 1), 6.0), dpi=100, layout="constrained")
    FigureCanvasAgg(figure)
    rows = figure.subplots(2, len(names) + 1, sharey="col")
    for row, has_mup in zip(rows, (False, True), strict=True):
        for axes, name in zip(row, names, strict=False):
            for step in range(name == "change of logits", CHECKED_STEPS + 1):
                means = [observed[has_mup][width][name][step] for width in WIDTHS]
                axes.plot(WIDTHS, means, marker="o", markersize=3, label=f"step {step}")
            axes.set(title=f"{NAMES[has_mup]}: {name}", xlabel="width", xscale="log", yscale="log")
            axes.set_xticks(WIDTHS, [str(width) for width in WIDTHS])
            axes.minorticks_off()
        for width, losses in results[has_mup].losses.items():
            row[-1].plot(RATES, losses, marker="o", markersize=3, label=f"width {width}")
        row[-1].set(title=f"{NAMES[has_mup]}: loss", xlabel="lr", xscale="log")
        row[0].legend(fontsize=7)
        row[-1].legend(fontsize=7)
    write_png(figure, path)


def main() -> int:
    """Runs both checks; returns the exit status."""
    parser = argparse.ArgumentParser(description="Check muP over widths.")
    parser.add_argument("--opt_name", default="adamw", choices=("adam", "adamw", "lion", "muon"), help="the optimiser")
    parser.add_argument("--steps", type=int, default=120, help="training steps for each learning rate (default 120)")
    parser.add_argument("--picture", default="mup.png", help="where to draw (default mup.png)")
    arguments = parser.parse_args()
    text = read_text()
    observed, results = {}, {}
    for has_mup, name in NAMES.items():
        configs = {width: config_of(width, has_mup, arguments.opt_name) for width in WIDTHS}
        observed[has_mup] = {width: check_coordinates(config, text) for width, config in configs.items()}
        losses = {width: final_losses(configs[width], text, arguments.steps) for width in TRAINED_WIDTHS}
        results[has_mup] = Results.of(observed[has_mup], losses)
        print(name, json.dumps(dataclasses.asdict(results[has_mup])), flush=True)
    draw(observed, results, arguments.picture)
    print(json.dumps({name: dataclasses.asdict(results[has_mup]) for has_mup, name in NAMES.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
