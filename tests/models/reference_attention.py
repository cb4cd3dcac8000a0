"""Softmax and linear attention in NumPy, float64; dimensions as in `reference`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from configs.schema import ModelConfig, RotaryScaling


def visible(n_queries: int, n_keys: int, is_causal: bool, radius: int | None) -> np.ndarray:
    """[S, M]: which keys each query sees."""
    ages = np.arange(n_queries)[:, None] - np.arange(n_keys)
    return (np.abs(ages) < (radius or np.inf)) & ((ages >= 0) | (not is_causal))


def segments(*lengths: Sequence[int]) -> np.ndarray:
    """Lengths of the segments of each row -> int32 [B, S], where the segment of each position begins."""
    return np.array([np.repeat(np.cumsum([0, *row[:-1]]), row) for row in lengths], np.int32)


def by_segment(function: Callable[..., np.ndarray], starts: np.ndarray, *inputs: np.ndarray) -> np.ndarray:
    """Applies a function of [1, S, ...] arrays to each segment alone, and puts the results together."""
    outputs = np.full_like(inputs[0], np.nan)
    for row, starts_S in enumerate(starts):
        for start, count in zip(*np.unique(starts_S, return_counts=True), strict=True):
            own = slice(row, row + 1), slice(start, start + count)
            outputs[own] = function(*(x[own] for x in inputs))
    return outputs


def rotary_frequencies(model: ModelConfig) -> tuple[np.ndarray, float]:
    """Radians that each pair of features turns a position, and the gain of rotated features."""
    width, base, scaling = model.rotary_dim or model.features_per_head, model.rotary_base, model.rotary_scaling
    frequencies = [base ** (-2 * pair / width) for pair in range(width // 2)]
    if scaling is None:
        return np.array(frequencies), 1.0
    length, factor = scaling.original_max_position_embeddings, scaling.factor
    if scaling.type == "yarn":
        return yarn_frequencies(frequencies, base, scaling), 0.1 * math.log(factor) + 1
    scaled = []
    for frequency in frequencies:
        divided = frequency / factor
        if scaling.type == "linear":
            scaled.append(divided)
            continue
        wavelength = 2 * math.pi / frequency
        if wavelength > length / scaling.low_freq_factor:
            scaled.append(divided)
        elif wavelength < length / scaling.high_freq_factor:
            scaled.append(frequency)
        else:
            span = scaling.high_freq_factor - scaling.low_freq_factor
            share = (length / wavelength - scaling.low_freq_factor) / span
            scaled.append((1 - share) * divided + share * frequency)
    return np.array(scaled), 1.0


def yarn_frequencies(frequencies: Sequence[float], base: float, scaling: RotaryScaling) -> np.ndarray:
    """A ramp over pairs from the one that turns 32 times in the trained length to the one that turns once."""
    n_pairs, length = len(frequencies), scaling.original_max_position_embeddings
    many, once = (n_pairs * math.log(length / turns / (2 * math.pi), base) for turns in (32, 1))
    first, last = max(math.floor(many), 0), min(math.ceil(once), 2 * n_pairs - 1)
    shares = [min(max((pair - first) / (last - first), 0), 1) for pair in range(n_pairs)]
    return np.array(
        [(1 - share) * f + share * f / scaling.factor for share, f in zip(shares, frequencies, strict=True)]
    )


def softmax_attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    visible: np.ndarray,
    dropout_factor: np.ndarray | float = 1.0,
    softcap: float | None = None,
) -> tuple[np.ndarray, np.ndarray]:
    """[B, S, H, D], [B, M, H, D] twice, bool [S, M] -> outputs [B, S, H, D], log_z [B, H, S]."""
    logits = np.einsum("bshd,bmhd->bhsm", queries, keys)
    logits = np.where(visible, np.tanh(logits / softcap) * softcap if softcap else logits, -np.inf)
    log_z = np.logaddexp.reduce(logits, -1)
    weights = np.exp(logits - log_z[..., None]) * dropout_factor
    return np.einsum("bhsm,bmhd->bshd", weights, values), log_z


def softmax_attention_gradient(
    inputs: Sequence[np.ndarray],
    visible: np.ndarray,
    d_outputs: np.ndarray,
    d_log_z: np.ndarray | float = 0.0,
    dropout_factor: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The gradient of sum(outputs * d_outputs) + sum(log_z * d_log_z) for queries, keys and values."""
    queries, keys, values = inputs
    logits = np.where(visible, np.einsum("bshd,bmhd->bhsm", queries, keys), -np.inf)
    weights = np.exp(logits - np.logaddexp.reduce(logits, -1)[..., None])
    d_weights = np.einsum("bshd,bmhd->bhsm", d_outputs, values) * dropout_factor
    of_softmax = d_weights - (d_weights * weights).sum(-1, keepdims=True)
    d_logits = weights * (of_softmax + np.expand_dims(d_log_z, -1))
    d_values = np.einsum("bhsm,bshd->bmhd", weights * dropout_factor, d_outputs)
    return np.einsum("bhsm,bmhd->bshd", d_logits, keys), np.einsum("bhsm,bshd->bmhd", d_logits, queries), d_values


def softmax(x: np.ndarray, axis: int | tuple[int, ...]) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def linear_weights(queries: np.ndarray, keys: np.ndarray, normalization: str) -> np.ndarray:
    """[B, S, H, D] twice -> [B, T, 1 + S, H, D]: how much position t has of the value of s by each feature.

    Epsilon is one more position, the first, whose value is 0. By position, the weights of a position are one softmax
    over all earlier positions and features; by feature, each feature has one, times the feature's share.
    """
    n_positions = keys.shape[1]
    seen = np.insert(np.tri(n_positions, dtype=bool), 0, True, 1)[None, :, :, None, None]
    logits = np.where(seen, np.insert(keys, 0, np.log(1e-6), 1)[:, None], -np.inf)
    if normalization == "position":
        return softmax(queries[:, :, None] + logits, (2, 4))
    return softmax(queries, -1)[:, :, None] * softmax(logits, 2)


def causal_linear_attention(
    queries: np.ndarray, keys: np.ndarray, values: np.ndarray, normalization: str = "position"
) -> np.ndarray:
    """[B, S, H, D] three times -> [B, S, H, D]."""
    weights = linear_weights(queries, keys, normalization)
    return np.einsum("btshd,bshe->bthe", weights, np.insert(values, 0, 0.0, 1))


def linear_attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """As `causal_linear_attention`, but every position sees all."""
    return np.einsum("bthd,bshd,bshe->bthe", softmax(queries, -1), softmax(keys, 1), values)


def slopes(function: Callable[..., float], inputs: Sequence[np.ndarray], step: float = 1e-6) -> list[np.ndarray]:
    """The gradients of a function of float64 arrays, by central differences."""
    gradients = [np.empty_like(x) for x in inputs]
    for x, gradient in zip(inputs, gradients, strict=True):
        for index in np.ndindex(x.shape):
            original = x[index]
            x[index] = original + step
            above = function(*inputs)
            x[index] = original - step
            gradient[index] = (above - function(*inputs)) / (2 * step)
            x[index] = original
    return gradients
