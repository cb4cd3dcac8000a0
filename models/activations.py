"""Element-wise activation functions by their config name."""

from __future__ import annotations

from collections.abc import Callable

from meshtf import tf


def gelu(x: tf.Tensor) -> tf.Tensor:
    """The tanh approximation. Source: Hendrycks and Gimpel 2016, Gaussian Error Linear Units, section 2."""
    return tf.nn.gelu(x, approximate=True)


def mish(x: tf.Tensor) -> tf.Tensor:
    """Source: Misra 2019, Mish: A Self Regularized Non-Monotonic Activation Function, equation 1."""
    return x * tf.tanh(tf.math.softplus(x))


ACTIVATION_FUNCTIONS: dict[str, Callable[[tf.Tensor], tf.Tensor]] = {
    "gelu": gelu,
    "relu": tf.nn.relu,
    "sigmoid": tf.sigmoid,
    "tanh": tf.tanh,
    "selu": tf.nn.selu,
    "elu": tf.nn.elu,
    "abs": tf.abs,
    "sin": tf.sin,
    "cos": tf.cos,
    "sign": tf.sign,
    "silu": tf.nn.silu,
    "softplus": tf.math.softplus,
    "id": tf.identity,
    "mish": mish,
}
