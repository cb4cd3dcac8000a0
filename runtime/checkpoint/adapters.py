"""Adapters of LoRA in checkpoints, which hold them alone and name the weights that they belong to: their base."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os

import numpy as np

from configs.errors import CheckpointError
from configs.schema import ADAPTER_DOWN, ADAPTER_UP, ModelConfig
from configs.weights import weights_at
from meshtf import tf
from runtime.checkpoint.reader import BASE_NAME
from runtime.checkpoint.weight_sources import Region, StoredTensor, Weights, in_parts, reading

N_COMPARED = 64  # numbers of each tensor of a base


@dataclasses.dataclass(frozen=True)
class Base:
    """The weights that adapters belong to.

    Attributes:
        path: as `find_weights` takes it, absolute where it is local.
        fingerprint: changes when the weights change; the same in every format.
        scale: what the outputs of the adapters are multiplied by.
    """

    path: str
    fingerprint: str
    scale: float

    @staticmethod
    def of(path: str, weights: Weights, model: ModelConfig) -> Base:
        """Returns the base of new adapters of a model."""
        return Base(_absolute(path), fingerprint(weights), model.lora_scale)

    def moved_to(self, path: str) -> Base:
        """Returns the same base at another place."""
        return dataclasses.replace(self, path=_absolute(path))

    def to_json(self) -> str:
        """Returns what a checkpoint says of the base."""
        return json.dumps(dataclasses.asdict(self))


def _absolute(path: str) -> str:
    place = weights_at(path)
    return place if "://" in place else os.path.abspath(place)


def read_base(checkpoint: str) -> Base | None:
    """Returns the base that a checkpoint names; None: it holds whole weights.

    Raises:
        CheckpointError: the file is damaged.
    """
    with reading(f"{checkpoint}: {BASE_NAME}"):
        reader = tf.train.load_checkpoint(checkpoint)
        return Base(**json.loads(reader.get_tensor(BASE_NAME))) if reader.has_tensor(BASE_NAME) else None


def fingerprint(weights: Weights) -> str:
    """Returns a digest of the names, the shapes and the first numbers of weights: training changes every tensor."""
    digest = hashlib.sha256()
    for name in sorted(weights):
        stored = weights[name]
        *rows, last = stored.shape or (1,)
        region = (*(slice(0, 1) for _ in rows), slice(0, min(last, N_COMPARED)))
        digest.update(f"{name} {stored.shape}".encode())
        digest.update(stored.read_part(region if stored.shape else ()).astype("<f4").tobytes())
    return digest.hexdigest()


def merged(base: Weights, adapters: Weights, scale: float) -> Weights:
    """Returns weights with adapters added to their kernels: W + scale A B.

    Raises:
        CheckpointError: a kernel is missing or of another shape.
    """
    names = [name.removesuffix(ADAPTER_DOWN) for name in adapters if name.endswith(ADAPTER_DOWN)]
    return {**base, **{name: _merged_kernel(name, base, adapters, scale) for name in names}}


def _merged_kernel(name: str, base: Weights, adapters: Weights, scale: float) -> StoredTensor:
    down, up, kernel = adapters[name + ADAPTER_DOWN], adapters[name + ADAPTER_UP], base.get(name)
    (n_in, rank), n_out = down.shape, up.shape[1]
    if kernel is None or kernel.shape != (n_in, n_out):
        found = "has no such kernel" if kernel is None else f"is {list(kernel.shape)} there"
        raise CheckpointError(
            f"{down.place}: belongs to a kernel {name} of {[n_in, n_out]}, which {found}; give the weights that the "
            "adapters were trained on"
        )

    def part(region: Region) -> np.ndarray:
        rows, columns, all_ranks = *region, slice(0, rank)
        product = down.read_part((rows, all_ranks)) @ up.read_part((all_ranks, columns))
        return kernel.read_part(region) + np.float32(scale) * product

    return in_parts(kernel.place, kernel.shape, part)
