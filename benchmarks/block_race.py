"""Races blocks and optimisers on the quickstart's text, at equal parameters and equal steps.

    python3 benchmarks/block_race.py --steps 300

Each entrant trains with three learning rates, and with more if the best is the first or the last; then again with the
best one and two more seeds. A slower entrant also trains for as long as the first takes, in fewer steps. Times are CPU
time on one thread, which other programs hardly change. The last line is a JSON object with all figures.
"""

from __future__ import annotations

import argparse
import dataclasses
import itertools
import json
import statistics
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

import numpy as np

from benchmarks.train_step import parse_steps
from commands.run_data import RunData
from configs.load import load_config
from configs.schema import RunConfig
from inputs import evaluation_batches, training_batches
from meshtf import tf
from models.kernels.noise import noise_key
from runtime.mesh.devices import choose_devices
from runtime.mesh.placement import Placement, place
from runtime.training.evaluation import TokenCounts, evaluate
from runtime.training.lr_schedules import learning_rate
from runtime.training.steps import build_eval_step, build_train_step

RATES = (0.0015, 0.003, 0.006)
SEEDS = (1, 2, 3)
# The block of GPT-2 and GPT-Neo in the place of the quickstart's, which is Llama's with as many parameters.
GPT_NEO = {
    "norm": "layernorm",
    "gated_mlp": False,
    "activation_function": "gelu",
    "mlp_bias": True,
    "n_inner": None,
    "attn_output_bias": True,
    "rotary_emb": False,
    "scale_attn_weights": False,
    "scale_by_depth": True,
    "n_kv_head": None,
    "attention_types": [[["global", "local", "global"], 1]],
    "local_attention_radius": 64,
}
ENTRANTS: Mapping[str, Mapping[str, object]] = {
    "GPT-Neo's block, adam": {**GPT_NEO, "opt_name": "adam", "epsilon": 1e-6},
    "Llama's block, adamw": {"opt_name": "adamw"},
    "Llama's block, muon": {"opt_name": "muon"},
}


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results of one entrant.

    Attributes:
        losses_by_rate: held-out nats per token with the first seed, by learning rate.
        losses: with the best rate, by seed.
        step_seconds: median CPU time of a training step.
        steps_in_equal_time: in which it takes as long as the first entrant.
        losses_in_equal_time: after those, by seed.
    """

    parameters: int
    losses_by_rate: dict[float, float]
    best_rate: float
    losses: list[float]
    step_seconds: float
    steps_in_equal_time: int
    losses_in_equal_time: list[float]


@dataclasses.dataclass(frozen=True)
class Entrant:
    """A model and an optimiser, compiled.

    Attributes:
        data: the texts.
        step: of training, which updates the variables of `placement`.
        measure: returns the held-out loss of the variables.
    """

    config: RunConfig
    data: RunData
    placement: Placement
    step: Callable[..., Mapping[str, np.ndarray]]
    measure: Callable[[], float]

    @staticmethod
    def of(changes: Mapping[str, object]) -> Entrant:
        """Compiles the quickstart with these keys changed."""
        config = load_config("quickstart", [f"{key}={json.dumps(value)}" for key, value in changes.items()])
        placement, data = place(config.mesh, choose_devices(None, None)[:1]), RunData.of(config)
        step, eval_step = build_train_step(config, placement), build_eval_step(config, placement)

        def measure() -> float:
            counts = TokenCounts(has_likelihood=True, padding_id=config.data.padding_id, bytes_V=None)
            return evaluate(eval_step, evaluation_batches(config, data.eval_patterns()), counts)["loss"]

        return Entrant(config, data, placement, step, measure)

    def train(self, rate: float, seed: int, n_steps: int) -> tuple[float, float]:
        """Trains from the start; returns the held-out loss and the median CPU seconds of a step."""
        training = dataclasses.replace(self.config.training, lr=rate, seed=seed, train_steps=n_steps)
        config = dataclasses.replace(self.config, training=training)
        self.placement.store.initialize(seed)
        batches, seconds = training_batches(config, self.data.train_patterns()), []
        for number, batch in enumerate(itertools.islice(batches, n_steps)):
            start = time.process_time()
            rate_now = learning_rate(number, training, config.model.n_embd)
            self.step(*batch.training_inputs, np.float32(rate_now), np.int32(number), noise_key(seed, number))
            seconds.append(time.process_time() - start)
        return self.measure(), statistics.median(seconds)


def try_rates(entrant: Entrant, name: str, n_steps: int) -> dict[float, tuple[float, float]]:
    """Trains with each of `RATES`, and beyond them until the best one lies between two others; results by rate."""
    results: dict[float, tuple[float, float]] = {}
    left = list(RATES)
    while left:
        rate = left.pop(0)
        results[rate] = entrant.train(rate, SEEDS[0], n_steps)
        print(f"{name}, lr {rate:g}: {results[rate][0]:.4f} nats", flush=True)
        best = min(results, key=lambda rate: results[rate][0])
        if not left and best in (min(results), max(results)):
            left = [best / 2 if best == min(results) else best * 2]
    return results


def race(name: str, changes: Mapping[str, object], n_steps: int, seconds_to_equal: float | None) -> Figures:
    """Trains an entrant as often as needed; `seconds_to_equal` are those of the first entrant's step."""
    entrant = Entrant.of(changes)
    by_rate = try_rates(entrant, name, n_steps)
    best = min(by_rate, key=lambda rate: by_rate[rate][0])
    runs = [by_rate[best], *(entrant.train(best, seed, n_steps) for seed in SEEDS[1:])]
    step_seconds = statistics.median(seconds for _, seconds in [*by_rate.values(), *runs[1:]])
    equal_steps = min(n_steps, round(n_steps * (seconds_to_equal or step_seconds) / step_seconds))
    is_slower = equal_steps < n_steps
    in_equal_time = [entrant.train(best, seed, equal_steps) for seed in SEEDS] if is_slower else runs
    return Figures(
        parameters=entrant.placement.store.n_trainable_parameters(),
        losses_by_rate={rate: loss for rate, (loss, _) in by_rate.items()},
        best_rate=best,
        losses=[loss for loss, _ in runs],
        step_seconds=step_seconds,
        steps_in_equal_time=equal_steps,
        losses_in_equal_time=[loss for loss, _ in in_equal_time],
    )


def format_table(results: Mapping[str, Figures]) -> str:
    """Formats the figures, one entrant a line: means and ranges over seeds."""

    def spread(losses: Sequence[float]) -> str:
        return f"{statistics.mean(losses):.3f} ({min(losses):.3f} to {max(losses):.3f})"

    lines = [f"{'':<24}{'parameters':>11}{'lr':>8}{'ms a step':>10}  {'loss':<24}{'in equal time':<24}steps"]
    lines += [
        f"{name:<24}{own.parameters:>11,}{own.best_rate:>8g}{own.step_seconds * 1e3:>10.0f}  "
        f"{spread(own.losses):<24}{spread(own.losses_in_equal_time):<24}{own.steps_in_equal_time}"
        for name, own in results.items()
    ]
    return "\n".join(lines)


def main() -> int:
    """Runs the race; returns the exit status."""
    parser = argparse.ArgumentParser(description="Race blocks and optimisers on the quickstart's text.")
    parser.add_argument("--steps", type=parse_steps, default=300, help="training steps of each run (default 300)")
    arguments = parser.parse_args()
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    results: dict[str, Figures] = {}
    for name, changes in ENTRANTS.items():
        first = next(iter(results.values()), None)
        results[name] = race(name, changes, arguments.steps, first and first.step_seconds)
        print(json.dumps({name: dataclasses.asdict(results[name])}), flush=True)
    print(format_table(results))
    print(json.dumps({name: dataclasses.asdict(figures) for name, figures in results.items()}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
