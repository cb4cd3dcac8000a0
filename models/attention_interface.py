"""What a kind of attention consists of; `models/attention.py` lists the kinds by name."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from configs.schema import ModelConfig
from meshtf import mtf
from models.context import Context
from models.layer import Layer

# What a layer keeps between decoding steps, by name, such as keys and values or the running sums of linear attention.
Cache = dict[str, mtf.Tensor]


@dataclasses.dataclass(frozen=True)
class QKV:
    """Queries, keys and values, rotated and scaled.

    [batch, sequence, heads, features_per_head] for whole sequences, [batch, heads, features_per_head] for one position
    of each row; keys and values have kv_heads in place of heads.
    """

    queries: mtf.Tensor
    keys: mtf.Tensor
    values: mtf.Tensor


@dataclasses.dataclass(frozen=True)
class AttentionKind:
    """How positions attend to one another. The projections before and after are the same for every kind.

    Attributes:
        full: returns the outputs of whole sequences, [batch, sequence, heads, features_per_head]; a position sees its
            own segment only, if the context has `segment_starts`.
        packed: returns the same for packed texts, by the `packing` of the context; causal, and without a gradient.
        prefill: returns the cache after prompts of the given lengths, int32 [batch]; what follows a prompt in its row
            leaves no trace in it.
        decode: returns the outputs of one position of each row, [batch, heads, features_per_head], and the cache with
            that position added; the positions are int32 [batch].
        empty_cache: returns the cache before any position.
        flops: returns the floating-point operations per token of the forward pass, without the projections.
    """

    full: Callable[[Context, Layer, QKV], mtf.Tensor]
    packed: Callable[[Context, Layer, QKV], mtf.Tensor]
    prefill: Callable[[Context, Layer, QKV, mtf.Tensor], Cache]
    decode: Callable[[Context, Layer, QKV, Cache, mtf.Tensor], tuple[mtf.Tensor, Cache]]
    empty_cache: Callable[[Context, Layer], Cache]
    flops: Callable[[ModelConfig], float]
