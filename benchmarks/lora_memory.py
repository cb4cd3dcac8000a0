"""Measures the memory of fine-tuning adapters against that of training everything, at the size of GPT-2 small.

    python3 benchmarks/lora_memory.py
    python3 benchmarks/lora_memory.py --n_ctx 256 --repeats 1

Each measurement is a process of its own, which takes two steps of AdamW on one sequence, the two kinds in turn. The
figure is the peak of resident memory (VmHWM) above that of the process with TensorFlow loaded and nothing built. The
last line is a JSON object with the medians.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

GIB = 1 << 30
N_STEPS = 2
SIZES = {"n_head": 12, "n_embd": 768, "n_layer": 12, "n_vocab": 50257, "qkv_bias": True, "scale_attn_weights": True}
KINDS: dict[str, dict[str, Any]] = {"everything": {}, "adapters": {"lora_rank": 8}}


def train(kind: str, n_ctx: int) -> dict[str, float]:
    """Takes two steps, and returns the peak memory of this process in bytes, before and after, and its parameters."""
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
    from runtime.mesh.placement import place
    from runtime.training.steps import build_train_step

    config = RunConfig(
        name="measured",
        model_path="unused",
        model=ModelConfig(**SIZES, n_ctx=n_ctx, **KINDS[kind]),
        training=TrainingConfig(train_batch_size=1, train_steps=N_STEPS, opt_name="adamw"),
        evaluation=EvaluationConfig(eval_batch_size=1),
        prediction=PredictionConfig(),
        data=DataConfig(no_dataset=True),
        mesh=MeshConfig(),
    )
    placement = place(config.mesh, ["/device:CPU:0"])
    base = _peak_bytes()
    step = build_train_step(config, placement)
    placement.store.initialize(seed=1)
    ids = np.random.default_rng(0).integers(0, config.model.n_vocab, (1, n_ctx + 1), dtype=np.int32)
    weights = np.full((1, n_ctx), 1.0 / n_ctx, np.float32)
    for number in range(N_STEPS):
        step(ids[:, :-1], ids[:, 1:], weights, np.float32(1e-4), np.int32(number), np.int32(number))
    store = placement.store
    counts = {"parameters": store.n_parameters(), "trained": store.n_trainable_parameters()}
    return {"base": base, "above_base": _peak_bytes() - base, **counts}


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(n_ctx: int, repeats: int) -> dict[str, Any]:
    """Measures both kinds in turn, and compares their medians."""
    found: dict[str, list[dict[str, float]]] = {kind: [] for kind in KINDS}
    environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
    for number in range(repeats):
        for kind in KINDS:
            command = [sys.executable, __file__, "--train", kind, "--n_ctx", str(n_ctx)]
            output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
            found[kind].append(json.loads(output.splitlines()[-1]))
            print(f"{kind} {number + 1}: {found[kind][-1]['above_base'] / GIB:.2f} GiB", flush=True)
    above = {kind: statistics.median(run["above_base"] for run in runs) for kind, runs in found.items()}
    adapted = found["adapters"][0]
    return {
        "n_ctx": n_ctx,
        "parameters": adapted["parameters"],
        "trained": adapted["trained"],
        "trained_share": round(adapted["trained"] / adapted["parameters"], 5),
        "base_gib": round(adapted["base"] / GIB, 3),
        **{f"{kind}_gib": round(own / GIB, 3) for kind, own in above.items()},
        "ratio": round(above["adapters"] / above["everything"], 3),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n_ctx", type=int, default=1024, help="tokens of the sequence")
    parser.add_argument("--repeats", type=int, default=3, help="processes of each kind")
    parser.add_argument("--train", choices=KINDS, help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.train:
        print(json.dumps(train(options.train, options.n_ctx)))
    else:
        print(json.dumps(measure(options.n_ctx, options.repeats)))


if __name__ == "__main__":
    main()
