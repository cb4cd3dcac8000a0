"""Layer normalisation and RMS normalisation on slices."""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled


def _sum_of_last(x: tf.Tensor) -> tf.Tensor:
    """float32 [..., E] -> [...]. As a product with ones, since XLA does not vectorise sums of short rows on CPUs."""
    size = x.shape[-1]
    return tf.reshape(tf.matmul(tf.reshape(x, [-1, size]), tf.ones([size, 1])), x.shape[:-1])


def _normalize(x: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor) -> tf.Tensor:
    return (tf.cast(x, tf.float32) - mean[..., None]) * inverse_std[..., None]


@compiled
def sum_of_embd(x: tf.Tensor) -> tf.Tensor:
    """[B, S, E] -> float32 [B, S]."""
    return _sum_of_last(tf.cast(x, tf.float32))


@compiled
def sum_of_squares_about(x: tf.Tensor, mean: tf.Tensor) -> tf.Tensor:
    """[B, S, E], [B, S] -> float32 [B, S], the sum of squared differences from the mean."""
    return _sum_of_last(tf.square(tf.cast(x, tf.float32) - mean[..., None]))


@compiled
def scale_and_shift(
    x: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor
) -> tf.Tensor:
    """Applies the affine part of a normalisation whose statistics are known. [B, S, E] -> [B, S, E]."""
    return tf.cast(_normalize(x, mean, inverse_std) * tf.cast(gain, tf.float32) + tf.cast(bias, tf.float32), x.dtype)


@functools.cache
def layer_norm(epsilon: float) -> Kernel:
    """Returns the kernel of layer normalisation.

    (x [B, S, E], gain [E], bias [E]) -> (y [B, S, E], mean [B, S], inverse_std [B, S]); embd whole on this
    processor.
    """

    def kernel(x: tf.Tensor, gain: tf.Tensor, bias: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mean = sum_of_embd(x) / x.shape[-1]
        inverse_std = tf.math.rsqrt(sum_of_squares_about(x, mean) / x.shape[-1] + epsilon)
        return scale_and_shift(x, mean, inverse_std, gain, bias), mean, inverse_std

    return compiled(kernel)


@compiled
def layer_norm_gradient_sums(
    x: tf.Tensor, mean: tf.Tensor, inverse_std: tf.Tensor, gain: tf.Tensor, dy: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """The two sums over embd that the gradient needs, each float32 [B, S]."""
    normalized = _normalize(x, mean, inverse_std)
    d_normalized = tf.cast(dy, tf.float32) * tf.cast(gain, tf.float32)
    return _sum_of_last(d_normalized), _sum_of_last(d_normalized * normalized)


@functools.cache
def layer_norm_gradient(whole_embd_size: int) -> Kernel:
    """(x, mean, inverse_std, gain, dy, sum_d, sum_d_normalized) -> (dx [B, S, E], d_gain [E], d_bias [E])."""

    def kernel(
        x: tf.Tensor,
        mean: tf.Tensor,
        inverse_std: tf.Tensor,
        gain: tf.Tensor,
        dy: tf.Tensor,
        sum_d: tf.Tensor,
        sum_d_normalized: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        normalized = _normalize(x, mean, inverse_std)
        dy = tf.cast(dy, tf.float32)
        centered = (
            dy * tf.cast(gain, tf.float32)
            - (sum_d[..., None] + normalized * sum_d_normalized[..., None]) / whole_embd_size
        )
        summed_axes = list(range(x.shape.rank - 1))
        d_gain = tf.reduce_sum(dy * normalized, summed_axes)
        d_bias = tf.reduce_sum(dy, summed_axes)
        return (
            tf.cast(centered * inverse_std[..., None], x.dtype),
            tf.cast(d_gain, gain.dtype),
            tf.cast(d_bias, gain.dtype),
        )

    return compiled(kernel)


def _rows(x: tf.Tensor, gain: tf.Tensor) -> tf.TensorShape:
    """Returns the sizes of x's dimensions that are not normalised; the gain has the others."""
    return x.shape[: x.shape.rank - gain.shape.rank]


def _per_row(statistic: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """[...] -> [..., 1] with a dimension of size 1 for each of the gain's."""
    return tf.reshape(statistic, [*statistic.shape, *[1] * gain.shape.rank])


def _sum_of_normed(x: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """float32 [..., E] -> [...], where E are the dimensions of the gain."""
    return _sum_of_last(tf.reshape(x, [*_rows(x, gain), gain.shape.num_elements()]))


@compiled
def sum_of_squares(x: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
    """[..., E], [E] -> float32 [...], where E may be several dimensions."""
    return _sum_of_normed(tf.square(tf.cast(x, tf.float32)), gain)


@functools.cache
def rms_scale(gain_offset: float) -> Kernel:
    """(x [..., E], inverse_rms [...], gain [E]) -> [..., E]: x inverse_rms (gain_offset + gain), in float32."""

    def kernel(x: tf.Tensor, inverse_rms: tf.Tensor, gain: tf.Tensor) -> tf.Tensor:
        normalized = tf.cast(x, tf.float32) * _per_row(inverse_rms, gain)
        return tf.cast(normalized * (tf.cast(gain, tf.float32) + gain_offset), x.dtype)

    return compiled(kernel)


@functools.cache
def rms_norm(epsilon: float, gain_offset: float) -> Kernel:
    """(x [..., E], gain [E]) -> (y [..., E], inverse_rms [...]); the dimensions E are whole on this processor."""

    def kernel(x: tf.Tensor, gain: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        inverse_rms = tf.math.rsqrt(sum_of_squares(x, gain) / gain.shape.num_elements() + epsilon)
        return rms_scale(gain_offset)(x, inverse_rms, gain), inverse_rms

    return compiled(kernel)


@functools.cache
def rms_norm_gradient_sum(gain_offset: float) -> Kernel:
    """(x, inverse_rms, gain, dy) -> float32 [...], the sum over E that the gradient needs."""

    def kernel(x: tf.Tensor, inverse_rms: tf.Tensor, gain: tf.Tensor, dy: tf.Tensor) -> tf.Tensor:
        normalized = tf.cast(x, tf.float32) * _per_row(inverse_rms, gain)
        d_normalized = tf.cast(dy, tf.float32) * (tf.cast(gain, tf.float32) + gain_offset)
        return _sum_of_normed(d_normalized * normalized, gain)

    return compiled(kernel)


@functools.cache
def rms_norm_gradient(gain_offset: float, whole_size: int) -> Kernel:
    """(x, inverse_rms, gain, dy, sum of `rms_norm_gradient_sum`) -> (dx [..., E], d_gain [E])."""

    def kernel(
        x: tf.Tensor, inverse_rms: tf.Tensor, gain: tf.Tensor, dy: tf.Tensor, total: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        inverse_rms = _per_row(inverse_rms, gain)
        normalized = tf.cast(x, tf.float32) * inverse_rms
        dy = tf.cast(dy, tf.float32)
        d_normalized = dy * (tf.cast(gain, tf.float32) + gain_offset)
        dx = (d_normalized - normalized * _per_row(total, gain) / whole_size) * inverse_rms
        d_gain = tf.reduce_sum(dy * normalized, list(range(len(_rows(x, gain)))))
        return tf.cast(dx, x.dtype), tf.cast(d_gain, gain.dtype)

    return compiled(kernel)
