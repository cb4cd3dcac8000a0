"""Decoding: rows of different lengths, and the layout of the KV cache."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import decoding as kernels
from models.ops.attention import Attended
from models.ops.mesh_operation import MeshOperation, redistribute, slice_start

# The cache is split into blocks, so that blocks not reached yet need not be read. Each block costs a little in every
# step, and small ones save little.
MIN_BLOCK_POSITIONS, MAX_BLOCKS = 64, 8


class WriteRows(MeshOperation):
    """whole [batch, positions, ...], positions [batch], rows [batch, ...] -> like whole."""

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype)], "write_rows")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(kernels.write_rows, *inputs),)


def write_rows(whole: mtf.Tensor, positions: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
    """Writes one element into each row.

    Args:
        whole: [batch, positions, ...]; positions is not split.
        positions: int32 [batch]; the number of positions for a row that is not to be updated.
        rows: [batch, ...].
    """
    return WriteRows([whole, positions, rows]).outputs[0]


class GatherPositions(MeshOperation):
    """x [batch, sequence, ...], positions [batch] -> [batch, ...]."""

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        batch_dim, _, *rest = inputs[0].shape.dims
        super().__init__(inputs, [(mtf.Shape([batch_dim, *rest]), inputs[0].dtype)], "gather_positions")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return (mesh_impl.slicewise(kernels.gather_positions, *inputs),)


def gather_positions(x: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Gathers one position of each row: x [batch, sequence, ...], positions int32 [batch] -> [batch, ...]."""
    return GatherPositions([redistribute(x, x.shape.dims[1].name, "whole"), positions]).outputs[0]


class InsertRows(MeshOperation):
    """whole [cache_rows, ...], rows [whole, ...], indices [whole] -> like whole."""

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype)], "insert_rows")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        start = slice_start(mesh_impl, self.inputs[0].shape.dims[0])
        return (mesh_impl.slicewise(kernels.insert_rows, *inputs, start),)


def insert_rows(whole: mtf.Tensor, rows: mtf.Tensor, indices: mtf.Tensor) -> mtf.Tensor:
    """Replaces rows of a larger tensor.

    Args:
        whole: [cache_rows, ...]; cache_rows may be split.
        rows: [batch, ...], with the same other dimensions and layout.
        indices: int32 [batch], all different.
    """
    unsplit = [redistribute(x, x.shape.dims[0].name, "whole") for x in (rows, indices)]
    return InsertRows([whole, *unsplit]).outputs[0]


class CacheOfPrompt(MeshOperation):
    """x [batch, sequence, heads, features_per_head], lengths [batch] -> [batch, heads, M, features_per_head]."""

    def __init__(self, x: mtf.Tensor, lengths: mtf.Tensor, cache_dim: mtf.Dimension, dtype: tf.DType):
        batch_dim, _, heads_dim, features_dim = x.shape.dims
        shape = mtf.Shape([batch_dim, heads_dim, cache_dim, features_dim])
        super().__init__([x, lengths], [(shape, dtype)], "cache_of_prompt")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        output = self.outputs[0]
        kernel = kernels.cache_of_prompt(output.shape.dims[2].size, output.dtype.name)
        return (mesh_impl.slicewise(kernel, *inputs),)


def cache_of_prompt(x: mtf.Tensor, lengths: mtf.Tensor, cache_dim: mtf.Dimension, dtype: tf.DType) -> mtf.Tensor:
    """Returns the keys or values of a prompt in the layout of the cache.

    Args:
        x: [batch, sequence, heads, features_per_head]; batch and heads may be split.
        lengths: int32 [batch], of the prompt in each row.
        cache_dim: positions of the cache; if the prompt has more, only the last ones before its length are kept.
        dtype: of the cache.

    Returns:
        [batch, heads, positions, features_per_head].
    """
    return CacheOfPrompt(redistribute(x, x.shape.dims[1].name, "whole"), lengths, cache_dim, dtype).outputs[0]


class Attend(MeshOperation):
    """Attention of one position to the cache.

    queries, key, value [batch, heads, features_per_head], positions [batch], blocks of keys and as many of values
    [batch, heads, cache positions, features_per_head] -> outputs like queries, log_z [batch, heads], and the blocks.
    """

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        queries, blocks = inputs[0], inputs[4:]
        log_z = (mtf.Shape(queries.shape.dims[:2]), tf.float32)
        super().__init__(
            inputs, [(queries.shape, queries.dtype), log_z, *((x.shape, x.dtype) for x in blocks)], "attend"
        )

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return mesh_impl.slicewise(kernels.attend((len(inputs) - 4) // 2), *inputs)


def attend(
    queries: mtf.Tensor, key: mtf.Tensor, value: mtf.Tensor, cache: dict[str, mtf.Tensor], positions: mtf.Tensor
) -> tuple[Attended, dict[str, mtf.Tensor]]:
    """Computes softmax attention of one position of each row to the cache, after adding its key and value to it.

    Args:
        queries: [batch, heads, features_per_head]; batch and heads may be split.
        key: as queries.
        value: as queries.
        cache: from `split_cache`; a position sees itself and as many earlier ones as the cache holds besides.
        positions: int32 [batch].

    Returns:
        Outputs and log_z as of `softmax_attention`, for one position; and the new cache.
    """
    names = sorted(cache, key=_block_order)
    outputs, log_z, *blocks = Attend([queries, key, value, positions, *(cache[name] for name in names)]).outputs
    return (outputs, log_z), dict(zip(names, blocks, strict=True))


def _block_order(name: str) -> tuple[str, int]:
    """Sorts keys before values, and blocks by number."""
    kind, number = name.split("_")
    return kind, int(number)


def split_cache(keys: mtf.Tensor, values: mtf.Tensor) -> dict[str, mtf.Tensor]:
    """Splits a cache into blocks of positions.

    Args:
        keys: [batch, heads, positions, features_per_head].
        values: as keys.

    Returns:
        "keys_0", "keys_1", ... and "values_0", ..., each [batch, heads, positions of the block, features_per_head].
    """
    cache_dim = keys.shape.dims[2]
    size = max(MIN_BLOCK_POSITIONS, -(-cache_dim.size // MAX_BLOCKS))
    begins = range(0, cache_dim.size, size)
    return {
        f"{kind}_{number}": mtf.slice(x, begin, min(size, cache_dim.size - begin), cache_dim.name)
        for kind, x in (("keys", keys), ("values", values))
        for number, begin in enumerate(begins)
    }


class Scores(MeshOperation):
    """logits [batch, sequence, whole], tokens [batch, sequence] -> log_probs, top_tokens, top_log_probs."""

    def __init__(self, logits: mtf.Tensor, tokens: mtf.Tensor, top_dim: mtf.Dimension):
        top = tokens.shape + [top_dim]
        super().__init__([logits, tokens], [(tokens.shape, tf.float32), (top, tf.int32), (top, tf.float32)], "scores")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        return mesh_impl.slicewise(kernels.scores(self.outputs[1].shape.dims[-1].size), *inputs)


def scores(logits: mtf.Tensor, tokens: mtf.Tensor, top_dim: mtf.Dimension) -> tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]:
    """Scores tokens by the log-probabilities that a model gives them.

    Args:
        logits: [batch, sequence, vocab].
        tokens: int32 [batch, sequence], the tokens to score at each position.
        top_dim: how many of the most likely tokens to report.

    Returns:
        log_probs float32 [batch, sequence], top_tokens int32 [batch, sequence, top], most likely first, and their
        top_log_probs float32.
    """
    return tuple(Scores(redistribute(logits, "vocab", "whole"), tokens, top_dim).outputs)
