"""Orthogonalisation of stacks of matrices on slices, by Newton-Schulz iterations.

Shape legend: N matrices of a stack, R rows, C columns, S the shorter of the two sides, which each processor has whole.
"""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled

ROWS, COLUMNS = 0, 1  # the shorter side
# Source: Jordan 2024, Muon: an optimizer for hidden layers in neural networks, "Tuning our coefficients".
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
N_STEPS = 5
EPSILON = 1e-7  # added to the norm of a matrix


@compiled
def squares_of_matrices(stack: tf.Tensor) -> tf.Tensor:
    """[N, R, C] -> each matrix's sum of squares, [N, 1, 1]."""
    return tf.reduce_sum(tf.square(stack), [1, 2], keepdims=True)


@compiled
def normalized(stack: tf.Tensor, squares: tf.Tensor) -> tf.Tensor:
    """[N, R, C] and the whole matrices' sums of squares [N, 1, 1] -> matrices of Frobenius norm 1, [N, R, C]."""
    return stack / (tf.sqrt(squares) + EPSILON)


@functools.cache
def gram(side: int) -> Kernel:
    """Returns the kernel [N, R, C] -> the products of each shorter side with itself, [N, S, S], summed over a slice."""
    return lambda stack: tf.matmul(stack, stack, transpose_a=side == COLUMNS, transpose_b=side == ROWS)


# Additions are compiled, lest TensorFlow order them differently on each processor.


@compiled
def _even_part(gram: tf.Tensor, square: tf.Tensor) -> tf.Tensor:
    return COEFFICIENTS[1] * gram + COEFFICIENTS[2] * square


@compiled
def _plus_linear_part(stack: tf.Tensor, product: tf.Tensor) -> tf.Tensor:
    return COEFFICIENTS[0] * stack + product


@functools.cache
def quintic(side: int) -> Kernel:
    """Returns the kernel that maps each singular value s to a s + b s^3 + c s^5.

    (stack [N, R, C], the whole matrices' products of `gram` [N, S, S]) -> [N, R, C]
    """

    def kernel(stack: tf.Tensor, gram: tf.Tensor) -> tf.Tensor:
        factor = _even_part(gram, tf.matmul(gram, gram))
        return _plus_linear_part(stack, factor @ stack if side == ROWS else stack @ factor)

    return kernel
