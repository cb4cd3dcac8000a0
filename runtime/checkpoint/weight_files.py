"""The tensors in a folder of Hugging Face: in one file, or in shards with or without an index."""

from __future__ import annotations

import functools
import importlib
import json
import os
import pickle
import re
import sys
import warnings
import zipfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from safetensors import safe_open

from configs.errors import CheckpointError, UserError
from meshtf import tf
from runtime.checkpoint.weight_sources import Region, StoredTensor, finite, in_parts, reading

SAFETENSORS = "model.safetensors"
PICKLE = "pytorch_model.bin"
WEIGHT_FILES = (SAFETENSORS, f"{SAFETENSORS}.index.json", PICKLE, f"{PICKLE}.index.json")
SHARD = re.compile(r"(?P<stem>[^.].*)-(?P<number>\d+)-of-(?P<count>\d+)(?P<suffix>\.safetensors|\.bin)")
# The types of floating-point numbers, as safetensors name them.
FLOATING_POINT = {"F16": np.float16, "BF16": tf.bfloat16.as_numpy_dtype, "F32": np.float32, "F64": np.float64}
# Constants, though kept as weights: causal masks, and the frequencies of rotations.
CONSTANTS = re.compile(
    r"(h|layers)\.\d+\.(attn|attention|self_attn)\.(attention\.)?(bias|masked_bias|embed_positions|rotary_emb\.inv_freq)"
)
PREFIXES = ("model.", "transformer.", "gpt_neox.")  # of models, before the names of their tensors
# Modules of PyTorch and its trainers that wrap a model or a layer, and so prepend their name to those of its tensors.
WRAPPERS = re.compile(
    r"(?:(?<=\.)|^)(_orig_mod|module|_forward_module|_fsdp_wrapped_module|_checkpoint_wrapped_module)\."
)
STATE_KEYS = ("state_dict", "model_state_dict", "model", "module")  # under which trainers keep the tensors
MAX_SHARDS = 10_000
GIT_LFS_POINTER = b"version https://git-lfs.github.com/spec/"
UNSAFE_GLOBAL = re.compile(r"GLOBAL (\S+)")  # in PyTorch's message


@dataclass(frozen=True)
class TensorFiles:
    """The files with the tensors of a folder.

    Attributes:
        paths: the files.
        claims: which of them holds a tensor, by its short name, according to the index.
        index: the path of the index; empty: there is none.
    """

    paths: Sequence[str]
    claims: Mapping[str, str] = field(default_factory=dict)
    index: str = ""


def is_huggingface_folder(path: str) -> bool:
    """Whether a folder holds weights in Hugging Face's format."""
    return any(os.path.isfile(os.path.join(path, name)) for name in WEIGHT_FILES) or bool(_shard_sets(path))


def short_name(name: str) -> str:
    """Returns the name of a tensor without the prefix of its model, and without those of wrappers."""
    short = WRAPPERS.sub("", name)
    for prefix in PREFIXES:
        short = short.removeprefix(prefix)
    return short


def find_tensors(files: TensorFiles) -> dict[str, StoredTensor]:
    """Returns the weights in files, by their short names."""
    tensors: dict[str, StoredTensor] = {}
    for path in files.paths:
        opened = _open_safetensors(path) if path.endswith(".safetensors") else _open_pickle(path)
        for full_name, stored in opened.items():
            name = short_name(full_name)
            if name in tensors:
                raise CheckpointError(f"{stored.place}: is given twice, as {tensors[name].place} too; keep one")
            tensors[name] = stored
    return tensors


def weight_files(folder: str) -> TensorFiles:
    """Returns the files with tensors; prefers safetensors, as Hugging Face does.

    Raises:
        CheckpointError: there are none, the index cannot be followed, or a shard is missing.
    """
    name = next((name for name in WEIGHT_FILES if os.path.isfile(os.path.join(folder, name))), None)
    if name is None:
        return TensorFiles(_shards_without_index(folder))
    path = os.path.join(folder, name)
    if not name.endswith(".index.json"):
        return TensorFiles([path])
    with reading(path), open(path, encoding="utf-8") as file:
        shards = _shards_of_index(path, json.load(file)["weight_map"])
    missing = next((shard for shard in shards.values() if not os.path.isfile(os.path.join(folder, shard))), None)
    if missing is None:
        paths = sorted({os.path.join(folder, shard) for shard in shards.values()})
        return TensorFiles(
            paths, {short_name(tensor): os.path.join(folder, shard) for tensor, shard in shards.items()}, path
        )
    complete = [paths for paths in _shard_sets(folder).values() if None not in paths]
    if len(complete) != 1:
        raise CheckpointError(f"{os.path.join(folder, missing)}: is not there, but {name} names it; copy it too")
    print(
        f"{path}: names {missing}, which is not there; reading the {len(complete[0])} shards that are", file=sys.stderr
    )
    return TensorFiles(complete[0])


def _shards_of_index(path: str, weight_map: Any) -> dict[str, str]:
    """Returns the file of each tensor; a name that leads out of the folder could be that of any file."""
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{path}: weight_map does not give a file for each tensor; copy the file again")
    shards: dict[str, str] = dict(weight_map)
    outside = next((shard for shard in shards.values() if not shard or shard != os.path.basename(shard)), None)
    if outside is not None:
        raise CheckpointError(f"{path}: names {outside!r}, which is no file beside it; get the index from its source")
    return shards


def _shards_without_index(folder: str) -> list[str]:
    sets = _shard_sets(folder)
    if not sets:
        raise CheckpointError(f"{folder}: holds none of {', '.join(WEIGHT_FILES)}; give a folder with weights")
    name, paths = next(((name, paths) for name, paths in sets.items() if None not in paths), next(iter(sets.items())))
    if None in paths:
        number = paths.index(None) + 1
        raise CheckpointError(f"{folder}: holds shards {name}, but not number {number} of {len(paths)}; copy it too")
    return paths


def _shard_sets(folder: str) -> dict[str, list[str | None]]:
    """Returns the paths of shards that belong together, in order and None for a missing one; safetensors come first."""
    sets: dict[str, list[str | None]] = {}
    names = os.listdir(folder) if os.path.isdir(folder) else []
    for name in sorted(names, key=lambda name: (not name.endswith(".safetensors"), name)):
        found = SHARD.fullmatch(name)
        if found and 0 < int(found["number"]) <= int(found["count"]) <= MAX_SHARDS:
            pattern = f"{found['stem']}-*-of-{found['count']}{found['suffix']}"
            paths = sets.setdefault(pattern, [None] * int(found["count"]))
            paths[int(found["number"]) - 1] = os.path.join(folder, name)
    return sets


def _is_weight(name: str) -> bool:
    return not CONSTANTS.fullmatch(short_name(name))


def _check_dtype(place: str, dtype: str, is_floating_point: bool) -> None:
    if not is_floating_point:
        raise CheckpointError(f"{place}: is of {dtype}; give weights of floating-point numbers, not quantized")


def _open_safetensors(path: str) -> dict[str, StoredTensor]:
    """Returns the tensors in a file; of one, the file is mapped while a part of it is copied, and no longer."""
    _check_downloaded(path)
    with reading(path):
        names = set(safe_open(path, framework="np").keys())  # which checks the file
        begin, header = _header(path)
    entries = {name: entry for name, entry in header.items() if name in names and _is_weight(name)}
    for name, entry in entries.items():
        _check_dtype(f"{path}: {name}", entry["dtype"], entry["dtype"] in FLOATING_POINT)

    def part(name: str, region: Region) -> np.ndarray:
        dtype, shape = FLOATING_POINT[entries[name]["dtype"]], tuple(entries[name]["shape"])
        with reading(f"{path}: {name}"), np.errstate(over="ignore"):
            mapped = np.memmap(path, dtype, "r", begin + entries[name]["data_offsets"][0], shape)
            return finite(f"{path}: {name}", np.array(mapped[region], np.float32))

    return {
        name: in_parts(f"{path}: {name}", tuple(entry["shape"]), functools.partial(part, name))
        for name, entry in entries.items()
    }


def _check_downloaded(path: str) -> None:
    """Raises an error for what a clone without Git LFS leaves in the place of a large file."""
    with reading(path), open(path, "rb") as file:
        start = file.read(len(GIT_LFS_POINTER))
    if start == GIT_LFS_POINTER:
        raise CheckpointError(f"{path}: is a pointer of Git LFS, without the weights; run `git lfs pull` in its folder")


def _header(path: str) -> tuple[int, dict[str, Any]]:
    """Returns where the numbers of a file of safetensors begin, and the type, shape and place of each tensor."""
    with open(path, "rb") as file:
        length = int.from_bytes(file.read(8), "little")
        return 8 + length, json.loads(file.read(length))


def _open_pickle(path: str) -> dict[str, StoredTensor]:
    tensors = {name: tensor for name, tensor in _load_pickle(path).items() if _is_weight(name)}
    for name, tensor in tensors.items():
        if not hasattr(tensor, "is_floating_point"):
            raise CheckpointError(f"{path}: {name}: is not a tensor; save the state_dict of the model alone")
        _check_dtype(f"{path}: {name}", str(tensor.dtype), tensor.is_floating_point())

    def part(name: str, region: Region) -> np.ndarray:
        with reading(f"{path}: {name}"):
            return finite(f"{path}: {name}", tensors[name][region].float().numpy())

    return {
        name: in_parts(f"{path}: {name}", tuple(tensor.shape), functools.partial(part, name))
        for name, tensor in tensors.items()
    }


def _load_pickle(path: str) -> dict[str, Any]:
    """Returns the tensors in a file of PyTorch by name, and runs nothing that it holds."""
    torch = _torch(path)
    with reading(path), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about pickles that PyTorch did not write, which are refused
        try:
            # Files of PyTorch before 1.6 are not zip archives and cannot be mapped: they are read whole.
            loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=zipfile.is_zipfile(path))
        except pickle.UnpicklingError as error:  # PyTorch's message tells how to run it all the same
            raise CheckpointError(_describe_unsafe(path, str(error))) from None
    for key in STATE_KEYS:
        if isinstance(loaded, dict) and isinstance(loaded.get(key), dict):
            loaded = loaded[key]
    if not isinstance(loaded, dict) or not all(isinstance(name, str) for name in loaded):
        raise CheckpointError(f"{path}: holds no table of tensors by name; save the state_dict of the model alone")
    return loaded


def _describe_unsafe(path: str, reason: str) -> str:
    found = UNSAFE_GLOBAL.search(reason)
    what = (
        f"asks for {found[1]}, which is no tensor and could run a program,"
        if found
        else "holds something else than tensors,"
    )
    return f"{path}: {what} so it is not read; give {SAFETENSORS}, or a file that holds the state_dict alone"


def _torch(path: str) -> Any:
    """Imports PyTorch, which is optional because nothing else needs it."""
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise UserError(
            f"{path}: is PyTorch's format, and PyTorch is not installed; pip install torch, or give the folder "
            f"with {SAFETENSORS}"
        ) from None
