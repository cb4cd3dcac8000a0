"""Position information: learned embeddings, or rotation of queries and keys."""

from __future__ import annotations

from meshtf import mtf, tf
from models import variables
from models.context import Context
from models.ops.embedding import embedding_lookup
from models.ops.rotation import rotate
from models.rotary import rotary_frequencies, rotary_gain

POSITION_STD = 0.01


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

    Source: Su et al. 2021, RoFormer, section 3.2.2; only some of the features: GPT-J; the pairs of `rotary_style` half:
    GPT-NeoX, and GPT-Neo.
    """
    model = context.model
    if not model.rotary_emb:
        return x
    frequencies = rotary_frequencies(model)

    def angle(position: tf.Tensor) -> tf.Tensor:
        # float32 whatever the dtype of the activations: bfloat16 has no exact integers above 256.
        return tf.cast(position, tf.float32) * tf.constant(frequencies)

    shape = positions.shape + [mtf.Dimension("rotated_pairs", len(frequencies))]
    angles = mtf.cwise(angle, [mtf.broadcast(positions, shape)], output_dtype=tf.float32)
    return rotate(x, angles, model.rotary_style, rotary_gain(model))
