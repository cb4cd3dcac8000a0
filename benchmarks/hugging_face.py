"""Runs Hugging Face's `generate` in a process of its own, which benchmarks/generate.py starts.

It needs torch and transformers, and nothing of Neomesh. Each line of standard input is a request as a JSON object, and
each line of standard output the response to one.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping

import torch
import transformers


def load(folder: str) -> transformers.PreTrainedModel:
    """Loads the model of a directory in float32, without an end-of-text token."""
    model = transformers.AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0  # for rows that have ended, of which there are none
    return model


def generate(model: transformers.PreTrainedModel, request: Mapping[str, object]) -> dict[str, object]:
    """Returns the tokens generated after `prompts` [batch, length] on `n_threads`, and the seconds taken."""
    torch.set_num_threads(request["n_threads"])
    start = time.perf_counter()
    prompts = torch.tensor(request["prompts"])
    with torch.inference_mode():
        texts = model.generate(prompts, attention_mask=torch.ones_like(prompts), use_cache=True, **request["settings"])
    tokens = texts[:, prompts.shape[1] :].tolist()
    return {"seconds": time.perf_counter() - start, "tokens": tokens}


def main() -> None:
    """Prints the versions, and then answers each line of input."""
    torch.manual_seed(0)
    model = load(sys.argv[1])
    versions = {"torch": torch.__version__, "transformers": transformers.__version__}
    print(json.dumps(versions | {"n_threads": torch.get_num_threads()}), flush=True)
    for line in sys.stdin:
        print(json.dumps(generate(model, json.loads(line))), flush=True)


if __name__ == "__main__":
    main()
