"""Activations with the addition of a bias, and sums for the gradients of biases, on slices."""

from __future__ import annotations

import functools
from collections.abc import Callable

from meshtf import tf
from models.kernels.compile import Kernel, compiled


@compiled
def sum_of_rows(x: tf.Tensor) -> tf.Tensor:
    """[..., F] -> [F], summed in float32."""
    return tf.cast(tf.reduce_sum(tf.cast(x, tf.float32), list(range(x.shape.rank - 1))), x.dtype)


@functools.cache
def biased_activation(activation: Callable[[tf.Tensor], tf.Tensor]) -> Kernel:
    """(x [..., F], bias [F]) -> activation(x + bias)."""
    return compiled(lambda x, bias: activation(x + bias))


@functools.cache
def biased_activation_gradient(activation: Callable[[tf.Tensor], tf.Tensor]) -> Kernel:
    """(x [..., F], bias [F], dy [..., F]) -> (dx [..., F], d_bias [F])."""

    def kernel(x: tf.Tensor, bias: tf.Tensor, dy: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        biased = x + bias
        with tf.GradientTape() as tape:
            tape.watch(biased)
            y = activation(biased)
        dx = tape.gradient(y, biased, output_gradients=dy)
        return dx, tf.cast(tf.reduce_sum(tf.cast(dx, tf.float32), list(range(x.shape.rank - 1))), bias.dtype)

    return compiled(kernel)
