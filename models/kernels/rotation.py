"""Rotation of pairs of features on slices."""

from __future__ import annotations

from meshtf import tf
from models.kernels.compile import compiled


@compiled
def rotate(x: tf.Tensor, angles: tf.Tensor) -> tf.Tensor:
    """Turns each pair (i, i + D / 2) of features by its angle.

    [B, S, H, D], float32 [S, D / 2] or [B, S, D / 2] -> [B, S, H, D]; or [B, H, D], float32 [B, D / 2] -> [B, H, D].
    """
    first, second = tf.split(tf.cast(x, tf.float32), 2, -1)
    cos, sin = tf.cos(angles)[..., None, :], tf.sin(angles)[..., None, :]
    return tf.cast(tf.concat([first * cos - second * sin, second * cos + first * sin], -1), x.dtype)
