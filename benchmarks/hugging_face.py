"""Hugging Face's `generate` in a process of its own: what benchmarks/generate.py compares with, and starts.

It needs torch and transformers, and nothing of ours. Each line of standard input is a JSON object that says what to
write; each answer is another one, on standard output.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

import torch
import transformers


def load(folder: str) -> transformers.PreTrainedModel:
    """The model of a folder, in float32; it knows of no token that ends a text, so it looks for none."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0  # of rows that have ended, which there are none of
    return model


def write(model: transformers.PreTrainedModel, asked: Mapping[str, object]) -> dict[str, object]:
    """What the model writes after `prompts`, [batch, length], on `n_threads`, and the seconds that it takes."""
    torch.set_num_threads(asked["n_threads"])
    start = time.perf_counter()
    prompts = torch.tensor(asked["prompts"])
    with torch.inference_mode():
        texts = model.generate(prompts, attention_mask=torch.ones_like(prompts), use_cache=True, **asked["settings"])
    tokens = texts[:, prompts.shape[1] :].tolist()
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def main() -> None:
    """Tells of itself, and then answers each line until they end."""
    torch.manual_seed(0)
    model = load(sys.argv[1])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions | {"n_threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(write(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
