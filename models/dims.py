"""The named dimensions of the model's tensors. The names are public: layouts refer to them."""

from __future__ import annotations

import dataclasses

from configs.schema import ModelConfig
from meshtf import mtf


@dataclasses.dataclass(frozen=True)
class Dims:
    """The dimensions of one graph: the sizes of the model, a batch size and a length.

    Attributes:
        memory_length: positions of keys and values; as long as `sequence`, or as the cache when decoding.
        kv_heads: heads of keys and values: `heads` itself, unless groups of heads share one.
        projected_heads: the features of all heads in one dimension, as checkpoints store the attention weights.
        projected_kv_heads: likewise of keys and values.
    """

    batch: mtf.Dimension
    sequence: mtf.Dimension
    memory_length: mtf.Dimension
    embed_sequence: mtf.Dimension
    embd: mtf.Dimension
    heads: mtf.Dimension
    kv_heads: mtf.Dimension
    features_per_head: mtf.Dimension
    projected_heads: mtf.Dimension
    projected_kv_heads: mtf.Dimension
    intermediate_expanded: mtf.Dimension
    vocab: mtf.Dimension

    @staticmethod
    def of(model: ModelConfig, batch_size: int, length: int, memory_length: int | None = None) -> Dims:
        """Returns the dimensions for a batch of rows of `length` tokens; `memory_length` defaults to `length`."""
        kv_name = "heads" if model.kv_heads == model.n_head else "kv_heads"
        return Dims(
            batch=mtf.Dimension("batch", batch_size),
            sequence=mtf.Dimension("sequence", length),
            memory_length=mtf.Dimension("memory_length", memory_length or length),
            embed_sequence=mtf.Dimension("embed_sequence", model.n_ctx),
            embd=mtf.Dimension("embd", model.n_embd),
            heads=mtf.Dimension("heads", model.n_head),
            kv_heads=mtf.Dimension(kv_name, model.kv_heads),
            features_per_head=mtf.Dimension("features_per_head", model.features_per_head),
            projected_heads=mtf.Dimension("heads", model.n_head * model.features_per_head),
            projected_kv_heads=mtf.Dimension(kv_name, model.kv_heads * model.features_per_head),
            intermediate_expanded=mtf.Dimension("intermediate_expanded", model.feed_forward_width),
            vocab=mtf.Dimension("vocab", model.n_vocab),
        )
