"""GPT-Neo's activations in NumPy and float64. Trained scalars default to their initial values."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 0.5 + 0.5 * np.tanh(0.5 * x)


def softplus(x: np.ndarray | float) -> np.ndarray:
    return np.logaddexp(x, 0.0)


def elu(x: np.ndarray, alpha: float = 1.0) -> np.ndarray:
    return np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0.0)))


def odd_waves(wave: Callable[[np.ndarray], np.ndarray], x: np.ndarray, power: int) -> np.ndarray:
    return sum((-1) ** index * wave(n * x) / n**power for index, n in enumerate((1, 3, 5, 7)))


def log_softmax(x: np.ndarray) -> np.ndarray:
    return x - np.logaddexp.reduce(x, -1, keepdims=True)


def elish(x: np.ndarray) -> np.ndarray:
    return np.where(x > 0, x / (1.0 + np.exp(x)), np.expm1(np.minimum(x, 0.0)) / (np.exp(-x) + 1.0))


def elish_published(x: np.ndarray) -> np.ndarray:
    return np.where(x >= 0, x * sigmoid(x), np.expm1(np.minimum(x, 0.0)) * sigmoid(x))


def aria(
    x: np.ndarray,
    lower: float = 0.0,
    height: float = 1.0,
    base: float = 0.0,
    weight: float = 1.0,
    rate: float = -1.0,
    root: float = 0.0,
) -> np.ndarray:
    return x * (lower + height / (softplus(base) + weight * np.exp(rate * x) ** (1.0 / (softplus(root) + 1.0))))


def proottanh(x: np.ndarray, power: float = 0.0, offset: float = 0.0, root: float = 0.0) -> np.ndarray:
    raised = np.abs(x) ** (softplus(power) + 2.0) + softplus(offset) + 1.0
    return raised ** (1.0 / (softplus(root) + 3.0)) * np.tanh(x)


ACTIVATIONS: dict[str, Callable[..., np.ndarray]] = {
    "gelu": lambda x: 0.5 * x * (1.0 + np.tanh(math.sqrt(2.0 / math.pi) * (x + 0.044715 * x**3))),
    "gelu_exact": lambda x: 0.5 * x * (1.0 + np.vectorize(math.erf)(x / math.sqrt(2.0))),
    "relu": lambda x: np.maximum(x, 0.0),
    "sigmoid": sigmoid,
    "tanh": np.tanh,
    "selu": lambda x: SELU_SCALE * elu(x, SELU_ALPHA),
    "elu": elu,
    "abs": np.abs,
    "sin": np.sin,
    "cos": np.cos,
    "sign": np.sign,
    "silu": lambda x: x * sigmoid(x),
    "softplus": softplus,
    "lrelu001": lambda x: np.maximum(x, 0.01 * x),
    "lrelu020": lambda x: np.maximum(x, 0.2 * x),
    "id": lambda x: x,
    "triangle_relax": lambda x: odd_waves(np.sin, x, 2),
    "square_relax": lambda x: odd_waves(np.cos, x, 1),
    "spike": lambda x: 1.0 / (1.0 + x**2),
    "spike2": lambda x: np.exp(-(x**2)),
    "tanhshrink": lambda x: x - np.tanh(x),
    "softsign": lambda x: x / (1.0 + np.abs(x)),
    "softmax": lambda x: np.exp(log_softmax(x)),
    "logsoftmax": log_softmax,
    "bipolarsigmoid": lambda x: 2.0 * sigmoid(x) - 1.0,
    "rrelu": lambda x, s=0.5: (s * np.abs(x) + x) / (1.0 + s),
    "elish": elish,
    "elish_published": elish_published,
    "arcsinh": np.arcsinh,
    "aria": aria,
    "prelu": lambda x, slope=0.2: np.where(x > 0, x, slope * x),
    "parcsinh": lambda x, scale=1.0, stretch=0.0: scale * np.arcsinh(x * (softplus(stretch) + 1.0)),
    "psoftplus": lambda x, scale=1.0, stretch=1.0, shift=0.0: scale * softplus(x * stretch) + shift,
    "proottanh": proottanh,
    "maxsig": lambda x: np.maximum(x, sigmoid(x)),
    "cosid": lambda x: np.cos(x) - x,
    "minsin": lambda x: np.minimum(x, np.sin(x)),
    "maxtanh": lambda x: np.maximum(x, np.tanh(x)),
    "mish": lambda x: x * np.tanh(softplus(x)),
    "tanhexp": lambda x: x * np.tanh(np.exp(x)),
    "lisht": lambda x: x * np.tanh(x),
    "seagull": lambda x: np.log(1.0 + x**2),
    "snake": lambda x: x + np.sin(x) ** 2,
    "roottanh": lambda x: np.cbrt(x**2 + 1.0) * np.tanh(x),
    "softplusmone": lambda x: softplus(x) - 1.0,
}
