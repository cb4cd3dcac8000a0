"""Reads a whole model from one file of PyTorch without a config.json, as DialoGPT released its weights."""

from __future__ import annotations

import dataclasses
import re

from configs.errors import CheckpointError
from configs.families.gpt2 import GPT_2
from configs.families.gpt_neo import GPT_NEO
from configs.families.tensors import SCORE
from configs.schema import NEXT_TOKEN, RANKING, ModelConfig
from runtime.checkpoint.huggingface import count_layers, variables_of
from runtime.checkpoint.weight_files import TensorFiles, find_tensors
from runtime.checkpoint.weight_sources import Weights

TABLES = ("wte.weight", "wpe.weight")
OF_GPT_2 = "h.0.attn.c_attn.weight"  # GPT-Neo keeps queries, keys and values apart
BLOCK, OUR_BLOCK = re.compile(r"h\.(\d+)\."), re.compile(r"gpt2/h(\d+)/")
FEATURES_PER_HEAD = 64  # of every GPT-2 that was released
DIALOGPT_CONFIGS = {(12, 768): "small", (24, 1024): "medium", (36, 1280): "large"}  # by layers and features


def read_state_dict(path: str) -> Weights:
    """Returns the variables in a file by name; the shapes of its tensors say what model it is.

    Messages name that model, since the name of the file may not: DialoGPT's small_reverse.pkl is of the medium size.

    Raises:
        CheckpointError: the file is broken, could run a program, or holds another kind of model.
    """
    found = find_tensors(TensorFiles([path]))
    for name in TABLES:
        if name not in found or len(found[name].shape) != 2:
            raise CheckpointError(f"{path}: has no table {name}, as GPT-2 and GPT-Neo have; give other weights")
    (n_vocab, n_embd), (n_ctx, _) = (found[name].shape for name in TABLES)
    n_layer = count_layers(BLOCK, found)
    objective = RANKING if SCORE.name in found else NEXT_TOKEN
    keys = {"n_vocab": n_vocab, "n_ctx": n_ctx, "n_embd": n_embd, "n_layer": n_layer, "objective": objective}
    tensors = (GPT_2 if OF_GPT_2 in found else GPT_NEO).tensors(keys)
    for name in (tensor.name for tensor in tensors if tensor.name not in found):
        raise CheckpointError(f"{path}: has no tensor {name}; copy the file again, or give other weights")
    size = _describe_size(n_layer, n_embd)
    described = {name: dataclasses.replace(tensor, place=f"{path} ({size}): {name}") for name, tensor in found.items()}
    return variables_of(tensors, described, keys, TABLES[0])


def model_of_state_dict(path: str) -> ModelConfig:
    """Returns the GPT-2 that a file holds, by the shapes of its tensors.

    Raises:
        CheckpointError: the file is broken or could run a program, or the number of its heads cannot be known.
    """
    weights = read_state_dict(path)
    (n_vocab, n_embd), (n_ctx, _) = (weights[f"gpt2/{name}"].shape for name in ("wte", "wpe"))
    if "gpt2/h0/attn/q_bias" not in weights or n_embd % FEATURES_PER_HEAD:
        raise CheckpointError(f"{path}: does not tell how many heads its model has; give a folder with a config.json")
    return ModelConfig(
        n_head=n_embd // FEATURES_PER_HEAD,
        n_embd=n_embd,
        n_layer=count_layers(OUR_BLOCK, weights),
        n_ctx=n_ctx,
        n_vocab=n_vocab,
        qkv_bias=True,
        scale_attn_weights=True,
        objective=RANKING if "gpt2/score" in weights else NEXT_TOKEN,
    )


def _describe_size(n_layer: int, n_embd: int) -> str:
    config = DIALOGPT_CONFIGS.get((n_layer, n_embd))
    return f"{n_layer} layers of {n_embd} features" + (f", as dialogpt_{config}" if config else "")
