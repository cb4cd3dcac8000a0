"""Decoding: rows of different lengths, and the cache of keys and values that each position adds to."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import decoding as kernels
from models.ops.attention import Attended
from models.ops.mesh_operation import MeshOperation, redistribute, slice_start

# Of the blocks that a cache is cut into: each costs a little in every turn, and the fuller ones save little.
LEAST_PLACES, MOST_BLOCKS = 64, 8


class WriteRows(MeshOperation):
    """whole [batch, places, ...], places [batch], rows [batch, ...] -> like whole."""

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype)], "write_rows")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return (mesh_impl.slicewise(kernels.write_rows, *inputs),)


def write_rows(whole: mtf.Tensor, places: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
    """Writes one piece into each row.

    Args:
        whole: [batch, places, ...]; places whole.
        places: int32 [batch]; where the row is to stay as it is, the number of places.
        rows: [batch, ...].
    """
    return WriteRows([whole, places, rows]).outputs[0]


class RowsAt(MeshOperation):
    """x [batch, sequence, ...], places [batch] -> [batch, ...]."""

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        batch_dim, _, *rest = inputs[0].shape.dims
        super().__init__(inputs, [(mtf.Shape([batch_dim, *rest]), inputs[0].dtype)], "rows_at")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return (mesh_impl.slicewise(kernels.rows_at, *inputs),)


def rows_at(x: mtf.Tensor, places: mtf.Tensor) -> mtf.Tensor:
    """One piece of each row: x [batch, sequence, ...], places int32 [batch] -> [batch, ...]."""
    return RowsAt([redistribute(x, x.shape.dims[1].name, "whole"), places]).outputs[0]


class InsertRows(MeshOperation):
    """whole [cache_rows, ...], rows [whole, ...], places [whole] -> like whole."""

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        super().__init__(inputs, [(inputs[0].shape, inputs[0].dtype)], "insert_rows")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        start = slice_start(mesh_impl, self.inputs[0].shape.dims[0])
        return (mesh_impl.slicewise(kernels.insert_rows, *inputs, start),)


def insert_rows(whole: mtf.Tensor, rows: mtf.Tensor, places: mtf.Tensor) -> mtf.Tensor:
    """Puts rows into a tensor of more rows.

    Args:
        whole: [cache_rows, ...]; cache_rows may be split.
        rows: [batch, ...], of the same sizes and layout behind batch.
        places: int32 [batch], no two the same.
    """
    pieces = [redistribute(x, x.shape.dims[0].name, "whole") for x in (rows, places)]
    return InsertRows([whole, *pieces]).outputs[0]


class CacheOfPrompt(MeshOperation):
    """x [batch, sequence, heads, features_per_head], lengths [batch] -> [batch, heads, places, features_per_head]."""

    def __init__(self, x: mtf.Tensor, lengths: mtf.Tensor, places_dim: mtf.Dimension, dtype: tf.DType):
        batch_dim, _, heads_dim, features_dim = x.shape.dims
        shape = mtf.Shape([batch_dim, heads_dim, places_dim, features_dim])
        super().__init__([x, lengths], [(shape, dtype)], "cache_of_prompt")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        output = self.outputs[0]
        kernel = kernels.cache_of_prompt(output.shape.dims[2].size, output.dtype.name)
        return (mesh_impl.slicewise(kernel, *inputs),)


def cache_of_prompt(x: mtf.Tensor, lengths: mtf.Tensor, places_dim: mtf.Dimension, dtype: tf.DType) -> mtf.Tensor:
    """Keys or values of a prompt, as `attend` goes on from them.

    Args:
        x: [batch, sequence, heads, features_per_head]; batch and heads may be split.
        lengths: int32 [batch], of the prompt in each row.
        places_dim: of the cache; fewer than there are positions: only the last ones before the length are kept.
        dtype: of the cache.

    Returns:
        [batch, heads, places, features_per_head].
    """
    return CacheOfPrompt(redistribute(x, x.shape.dims[1].name, "whole"), lengths, places_dim, dtype).outputs[0]


class Attend(MeshOperation):
    """queries, key, value [batch, heads, features_per_head], positions [batch], blocks of keys [batch, heads, places,
    features_per_head], as many of values -> outputs like queries, log_z [batch, heads], and the blocks.
    """

    def __init__(self, inputs: Sequence[mtf.Tensor]):
        queries, blocks = inputs[0], inputs[4:]
        log_z = (mtf.Shape(queries.shape.dims[:2]), tf.float32)
        super().__init__(
            inputs, [(queries.shape, queries.dtype), log_z, *((x.shape, x.dtype) for x in blocks)], "attend"
        )

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return mesh_impl.slicewise(kernels.attend((len(inputs) - 4) // 2), *inputs)


def attend(
    queries: mtf.Tensor, key: mtf.Tensor, value: mtf.Tensor, cache: dict[str, mtf.Tensor], positions: mtf.Tensor
) -> tuple[Attended, dict[str, mtf.Tensor]]:
    """Softmax attention of one position of each row over the cache, to which its own key and value are added.

    Args:
        queries: [batch, heads, features_per_head]; batch and heads may be split.
        key: as queries.
        value: as queries.
        cache: as `split_cache` gives it; a position sees itself and as many before it as there are places besides.
        positions: int32 [batch].

    Returns:
        As `softmax_attention`, of one position; and the new cache.
    """
    names = sorted(cache, key=_block_order)
    outputs, log_z, *blocks = Attend([queries, key, value, positions, *(cache[name] for name in names)]).outputs
    return (outputs, log_z), dict(zip(names, blocks, strict=True))


def _block_order(name: str) -> tuple[str, int]:
    """Keys before values, blocks by number."""
    kind, number = name.split("_")
    return kind, int(number)


def split_cache(keys: mtf.Tensor, values: mtf.Tensor) -> dict[str, mtf.Tensor]:
    """A cache in blocks of places, so that what has not been reached need not be read.

    Args:
        keys: [batch, heads, places, features_per_head].
        values: as keys.

    Returns:
        "keys_0", "keys_1", ... and "values_0", ...: each [batch, heads, places of the block, features_per_head].
    """
    places_dim = keys.shape.dims[2]
    size = max(LEAST_PLACES, -(-places_dim.size // MOST_BLOCKS))
    begins = range(0, places_dim.size, size)
    return {
        f"{kind}_{number}": mtf.slice(x, begin, min(size, places_dim.size - begin), places_dim.name)
        for kind, x in (("keys", keys), ("values", values))
        for number, begin in enumerate(begins)
    }


class Scores(MeshOperation):
    """logits [batch, sequence, whole], tokens [batch, sequence] -> log_probs, top_tokens, top_log_probs."""

    def __init__(self, logits: mtf.Tensor, tokens: mtf.Tensor, top_dim: mtf.Dimension):
        top = tokens.shape + [top_dim]
        super().__init__([logits, tokens], [(tokens.shape, tf.float32), (top, tf.int32), (top, tf.float32)], "scores")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        return mesh_impl.slicewise(kernels.scores(self.outputs[1].shape.dims[-1].size), *inputs)


def scores(logits: mtf.Tensor, tokens: mtf.Tensor, top_dim: mtf.Dimension) -> tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]:
    """How likely tokens are.

    Args:
        logits: [batch, sequence, vocab].
        tokens: int32 [batch, sequence], those that the logits are to foretell.
        top_dim: as many of the likeliest tokens are told.

    Returns:
        log_probs float32 [batch, sequence], top_tokens int32 [batch, sequence, top], likeliest first, and their
        top_log_probs float32.
    """
    return tuple(Scores(redistribute(logits, "vocab", "whole"), tokens, top_dim).outputs)
