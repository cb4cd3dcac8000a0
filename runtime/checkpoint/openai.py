"""Reads GPT-2 as OpenAI released it: a checkpoint of TensorFlow 1 with other names, beside its hparams.json."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping

from configs.errors import CheckpointError
from configs.families.gpt2 import GPT_2
from configs.weights import HPARAMS_FILE
from runtime.checkpoint.huggingface import count_layers, variables_of
from runtime.checkpoint.weight_sources import StoredTensor, Weights, in_parts

TOKEN_TABLE, POSITION_TABLE = "model/wte", "model/wpe"
BLOCK = re.compile(r"model/h(\d+)/")
OPTIMIZER = re.compile(r"/(Adam|Adagrad|Momentum|RMSProp)\w*$")  # added by programs that fine-tuned it


def is_openai(names: Iterable[str]) -> bool:
    """Whether the variables of a checkpoint are those of OpenAI's GPT-2."""
    return {TOKEN_TABLE, POSITION_TABLE} <= set(names)


def openai_weights(path: str, stored: Mapping[str, StoredTensor]) -> Weights:
    """Returns the variables of this project in a checkpoint of OpenAI's, by name; they are read on demand.

    Args:
        path: the prefix of the checkpoint.
        stored: all that it holds, by OpenAI's names.

    Raises:
        CheckpointError: a tensor is missing, unknown or of another shape.
    """
    (n_vocab, n_embd), n_ctx = stored[TOKEN_TABLE].shape, stored[POSITION_TABLE].shape[0]
    keys = {"n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": n_embd, "n_layer": count_layers(BLOCK, stored)}
    tensors = GPT_2.tensors(keys)
    left = {name: tensor for name, tensor in stored.items() if name.startswith("model/") and not OPTIMIZER.search(name)}
    found = {}
    for tensor in tensors:
        name = _openai_name(tensor.name)
        if name not in left:
            raise CheckpointError(f"{path}: has no tensor {name}; copy its files again")
        found[tensor.name] = _as_matrix(left.pop(name))
    return variables_of(tensors, found | left, keys, HPARAMS_FILE)


def _openai_name(name: str) -> str:
    """Returns OpenAI's name of a tensor of Hugging Face's GPT-2: h.0.ln_1.weight -> model/h0/ln_1/g."""
    *parts, last = re.sub(r"^h\.", "h", name).split(".")
    if len(parts) == 1 and parts[0] != "ln_f":
        return f"model/{parts[0]}"
    letter = "b" if last == "bias" else "g" if parts[-1].startswith("ln_") else "w"
    return "/".join(["model", *parts, letter])


def _as_matrix(stored: StoredTensor) -> StoredTensor:
    """Returns a kernel [1, in, out] of OpenAI's convolutions of width 1 as [in, out]."""
    if len(stored.shape) < 3:
        return stored
    return in_parts(stored.place, stored.shape[1:], lambda region: stored.read_part((slice(0, 1), *region))[0])
