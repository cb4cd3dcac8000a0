"""Rotation of pairs of features on slices."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

from meshtf import tf
from models.kernels.compile import Kernel, compiled


class _Pairing(NamedTuple):
    """Which two features of D are a pair.

    Attributes:
        split: [..., D] -> the first of each pair and the second, each [..., D / 2].
        join: the inverse.
    """

    split: Callable[[tf.Tensor], tuple[tf.Tensor, tf.Tensor]]
    join: Callable[[tf.Tensor, tf.Tensor], tf.Tensor]


def _interleave(first: tf.Tensor, second: tf.Tensor) -> tf.Tensor:
    return tf.reshape(tf.stack([first, second], -1), [*first.shape[:-1], 2 * first.shape[-1]])


# By the names of `rotary_style`: features i and i + D / 2, or 2 i and 2 i + 1.
_PAIRINGS = {
    "half": _Pairing(lambda x: tf.split(x, 2, -1), lambda first, second: tf.concat([first, second], -1)),
    "interleaved": _Pairing(lambda x: (x[..., ::2], x[..., 1::2]), _interleave),
}


@functools.cache
def rotate(style: str, gain: float) -> Kernel:
    """Returns the kernel that turns pairs among the first R features by their angles, and multiplies them by a gain.

    ([B, S, H, D], float32 [S, R / 2] or [B, S, R / 2]) -> [B, S, H, D]; or ([B, H, D], float32 [B, R / 2]) ->
    [B, H, D]; other features stay as they are.
    """
    pairing = _PAIRINGS[style]

    def kernel(x: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
        n_rotated = 2 * angles.shape[-1]
        first, second = pairing.split(tf.cast(x[..., :n_rotated], tf.float32))
        cos, sin = (gain * turned(angles)[..., None, :] for turned in (tf.cos, tf.sin))
        rotated = tf.cast(pairing.join(first * cos - second * sin, second * cos + first * sin), x.dtype)
        return rotated if n_rotated == x.shape[-1] else tf.concat([rotated, x[..., n_rotated:]], -1)

    return compiled(kernel)
