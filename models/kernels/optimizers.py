"""Optimiser updates on slices."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Sequence

from meshtf import tf
from models.kernels.compile import Kernel, compiled


def _update_count(update_number: tf.Tensor) -> tf.Tensor:
    """Returns the number of updates with this one, float32: 1 for the first, whose int32 number is 0."""
    return tf.cast(update_number, tf.float32) + 1.0


def _unless_nonfinite(scale: tf.Tensor, new: Sequence[tf.Tensor], old: Sequence[tf.Tensor]) -> tuple[tf.Tensor, ...]:
    """Returns the new tensors, or the old ones if the gradient scale is not finite."""
    return tuple(tf.where(tf.math.is_finite(scale), *pair) for pair in zip(new, old, strict=True))


def _columns(tensors: Sequence[tf.Tensor], count: int) -> list[Sequence[tf.Tensor]]:
    """Splits values, slots and gradients, each of all variables, into `count` lists."""
    n_variables = len(tensors) // count
    return [tensors[start : start + n_variables] for start in range(0, len(tensors), n_variables)]


@compiled
def unless_nonfinite(scale: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
    """(gradient_scale, n new tensors, n old ones) -> the new, or the old where the scale is not finite."""
    n_tensors = len(tensors) // 2
    return _unless_nonfinite(scale, tensors[:n_tensors], tensors[n_tensors:])


# Adam.


@dataclasses.dataclass(frozen=True)
class AdamConstants:
    """The numbers of one Adam update that do not change from step to step.

    Attributes:
        factor: multiplies the learning rate, but not with it the decay.
    """

    beta1: float
    beta2: float
    epsilon: float
    weight_decay: float
    factor: float = 1.0

    def moments(self, m: tf.Tensor, v: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        """Returns the running means of the gradient and of its square."""
        m = self.beta1 * m + (1.0 - self.beta1) * gradient
        return m, self.beta2 * v + (1.0 - self.beta2) * tf.square(gradient)


def _adam_updates(
    constants: AdamConstants,
    scale: tf.Tensor,
    rate: tf.Tensor,
    tensors: Sequence[tf.Tensor],
    corrections: tuple[tf.Tensor | float, tf.Tensor | float] = (1.0, 1.0),
) -> tuple[tf.Tensor, ...]:
    """Updates each variable: n values, n ms, n vs, n gradients -> n values, n ms, n vs; `corrections` divide m and v.

    Where the gradient scale is not finite all stay unchanged. One call for all saves a call for each small variable.
    """

    def update(value: tf.Tensor, m: tf.Tensor, v: tf.Tensor, gradient: tf.Tensor) -> Sequence[tf.Tensor]:
        new_m, new_v = _unless_nonfinite(scale, constants.moments(m, v, gradient * scale), (m, v))
        direction = new_m / corrections[0] / (tf.sqrt(new_v / corrections[1]) + constants.epsilon)
        new_value = value - rate * (constants.factor * direction + constants.weight_decay * value)
        return *_unless_nonfinite(scale, [new_value], [value]), new_m, new_v

    values, ms, vs = zip(*map(update, *_columns(tensors, 4)), strict=True)
    return (*values, *ms, *vs)


@functools.cache
def adam(constants: AdamConstants) -> Kernel:
    """(gradient_scale, learning_rate, then n values, n ms, n vs, n gradients) -> n values, n ms, n vs.

    Source: GPT-Neo's AdamWeightDecayOptimizer, kept for its checkpoints: no bias correction, epsilon outside the root,
    decay times the rate.
    """

    def kernel(scale: tf.Tensor, rate: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return _adam_updates(constants, scale, rate, tensors)

    return compiled(kernel)


def _bias_correction(beta: float, n_updates: tf.Tensor) -> tf.Tensor:
    """Returns 1 - beta^n, the sum of the weights of a running mean that started at 0.

    Uses expm1, because 1 minus a float32 power loses most of its digits while the result is small.
    """
    return -tf.math.expm1(n_updates * math.log(beta)) if beta else tf.ones_like(n_updates)


@functools.cache
def adamw(constants: AdamConstants) -> Kernel:
    """(gradient_scale, learning_rate, update_number, then n values, n ms, n vs, n gradients) -> n values, n ms, n vs.

    Source: Loshchilov & Hutter 2019, Decoupled Weight Decay Regularization, algorithm 2, with the decay times the
    rate.
    """

    def kernel(
        scale: tf.Tensor, rate: tf.Tensor, update_number: tf.Tensor, *tensors: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        n_updates = _update_count(update_number)
        corrections = _bias_correction(constants.beta1, n_updates), _bias_correction(constants.beta2, n_updates)
        return _adam_updates(constants, scale, rate, tensors, corrections)

    return compiled(kernel)


# Lion.


@functools.cache
def lion(beta1: float, beta2: float, weight_decay: float, factor: float = 1.0) -> Kernel:
    """(gradient_scale, learning_rate, then n values, n ms, n gradients) -> n values, n ms.

    `factor` multiplies the learning rate, but not with it the decay.

    Source: Chen et al. 2023, Symbolic Discovery of Optimization Algorithms, algorithm 2.
    """

    def update(
        scale: tf.Tensor, rate: tf.Tensor, value: tf.Tensor, m: tf.Tensor, gradient: tf.Tensor
    ) -> tuple[tf.Tensor, ...]:
        gradient = gradient * scale
        direction = tf.sign(beta1 * m + (1.0 - beta1) * gradient)
        new_value = value - rate * (factor * direction + weight_decay * value)
        return _unless_nonfinite(scale, (new_value, beta2 * m + (1.0 - beta2) * gradient), (value, m))

    def kernel(scale: tf.Tensor, rate: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        updated = [update(scale, rate, *own) for own in zip(*_columns(tensors, 3), strict=True)]
        values, ms = zip(*updated, strict=True)
        return (*values, *ms)

    return compiled(kernel)


# The average of the parameters.


@functools.cache
def ema(decay: float) -> Kernel:
    """(gradient_scale, update_number, n averages, n new values) -> n averages; the first are the values themselves."""

    def update(scale: tf.Tensor, number: tf.Tensor, average: tf.Tensor, value: tf.Tensor) -> tf.Tensor:
        new = tf.where(number == 0, value, decay * average + (1.0 - decay) * value)
        return _unless_nonfinite(scale, [new], [average])[0]

    def kernel(scale: tf.Tensor, number: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        return tuple(update(scale, number, *pair) for pair in zip(*_columns(tensors, 2), strict=True))

    return compiled(kernel)


# Muon. Between its two kernels the matrices are orthogonalised.


def _stacked(matrices: Sequence[tf.Tensor]) -> tf.Tensor:
    """[..., rows, columns] each -> [matrices, rows, columns]."""
    rows, columns = matrices[0].shape[-2:]
    return tf.reshape(tf.stack(matrices), [-1, rows, columns])


@functools.cache
def muon_momentum(momentum: float) -> Kernel:
    """(gradient_scale, n ms, n gradients) -> n ms, and what is to be orthogonalised, [matrices, rows, columns].

    All are [rows, columns] or [experts, rows, columns]. The latter is Nesterov's: the gradient is added once more.

    Source: Jordan 2024, Muon: an optimizer for hidden layers in neural networks.
    """

    def kernel(scale: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        ms, gradients = _columns(tensors, 2)
        gradients = [gradient * scale for gradient in gradients]
        ms = [momentum * m + gradient for m, gradient in zip(ms, gradients, strict=True)]
        ahead = [momentum * m + gradient for m, gradient in zip(ms, gradients, strict=True)]
        return (*ms, _stacked(ahead))

    return compiled(kernel)


@functools.cache
def muon_step(factor: float, weight_decay: float) -> Kernel:
    """Returns the kernel that updates matrices by `factor` times the orthogonalised ones.

    (gradient_scale, learning_rate, orthogonalised [matrices, rows, columns], n values, n new ms, n old ms) -> n values,
    n ms; where the gradient scale is not finite the old ones.

    Source: Liu et al. 2025, Muon is Scalable for LLM Training, equation 4.
    """

    def kernel(scale: tf.Tensor, rate: tf.Tensor, stack: tf.Tensor, *tensors: tf.Tensor) -> tuple[tf.Tensor, ...]:
        values, new_ms, ms = _columns(tensors, 3)
        directions = tf.unstack(tf.reshape(stack, [len(values), *values[0].shape]))
        new_values = [
            value - rate * (factor * direction + weight_decay * value)
            for value, direction in zip(values, directions, strict=True)
        ]
        return _unless_nonfinite(scale, (*new_values, *new_ms), (*values, *ms))

    return compiled(kernel)


# Adafactor. Its means are over whole variables, so each kernel ends where sums over slices must be reduced.


@dataclasses.dataclass(frozen=True)
class AdafactorConstants:
    """The numbers of one Adafactor update that do not change from step to step.

    Attributes:
        beta1: decay of the mean of updates; 0: no mean of updates.
        decay_rate: of the mean of squared gradients; None: 1 - t^-0.8 in update t.
        epsilon1: added to squared gradients.
        epsilon2: least scale of a variable.
    """

    beta1: float
    decay_rate: float | None
    epsilon1: float
    epsilon2: float
    weight_decay: float

    def new_share(self, update_number: tf.Tensor) -> tf.Tensor | float:
        """Returns the weight of the newest squared gradient in their mean: 1 minus the decay rate."""
        if self.decay_rate is None:
            return tf.pow(_update_count(update_number), -0.8)
        return 1.0 - self.decay_rate

    def squares(self, scale: tf.Tensor, gradient: tf.Tensor) -> tf.Tensor:
        """Returns the squares of the scaled gradient, with epsilon1 added."""
        return tf.square(gradient * scale) + self.epsilon1


@dataclasses.dataclass(frozen=True)
class Factors:
    """The two dimensions over which the second moment is factored.

    Attributes:
        axes: their indices in the variable: the largest, then the second largest.
        sizes: their whole sizes.
    """

    axes: tuple[int, int]
    sizes: tuple[int, int]


@functools.cache
def adafactor_sums(constants: AdafactorConstants, factors: Factors) -> Kernel:
    """(gradient_scale, gradient) -> sums of squares over the largest dimension, and over the second."""

    def kernel(scale: tf.Tensor, gradient: tf.Tensor) -> tuple[tf.Tensor, ...]:
        squares = constants.squares(scale, gradient)
        return tuple(tf.reduce_sum(squares, axis) for axis in factors.axes)

    return compiled(kernel)


@functools.cache
def adafactor_factors(constants: AdafactorConstants, factors: Factors) -> Kernel:
    """Returns the kernel that updates the factored second moment.

    (update_number, sums over the largest dimension, over the second, vr, vc) -> vr, vc, and vr's sum over the second
    dimension, of size 1 there, with the largest put back likewise.
    """

    def kernel(
        update_number: tf.Tensor, r_sums: tf.Tensor, c_sums: tf.Tensor, vr: tf.Tensor, vc: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        share = constants.new_share(update_number)
        vr = (1.0 - share) * vr + share * (r_sums / factors.sizes[0])
        vc = (1.0 - share) * vc + share * (c_sums / factors.sizes[1])
        return vr, vc, tf.reduce_sum(tf.expand_dims(vr, factors.axes[0]), factors.axes[1], keepdims=True)

    return compiled(kernel)


@functools.cache
def adafactor_factored_direction(factors: Factors) -> Kernel:
    """(gradient_scale, gradient, vr, vc, vr's sum) -> gradient / sqrt(vr x vc / mean of vr)."""

    def kernel(scale: tf.Tensor, gradient: tf.Tensor, vr: tf.Tensor, vc: tf.Tensor, vr_sum: tf.Tensor) -> tf.Tensor:
        r = tf.math.rsqrt(tf.expand_dims(vr, factors.axes[0]) / (vr_sum / factors.sizes[1]))
        return gradient * scale * r * tf.math.rsqrt(tf.expand_dims(vc, factors.axes[1]))

    return compiled(kernel)


@functools.cache
def adafactor_direction(constants: AdafactorConstants) -> Kernel:
    """(gradient_scale, update_number, gradient, v) -> gradient / sqrt(v), v."""

    def kernel(
        scale: tf.Tensor, update_number: tf.Tensor, gradient: tf.Tensor, v: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        share = constants.new_share(update_number)
        v = (1.0 - share) * v + share * constants.squares(scale, gradient)
        return gradient * scale * tf.math.rsqrt(v), v

    return compiled(kernel)


@functools.cache
def adafactor_step(constants: AdafactorConstants, size: int) -> Kernel:
    """Returns the kernel that clips the direction and updates the variable.

    (learning_rate, value, direction, their sums of squares over the whole variable, and with beta1 m) -> value, and
    with beta1 m; `size` is the variable's, in elements.

    Source: Shazeer & Stern 2018, Adafactor, algorithms 4 and 5, with the mean of updates as mesh-TensorFlow has it.
    """

    def kernel(
        rate: tf.Tensor,
        value: tf.Tensor,
        direction: tf.Tensor,
        value_squares: tf.Tensor,
        direction_squares: tf.Tensor,
        *means: tf.Tensor,
    ) -> tuple[tf.Tensor, ...]:
        clipped = direction / tf.maximum(1.0, tf.sqrt(direction_squares / size))
        update = clipped * rate * tf.maximum(tf.sqrt(value_squares / size), constants.epsilon2)
        updates = [constants.beta1 * m + (1.0 - constants.beta1) * update for m in means]
        (newest,) = updates or [update]
        return (value - newest - rate * constants.weight_decay * value, *updates)

    return compiled(kernel)
