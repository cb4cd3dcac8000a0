"""Updates of the variables' slices."""

from __future__ import annotations

import dataclasses
import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled


@dataclasses.dataclass(frozen=True)
class AdamConstants:
    """The numbers of one Adam update that do not change from step to step."""

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float


@functools.cache
def adam(constants: AdamConstants) -> Kernel:
    """Updates one or more variables at once, to save a call for each small one.

    (gradient_scale, learning_rate, then n values, n ms, n vs, n gradients) -> n values, n ms, n vs; each of its
    variable's shape, float32.

    Source: GPT-Neo's AdamWeightDecayOptimizer, kept for its checkpoints: no bias correction, epsilon outside the root,
    decay times the rate.
    """

    def update(
        scale: tf.Tensor, rate: tf.Tensor, value: tf.Tensor, m: tf.Tensor, v: tf.Tensor, gradient: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        gradient = gradient * scale
        m = constants.beta1 * m + (1.0 - constants.beta1) * gradient
        v = constants.beta2 * v + (1.0 - constants.beta2) * tf.square(gradient)
        return value - rate * (m / (tf.sqrt(v) + constants.epsilon) + constants.weight_decay * value), m, v

    def kernel(scale: tf.Tensor, rate: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        n_variables = len(tensors) // 4
        columns = [tensors[start : start + n_variables] for start in range(0, len(tensors), n_variables)]
        values, ms, vs = zip(*(update(scale, rate, *row) for row in zip(*columns, strict=True)), strict=True)
        return (*values, *ms, *vs)

    return compiled(kernel)
