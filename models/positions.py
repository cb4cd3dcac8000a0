"""Position embeddings."""

from __future__ import annotations

from meshtf import mtf
from models import variables
from models.context import Context
from models.ops.embedding import embedding_lookup

POSITION_STD = 0.01


def _table(context: Context) -> mtf.Tensor:
    return context.variable("wpe", [context.dims.embed_sequence, context.dims.embd], variables.normal(POSITION_STD))


def embedded_positions(context: Context) -> mtf.Tensor:
    """The learned embedding of positions 0 ... sequence - 1: [sequence, embd], from the variable `wpe`
    [embed_sequence, embd].
    """
    table = mtf.rename_dimension(_table(context), "embed_sequence", "whole")
    if context.dims.sequence.size < context.dims.embed_sequence.size:
        table = mtf.slice(table, 0, context.dims.sequence.size, "whole")
    return mtf.rename_dimension(table, "whole", "sequence")


def embedded_position(context: Context, position: mtf.Tensor) -> mtf.Tensor:
    """The learned embedding of one position, an int32 scalar: [embd]."""
    return embedding_lookup(_table(context), position)
