"""Softmax and linear attention in NumPy, float64; dimensions as in `reference`."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np


def visible(n_queries: int, n_keys: int, is_causal: bool, radius: int | None) -> np.ndarray:
    """[S, M]: which keys each query sees."""
    ages = np.arange(n_queries)[:, None] - np.arange(n_keys)
    return (np.abs(ages) < (radius or np.inf)) & ((ages >= 0) | (not is_causal))


def softmax_attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    visible: np.ndarray,
    dropout_factor: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray]:
    """[B, S, H, D], [B, M, H, D] twice, bool [S, M] -> outputs [B, S, H, D], log_z [B, H, S]."""
    logits = np.where(visible, np.einsum("bshd,bmhd->bhsm", queries, keys), -np.inf)
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


def _softmax(x: np.ndarray, axis: int) -> np.ndarray:
    exponentials = np.exp(x - x.max(axis, keepdims=True))
    return exponentials / exponentials.sum(axis, keepdims=True)


def causal_linear_attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """[B, S, H, D] three times -> [B, S, H, D]; epsilon is one more position, whose value is 0."""
    features, outputs = _softmax(queries, -1), np.empty_like(values)
    keys, values = (np.insert(x, 0, first, 1) for x, first in ((keys, np.log(1e-6)), (values, 0.0)))
    for t in range(outputs.shape[1]):
        weights = _softmax(keys[:, : t + 2], 1)
        outputs[:, t] = np.einsum("bhd,bshd,bshe->bhe", features[:, t], weights, values[:, : t + 2])
    return outputs


def linear_attention(queries: np.ndarray, keys: np.ndarray, values: np.ndarray) -> np.ndarray:
    """As `causal_linear_attention`, but every position sees all."""
    return np.einsum("bthd,bshd,bshe->bthe", _softmax(queries, -1), _softmax(keys, 1), values)


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
