"""Models with muP as models without: the scales of logits are multiplied into weights."""

from __future__ import annotations

import dataclasses
import re

import numpy as np

from configs.schema import NO_QK_NORM, ModelConfig
from runtime.checkpoint.weight_sources import Region, StoredTensor, Weights, in_parts

FINAL_NORM = re.compile(r"/ln_f/[gb]$")
QUERIES, QUERY_NORM = re.compile(r"/attn/q(_bias)?$"), re.compile(r"/attn/q_norm/g$")


def without_mup(model: ModelConfig, weights: Weights) -> tuple[ModelConfig, Weights]:
    """Returns a model without `mup_base_width`, and the weights with which it computes the same.

    Logits are divided by the width in the final norm, which the model has, and those of attention in the queries.
    """
    plain = dataclasses.replace(model, mup_base_width=0)
    factors = {
        FINAL_NORM: 1.0 / model.width_multiplier,
        QUERIES if model.qk_norm == NO_QK_NORM else QUERY_NORM: model.logit_scale / plain.logit_scale,
    }
    folded = dict(weights)
    for name, stored in weights.items():
        for pattern, factor in factors.items():
            if factor != 1.0 and pattern.search(name):
                has_offset = model.norm_unit_offset and name.endswith("/g")
                folded[name] = _scaled(stored, factor, offset=1.0 if has_offset else 0.0)
    return plain, folded


def _scaled(stored: StoredTensor, factor: float, offset: float) -> StoredTensor:
    """Returns a tensor that, with the offset added, is `factor` times as large."""

    def part(region: Region) -> np.ndarray:
        return ((stored.read_part(region) + offset) * factor - offset).astype(np.float32)

    return in_parts(stored.place, stored.shape, part)
