"""The named dimensions of the model's tensors; the names are public, for layouts use them."""

from __future__ import annotations

import dataclasses

from configs.schema import ModelConfig
from meshtf import mtf


@dataclasses.dataclass(frozen=True)
class Dims:
    """Every dimension of one graph: a batch size and a length on top of the model's own sizes.

    Attributes:
        projected_heads: all heads' features in one dimension, as the checkpoint keeps the attention weights.
        memory_length: keys and values; as long as `sequence`, or as the cache when decoding.
    """

    batch: mtf.Dimension
    sequence: mtf.Dimension
    memory_length: mtf.Dimension
    embed_sequence: mtf.Dimension
    embd: mtf.Dimension
    heads: mtf.Dimension
    features_per_head: mtf.Dimension
    projected_heads: mtf.Dimension
    intermediate_expanded: mtf.Dimension
    vocab: mtf.Dimension

    @staticmethod
    def of(model: ModelConfig, batch_size: int, length: int, memory_length: int | None = None) -> Dims:
        """The dimensions for a batch of that size and length in tokens; `memory_length` defaults to the length."""
        return Dims(
            batch=mtf.Dimension("batch", batch_size),
            sequence=mtf.Dimension("sequence", length),
            memory_length=mtf.Dimension("memory_length", memory_length or length),
            embed_sequence=mtf.Dimension("embed_sequence", model.n_ctx),
            embd=mtf.Dimension("embd", model.n_embd),
            heads=mtf.Dimension("heads", model.n_head),
            features_per_head=mtf.Dimension("features_per_head", model.features_per_head),
            projected_heads=mtf.Dimension("heads", model.n_embd),
            intermediate_expanded=mtf.Dimension("intermediate_expanded", 4 * model.n_embd),
            vocab=mtf.Dimension("vocab", model.n_vocab),
        )
