"""Decoding: rows of different lengths, and the scores of given tokens."""

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
    """Gathers one position of each row: x [batch, sequence, ...], positions int32 [batch] -> [batch, ...]."""
    whole = redistribute(x, x.shape.dims[1].name, "whole")
    batch_dim, _, *rest = x.shape.dims
    outputs = [(mtf.Shape([batch_dim, *rest]), x.dtype)]
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


def scores(
    logits: mtf.Tensor, tokens: mtf.Tensor, top_dim: mtf.Dimension, vocabulary: Vocabulary
) -> tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]:
    """Scores tokens by the log-probabilities that a model gives them.

    Args:
        logits: [batch, sequence, vocab].
        tokens: int32 [batch, sequence], the tokens to score at each position.
        top_dim: how many of the most likely tokens to report.
        vocabulary: the ids that may be among these.

    Returns:
        log_probs float32 [batch, sequence], top_tokens int32 [batch, sequence, top], most likely first, and their
        top_log_probs float32.
    """
    whole, top = redistribute(logits, "vocab", "whole"), tokens.shape + [top_dim]
    outputs = [(tokens.shape, tf.float32), (top, tf.int32), (top, tf.float32)]
    return tuple(SliceKernel("scores", kernels.scores(top_dim.size, vocabulary), [whole, tokens], outputs).outputs)
