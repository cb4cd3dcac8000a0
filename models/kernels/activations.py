"""Activations with the addition of a bias, and sums for the gradients of biases, on slices.

An activation here is a function of float32 x [..., F] and of what else it needs, such as trained scalars, that gives
x's shape.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.noise import uniform

Function = Callable[..., tf.Tensor]


@compiled
def sum_of_rows(x: tf.Tensor) -> tf.Tensor:
    """[..., F] -> [F], summed in float32."""
    return tf.cast(tf.reduce_sum(tf.cast(x, tf.float32), list(range(x.shape.rank - 1))), x.dtype)


@compiled
def uniform_scalar(key: tf.Tensor) -> tf.Tensor:
    """int32 scalar -> one float32 scalar, uniform in (0, 1)."""
    return uniform(key, tf.zeros([1], tf.int32), tf.zeros([0], tf.int32), (1,))[0]


@functools.cache
def biased(function: Function) -> Function:
    """The activation of x + bias, as a function of x, bias [F] and what else it needs."""
    return lambda x, bias, *others: function(x + bias, *others)


@functools.cache
def soft_cap(cap: float) -> Function:
    """The activation cap tanh(x / cap)."""
    return lambda x: cap * tf.tanh(x / cap)


@functools.cache
def activation(function: Function) -> Kernel:
    """(x [..., F], *others) -> function(x, *others), computed in float32, in x's dtype."""

    def kernel(x: tf.Tensor, *others: tf.Tensor) -> tf.Tensor:
        return tf.cast(function(*_exact(x, *others)), x.dtype)

    return compiled(kernel)


@functools.cache
def activation_gradient(function: Function) -> Kernel:
    """Returns the kernel of the gradient of an activation.

    (dy [..., F], x [..., F], *others) -> (dx, d_other ...), each in the shape and dtype of its input, summed in
    float32.
    """

    def kernel(dy: tf.Tensor, *inputs: tf.Tensor) -> tuple[tf.Tensor, ...]:
        exact = _exact(*inputs)
        with tf.GradientTape() as tape:
            tape.watch(exact)
            y = function(*exact)
        gradients = tape.gradient(
            y, exact, output_gradients=tf.cast(dy, tf.float32), unconnected_gradients=tf.UnconnectedGradients.ZERO
        )
        return tuple(tf.cast(gradient, x.dtype) for gradient, x in zip(gradients, inputs, strict=True))

    return compiled(kernel)


def _exact(*inputs: tf.Tensor) -> list[tf.Tensor]:
    return [tf.cast(x, tf.float32) for x in inputs]
