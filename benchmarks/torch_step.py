"""Times a training step of Hugging Face's GPT-2 in PyTorch, in the sizes of a config, to compare train_step.py with.

    .venv-parity/bin/python benchmarks/torch_step.py --model gpt2_small --n_ctx 512 --batch_size 2

It needs torch and transformers, as `make parity` installs them. The step is that of train_step.py: loss, gradients,
clipping and AdamW, without dropout. The last line is a JSON object with the figures; the peak counts the compiler too.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import sys
import time
from pathlib import Path

try:
    import torch
    from transformers import GPT2Config, GPT2LMHeadModel
except ImportError as error:
    print(f"{error.name}: not installed; run `make parity`, then .venv-parity/bin/python", file=sys.stderr)
    sys.exit(2)

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
STATUS_FILE = Path("/proc/self/status")


@dataclasses.dataclass(frozen=True)
class Figures:
    """The results."""

    step_seconds: float
    tokens_per_second: float
    peak_memory_bytes: int
    seconds_to_first_step: float


def peak_resident_bytes() -> int:
    """Returns the peak resident memory of this process (Linux)."""
    lines = dict(line.split(":", 1) for line in STATUS_FILE.read_text().splitlines())
    return int(lines["VmHWM"].split()[0]) * 1024


def build_model(path: Path, n_ctx: int) -> GPT2LMHeadModel:
    """Builds a model with the sizes of one of our configs and random weights."""
    own = json.loads(path.read_text())
    sizes = {"vocab_size": own["n_vocab"], "n_positions": n_ctx, "n_embd": own["n_embd"]}
    sizes |= {"n_layer": own["n_layer"], "n_head": own["n_head"]}
    return GPT2LMHeadModel(GPT2Config(**sizes, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, use_cache=False))


def measure(model: GPT2LMHeadModel, batch_size: int, n_steps: int, is_compiled: bool, dtype: torch.dtype) -> Figures:
    """Warms up with two steps, and times the others."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    ids = torch.randint(model.config.vocab_size, (batch_size, model.config.n_positions))
    forward = torch.compile(model) if is_compiled else model

    def run_step() -> None:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            loss = forward(ids, labels=ids).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    start = time.perf_counter()
    run_step()
    seconds_to_first_step = time.perf_counter() - start
    run_step()
    seconds = []
    for _ in range(n_steps):
        start = time.perf_counter()
        run_step()
        seconds.append(time.perf_counter() - start)
    median = statistics.median(seconds)
    return Figures(median, ids.numel() / median, peak_resident_bytes(), seconds_to_first_step)


def main() -> int:
    """Runs the benchmark; returns the exit status."""
    parser = argparse.ArgumentParser(description="Time a training step of Hugging Face's GPT-2 in PyTorch.")
    parser.add_argument("--model", default="gpt2_small", help="a name (configs/NAME.json)")
    parser.add_argument("--n_ctx", type=int, default=512)
    parser.add_argument("--batch_size", type=int, default=2)
    parser.add_argument("--steps", type=int, default=6, help="timed steps (default 6)")
    parser.add_argument("--eager", action="store_true", help="without torch.compile")
    parser.add_argument("--dtype", choices=("float32", "bfloat16"), default="float32", help="bfloat16: by autocast")
    arguments = parser.parse_args()
    path = CONFIGS / f"{arguments.model}.json"
    if not path.is_file():
        parser.error(f"--model: {arguments.model}: no such file: {path}; give a name of configs/ such as gpt2_small")
    torch.manual_seed(0)
    model = build_model(path, arguments.n_ctx)
    dtype = getattr(torch, arguments.dtype)
    figures = measure(model, arguments.batch_size, arguments.steps, not arguments.eager, dtype)
    print(f"median step   {figures.step_seconds * 1e3:,.0f} ms, {figures.tokens_per_second:,.0f} tokens/s")
    print(f"peak memory   {figures.peak_memory_bytes / 2**20:,.0f} MiB")
    print(json.dumps(dataclasses.asdict(figures)))
    return 0


if __name__ == "__main__":
    sys.exit(main())
