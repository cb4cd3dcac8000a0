"""Position information: learned embeddings, or rotation of queries and keys."""

from __future__ import annotations

from meshtf import mtf, tf
from models import variables
from models.context import Context
from models.ops.embedding import embedding_lookup
from models.ops.rotation import rotate

POSITION_STD = 0.01
ROTARY_BASE = 10000.0


def sequence_positions(context: Context) -> mtf.Tensor:
    """Returns 0 ... sequence - 1, int32 [sequence]; with segments or packed texts those in them, [batch, sequence]."""
    if context.packing is not None:
        return context.packing.positions
    positions = mtf.mtf_range(context.mesh, context.dims.sequence, tf.int32)
    return positions if context.segment_starts is None else positions - context.segment_starts


def position_embeddings(context: Context, positions: mtf.Tensor) -> mtf.Tensor | None:
    """Returns the learned embeddings of positions, or None if queries and keys are rotated instead.

    Args:
        context: the settings of the graph.
        positions: int32 [sequence], from 0; [batch, sequence], from 0 in each segment; or [batch], one for each row.

    Returns:
        [..., embd] at these positions, from the variable `wpe` [embed_sequence, embd] or from `axial_wpe_1` and
        `axial_wpe_2`.
    """
    if context.model.rotary_emb:
        return None
    if context.model.axial_pos_emb is not None:
        return _axial(context, positions)
    table = context.variable("wpe", [context.dims.embed_sequence, context.dims.embd], variables.normal(POSITION_STD))
    if positions.shape == mtf.Shape([context.dims.sequence]):
        return _first_rows(context, table)
    if positions.shape.ndims > 1:  # their batch or sequence may be split over the axis that the table is split over
        table = mtf.rename_dimension(table, "embed_sequence", "whole")
    return embedding_lookup(table, positions)


def _first_rows(context: Context, table: mtf.Tensor) -> mtf.Tensor:
    """Returns the rows of positions 0 ... sequence - 1, without a lookup."""
    table = mtf.rename_dimension(table, "embed_sequence", "whole")
    if context.dims.sequence.size < context.dims.embed_sequence.size:
        table = mtf.slice(table, 0, context.dims.sequence.size, "whole")
    return mtf.rename_dimension(table, "whole", "sequence")


def _axial(context: Context, positions: mtf.Tensor) -> mtf.Tensor:
    """Returns the mean of rows p // second and p % second of two smaller tables.

    Source: Kitaev et al. 2020, Reformer, section 4, where the rows are concatenated; the mean is GPT-Neo's, kept
    for its checkpoints.
    """
    first, second = context.model.axial_pos_emb
    rows = mtf.cwise(lambda p: p // second, [positions]), mtf.cwise(lambda p: p % second, [positions])
    halves = []
    for number, (size, row) in enumerate(zip((first, second), rows, strict=True), 1):
        dims = [mtf.Dimension(f"axial_{number}", size), context.dims.embd]
        table = context.variable(f"axial_wpe_{number}", dims, variables.normal(POSITION_STD))
        halves.append(embedding_lookup(table, row))
    return (halves[0] + halves[1]) * 0.5


def rotate_by_positions(context: Context, x: mtf.Tensor, positions: mtf.Tensor) -> mtf.Tensor:
    """Rotates queries or keys by their positions; returns x itself without `rotary_emb`.

    Args:
        context: the settings of the graph.
        x: [batch, sequence, heads, features_per_head], or [batch, heads, features_per_head] at one position of each
            row.
        positions: int32 [sequence], [batch, sequence], or [batch].

    Source: Su et al. 2021, RoFormer, section 3.2.2, with features i and i + features_per_head / 2 as a pair, as in
    GPT-Neo.
    """
    if not context.model.rotary_emb:
        return x
    half_dim = mtf.Dimension("half_features_per_head", context.model.features_per_head // 2)

    def angle(position: tf.Tensor, pair: tf.Tensor) -> tf.Tensor:
        # float32 whatever the dtype of the activations: bfloat16 has no exact integers above 256.
        return tf.cast(position, tf.float32) * ROTARY_BASE ** (-tf.cast(pair, tf.float32) / half_dim.size)

    pairs = mtf.mtf_range(context.mesh, half_dim, tf.int32)
    shape = positions.shape + [half_dim]
    operands = [mtf.broadcast(operand, shape) for operand in (positions, pairs)]
    return rotate(x, mtf.cwise(angle, operands, output_dtype=tf.float32))
