"""How fast rotary position embeddings turn each pair of features, with the ways to reach beyond the trained length.

Computed in float32 as Hugging Face's `modeling_rope_utils` does, since positions multiply what it rounds.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

from configs.schema import ModelConfig, RotaryScaling

BETA_FAST, BETA_SLOW = 32.0, 1.0  # of the paper
Frequencies = np.ndarray  # float32 [pairs], radians a position


def rotary_frequencies(model: ModelConfig) -> Frequencies:
    """Returns the angle by which each pair of features turns from one position to the next, float32 [pairs].

    Source: Su et al. 2021, RoFormer, section 3.2.2: base^(-2 i / rotary_dim).
    """
    exponents = np.arange(0, model.rotated_features, 2).astype(np.float32) / np.float32(model.rotated_features)
    frequencies = np.float32(1.0) / np.float32(model.rotary_base) ** exponents
    scaling = model.rotary_scaling
    return frequencies if scaling is None else _SCALINGS[scaling.type](model, scaling, frequencies).astype(np.float32)


def rotary_gain(model: ModelConfig) -> float:
    """Returns what rotated queries and keys are multiplied by: 1, except with yarn.

    Source: Peng et al. 2023, YaRN, section 3.4; mscale: DeepSeek's.
    """
    scaling = model.rotary_scaling
    if scaling is None or scaling.type != "yarn":
        return 1.0
    if scaling.attention_factor is not None:
        return scaling.attention_factor
    if scaling.mscale and scaling.mscale_all_dim:
        return _yarn_gain(scaling.factor, scaling.mscale) / _yarn_gain(scaling.factor, scaling.mscale_all_dim)
    return _yarn_gain(scaling.factor, 1.0)


def _yarn_gain(factor: float, mscale: float) -> float:
    return 0.1 * mscale * math.log(factor) + 1.0


def _linear(model: ModelConfig, scaling: RotaryScaling, frequencies: Frequencies) -> Frequencies:
    """Divides all positions by the factor.

    Source: Chen et al. 2023, Extending Context Window of Large Language Models via Position Interpolation.
    """
    return frequencies / np.float32(scaling.factor)


def _llama3(model: ModelConfig, scaling: RotaryScaling, frequencies: Frequencies) -> Frequencies:
    """Divides the slow frequencies alone, by how often a pair turns within the trained length.

    Source: Grattafiori et al. 2024, The Llama 3 Herd of Models; the function is that of Llama 3.1's published code.
    """
    low, high = np.float32(scaling.low_freq_factor), np.float32(scaling.high_freq_factor)
    turns = frequencies * np.float32(scaling.original_max_position_embeddings / (2.0 * math.pi))
    kept = np.clip((turns - low) / (high - low), 0.0, 1.0)
    return (1.0 - kept) * frequencies / np.float32(scaling.factor) + kept * frequencies


def _yarn(model: ModelConfig, scaling: RotaryScaling, frequencies: Frequencies) -> Frequencies:
    """Divides the frequencies of pairs beyond a ramp over pairs, which begins and ends at given numbers of turns.

    Source: Peng et al. 2023, YaRN: Efficient Context Window Extension of Large Language Models, section 3.2.
    """
    n_features, base = model.rotated_features, model.rotary_base

    def pair_that_turns(times: float) -> float:
        length = scaling.original_max_position_embeddings
        return n_features * math.log(length / (times * 2.0 * math.pi)) / (2.0 * math.log(base))

    first, last = pair_that_turns(scaling.beta_fast or BETA_FAST), pair_that_turns(scaling.beta_slow or BETA_SLOW)
    if scaling.truncate is not False:
        first, last = math.floor(first), math.ceil(last)
    first, last = max(first, 0), min(last, n_features - 1)
    pairs = np.arange(n_features // 2, dtype=np.float32)
    ramp = np.clip((pairs - first) / (last - first if last != first else 0.001), 0.0, 1.0)
    return ramp * frequencies / np.float32(scaling.factor) + (1.0 - ramp) * frequencies


_SCALINGS: dict[str, Callable[[ModelConfig, RotaryScaling, Frequencies], Frequencies]] = {
    "linear": _linear,
    "llama3": _llama3,
    "yarn": _yarn,
}
