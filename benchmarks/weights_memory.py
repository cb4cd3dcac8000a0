"""Measures how much memory one process of a mesh needs to read a large model of Hugging Face's.

    python3 benchmarks/weights_memory.py
    python3 benchmarks/weights_memory.py --shape 1b --one_process

The weights are sparse files in shards, of Llama's shapes and in bfloat16: they take no space on the disk, and reading
them takes the memory of real ones. Process 3 of a mesh of 8 reads its slices, as it does in a run, and no other one is
started; with --one_process, one process reads the slices of 8 virtual devices. The peak is that of the whole process,
TensorFlow included. The last line is a JSON object with the results.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))

from configs.families.llama import LLAMA
from configs.huggingface import model_keys

GIB = 1 << 30
SHARD_BYTES = 5 * 10**9
N_PROCESSORS, PROCESS = 8, 3
LAYOUT = "heads:x,kv_heads:x,intermediate_expanded:x,vocab:x"
COMMON = {
    "architectures": [LLAMA.architecture],
    "model_type": LLAMA.model_type,
    "max_position_embeddings": 4096,
    "rms_norm_eps": 1e-5,
    "hidden_act": "silu",
    "tie_word_embeddings": False,
}
SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        **{"hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32},
        **{"intermediate_size": 11008, "vocab_size": 32000},
    },
    "1b": {
        **{"hidden_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 32, "num_key_value_heads": 8},
        **{"intermediate_size": 8192, "vocab_size": 128256},
    },
}


def write_folder(folder: Path, shape: str) -> int:
    """Writes config.json, the index and sparse shards; returns the number of parameters."""
    hf_config = COMMON | SHAPES[shape]
    (folder / "config.json").write_text(json.dumps(hf_config))
    keys = model_keys(hf_config)
    tensors = [
        (tensor.name if tensor.is_head else f"{LLAMA.prefix}{tensor.name}", tensor.stored_shape(keys))
        for tensor in LLAMA.tensors(keys)
    ]
    shards = list(_shards(tensors))
    weight_map: dict[str, str] = {}
    for number, shard in enumerate(shards, 1):
        name = f"model-{number:05}-of-{len(shards):05}.safetensors"
        _write_sparse(folder / name, shard)
        weight_map |= dict.fromkeys((tensor for tensor, _ in shard), name)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))
    return sum(math.prod(dims) for _, dims in tensors)


def _shards(tensors: Sequence[tuple[str, tuple[int, ...]]]) -> Iterator[list[tuple[str, tuple[int, ...]]]]:
    ends = list(itertools.accumulate(2 * math.prod(dims) for _, dims in tensors))
    for _, group in itertools.groupby(zip(tensors, ends, strict=True), key=lambda pair: pair[1] // SHARD_BYTES):
        yield [tensor for tensor, _ in group]


def _write_sparse(path: Path, tensors: Sequence[tuple[str, tuple[int, ...]]]) -> None:
    header, begin = {}, 0
    for name, dims in tensors:
        end = begin + 2 * math.prod(dims)
        header[name] = {"dtype": "BF16", "shape": dims, "data_offsets": [begin, end]}
        begin = end
    encoded = json.dumps(header).encode()
    with open(path, "wb") as file:
        file.write(len(encoded).to_bytes(8, "little") + encoded)
        file.truncate(8 + len(encoded) + begin)


def read_folder(folder: str, one_process: bool) -> dict[str, float]:
    """Reads the slices into the variables of a mesh, and returns their bytes and the peak memory of this process."""
    from configs.layout import parse_layout, parse_mesh_shape
    from configs.load import load_config
    from configs.schema import MeshConfig
    from meshtf import mtf, tf
    from models import gpt2
    from models.context import Context
    from models.dims import Dims
    from runtime.checkpoint.init_from import load_initial_weights
    from runtime.mesh.multi_process import place_process
    from runtime.mesh.placement import place

    model = load_config(folder).model
    config = MeshConfig(mesh_shape=parse_mesh_shape(f"x:{N_PROCESSORS}"), layout=parse_layout(LAYOUT))
    if one_process:
        device = tf.config.list_physical_devices("CPU")[0]
        tf.config.set_logical_device_configuration(device, [tf.config.LogicalDeviceConfiguration()] * N_PROCESSORS)
        placement = place(config, [f"/device:CPU:{number}" for number in range(N_PROCESSORS)])
    else:
        placement = place_process(config, PROCESS, N_PROCESSORS, "/device:CPU:0")
    graph = mtf.Graph()
    context = Context(mtf.Mesh(graph, "mesh"), model, Dims.of(model, 1, 16))
    gpt2.logits(context, mtf.zeros(context.mesh, [context.dims.batch, context.dims.sequence], tf.int32))
    before, start = _peak_bytes(), time.monotonic()
    implementation = placement.implementation(1)
    for variable in graph.all_variables:
        placement.store.slices_of(variable, implementation)
    load_initial_weights(folder, placement.store)
    slices = sum(4 * piece.shape.num_elements() for stored in placement.store for piece in stored.slices)
    return {
        "slices_gib": slices / GIB,
        "before_gib": before / GIB,
        "peak_gib": _peak_bytes() / GIB,
        "above_slices_gib": (_peak_bytes() - slices) / GIB,
        "seconds": time.monotonic() - start,
    }


def _peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(shape: str, one_process: bool, directory: str | None = None) -> dict[str, Any]:
    """Writes a sparse folder and reads it in a process of its own."""
    with tempfile.TemporaryDirectory(dir=directory) as folder:
        n_parameters = write_folder(Path(folder), shape)
        command = [sys.executable, __file__, "--read", folder, *(["--one_process"] if one_process else [])]
        environment = os.environ | {"TF_CPP_MIN_LOG_LEVEL": "2", "CUDA_VISIBLE_DEVICES": ""}
        output = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True).stdout
    found = {key: round(value, 3) for key, value in json.loads(output.splitlines()[-1]).items()}
    return {"shape": shape, "parameters": n_parameters, "one_process": one_process, **found}


def main(arguments: Sequence[str] | None = None) -> None:
    """Measures, and prints the results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shape", choices=SHAPES, default="7b", help="the size of the model")
    parser.add_argument("--one_process", action="store_true", help="8 virtual devices in one process")
    parser.add_argument("--directory", help="where the sparse files are written")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        print(json.dumps(read_folder(options.read, options.one_process)))
    else:
        print(json.dumps(measure(options.shape, options.one_process, options.directory)))


if __name__ == "__main__":
    main()
