"""GPT-Neo's model, loss and Adam step in NumPy, float64: what the models are measured against.

Shape legend: B batch, S sequence, M memory_length, H heads, D features_per_head, E embd, V vocab.
"""

from __future__ import annotations

import math
from collections.abc import Mapping

import numpy as np

from configs.schema import ModelConfig

Values = Mapping[str, np.ndarray]
SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def softplus(x: np.ndarray) -> np.ndarray:
    return np.logaddexp(x, 0.0)


def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(x))


ACTIVATIONS = {
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": lambda x: 1.0 / (1.0 + np.exp(-x)),
    "tanh": np.tanh,
    "selu": lambda x: SELU_SCALE * elu(x, SELU_ALPHA),
    "elu": elu,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "sign": np.sign,
    "silu": lambda x: x / (1.0 + np.exp(-x)),
    "softplus": softplus,
    "id": lambda x: x,
    "mish": lambda x: x * np.tanh(softplus(x)),
}


def layer_norm(x: np.ndarray, gain: np.ndarray, bias: np.ndarray, epsilon: float = 1e-5) -> np.ndarray:
    """Normalises the last dimension."""
    return (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + epsilon) * gain + bias


def attention_weights(queries: np.ndarray, keys: np.ndarray, radius: int | None) -> np.ndarray:
    """[B, S, H, D], [B, M, H, D] -> [B, H, S, M]; position p sees 0 ... p, or the last `radius` of them."""
    ages = np.arange(queries.shape[1])[:, None] - np.arange(keys.shape[1])
    visible = (ages >= 0) & (ages < (radius or np.inf))
    logits = np.where(visible, np.einsum("bshd,bmhd->bhsm", queries, keys), -np.inf)
    exponentials = np.exp(logits - logits.max(-1, keepdims=True))
    return exponentials / exponentials.sum(-1, keepdims=True)


def attention(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    radius: int | None,
    dropout_factor: np.ndarray | float = 1.0,
) -> np.ndarray:
    """[B, S, H, D], [B, M, H, D] twice -> [B, S, H, D]; no scale of the logits."""
    return np.einsum("bhsm,bmhd->bshd", attention_weights(queries, keys, radius) * dropout_factor, values)


def attention_gradient(
    queries: np.ndarray,
    keys: np.ndarray,
    values: np.ndarray,
    d_outputs: np.ndarray,
    radius: int | None,
    dropout_factor: np.ndarray | float = 1.0,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """What the gradient of the outputs is for queries, keys and values, by the derivative of the softmax."""
    weights = attention_weights(queries, keys, radius)
    d_values = np.einsum("bhsm,bshd->bmhd", weights * dropout_factor, d_outputs)
    d_weights = np.einsum("bshd,bmhd->bhsm", d_outputs, values) * dropout_factor
    d_logits = weights * (d_weights - (d_weights * weights).sum(-1, keepdims=True))
    return np.einsum("bhsm,bmhd->bshd", d_logits, keys), np.einsum("bhsm,bshd->bmhd", d_logits, queries), d_values


def _attention_layer(model: ModelConfig, values: Values, x: np.ndarray, layer: int) -> np.ndarray:
    scope = f"gpt2/h{layer}/attn"
    split = (*x.shape[:2], model.n_head, model.features_per_head)
    queries, keys, vectors = ((x @ values[f"{scope}/{name}"]).reshape(split) for name in "qkv")
    radius = model.local_attention_radius if model.attention_types[layer] == "local" else None
    attended = attention(queries, keys, vectors, radius).reshape(x.shape)
    return attended @ values[f"{scope}/o"] + values[f"{scope}/compute_output_bias/o_b"]


def _feed_forward(model: ModelConfig, values: Values, x: np.ndarray, layer: int) -> np.ndarray:
    main = f"gpt2/h{layer}/mlp/conv1d_main"
    hidden = ACTIVATIONS[model.activation_function](x @ values[f"{main}/c_fc/kernel"] + values[f"{main}/c_fc/bias"])
    return hidden @ values[f"{main}/c_proj/kernel"] + values[f"{main}/c_proj/bias"]


def logits(model: ModelConfig, values: Values, tokens: np.ndarray) -> np.ndarray:
    """Tokens [B, S] -> [B, S, V], without dropout."""

    def norm(x: np.ndarray, scope: str) -> np.ndarray:
        return layer_norm(x, values[f"gpt2/{scope}/g"], values[f"gpt2/{scope}/b"])

    x = values["gpt2/wte"][tokens] + values["gpt2/wpe"][: tokens.shape[1]]
    for layer, kind in enumerate(model.attention_types):
        if kind != "none":
            x = x + _attention_layer(model, values, norm(x, f"h{layer}/norm_1"), layer)
        x = x + _feed_forward(model, values, norm(x, f"h{layer}/norm_2"), layer)
    return norm(x, "ln_f") @ values["gpt2/wte"].T


def losses(logits: np.ndarray, labels: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """[B, S, V], [B, S] -> cross-entropy and log_z of each token, [B, S]."""
    largest = logits.max(-1)
    log_z = largest + np.log(np.exp(logits - largest[..., None]).sum(-1))
    return log_z - np.take_along_axis(logits, labels[..., None], -1)[..., 0], log_z


def training_loss(model: ModelConfig, values: Values, tokens: np.ndarray, labels: np.ndarray) -> float:
    """Mean cross-entropy plus the z-loss."""
    cross_entropy, log_z = losses(logits(model, values, tokens), labels)
    return cross_entropy.mean() + model.z_loss * (log_z**2).mean()


def adam_step(
    value: np.ndarray,
    m: np.ndarray,
    v: np.ndarray,
    gradient: np.ndarray,
    *,
    lr: float,
    beta1: float,
    beta2: float,
    epsilon: float,
    decay: float,
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """No bias correction, epsilon outside the root, decay times the rate."""
    m = beta1 * m + (1.0 - beta1) * gradient
    v = beta2 * v + (1.0 - beta2) * gradient**2
    return value - lr * (m / (np.sqrt(v) + epsilon) + decay * value), m, v
