"""Decoding: rows of different lengths, and the most likely tokens."""

from __future__ import annotations

from meshtf import mtf, tf
from models.kernels import decoding as kernels
from models.kernels.vocabulary import Vocabulary
from models.ops.mesh_operation import SliceKernel, redistribute


def write_rows(whole: mtf.Tensor, positions: mtf.Tensor, rows: mtf.Tensor) -> mtf.Tensor:
    """Writes one element into each row.

    Args:
        whole: [batch, positions, ...]; positions is not split.
        positions: int32 [batch]; the number of positions for a row that is not to be updated.
        rows: [batch, ...].
    """
    inputs = [whole, positions, rows]
    return SliceKernel("write_rows", kernels.write_rows, inputs, [(whole.shape, whole.dtype)]).outputs[0]


def gather_positions(x: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Gathers positions of each row: x [batch, sequence, ...], int32 [batch] or [batch, n] -> [batch or both, ...]."""
    whole = redistribute(x, x.shape.dims[1].name, "whole")
    outputs = [(mtf.Shape([*positions.shape.dims, *x.shape.dims[2:]]), x.dtype)]
    return SliceKernel("gather_positions", kernels.gather_positions, [whole, positions], outputs).outputs[0]


def insert_rows(whole: mtf.Tensor, rows: mtf.Tensor, indices: mtf.Tensor) -> mtf.Tensor:
    """Replaces rows of a larger tensor.

    Args:
        whole: [cache_rows, ...]; cache_rows may be split.
        rows: [batch, ...], with the same other dimensions and layout.
        indices: int32 [batch], all different.
    """
    unsplit = [redistribute(x, x.shape.dims[0].name, "whole") for x in (rows, indices)]
    inputs, outputs, starts = [whole, *unsplit], [(whole.shape, whole.dtype)], whole.shape.dims[:1]
    return SliceKernel("insert_rows", kernels.insert_rows, inputs, outputs, starts=starts).outputs[0]


def most_likely(logits: mtf.Tensor, top_dim: mtf.Dimension, vocabulary: Vocabulary) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Returns the most likely tokens at each position.

    Args:
        logits: [batch, sequence, vocab].
        top_dim: how many tokens.
        vocabulary: the ids that may be among them.

    Returns:
        top_tokens int32 [batch, sequence, top], most likely first, and their top_log_probs float32.
    """
    whole, shape = redistribute(logits, "vocab", "whole"), mtf.Shape([*logits.shape.dims[:-1], top_dim])
    kernel, outputs = kernels.most_likely(top_dim.size, vocabulary), [(shape, tf.int32), (shape, tf.float32)]
    return tuple(SliceKernel("most_likely", kernel, [whole], outputs).outputs)
