"""The elementwise work between the exchanges of ring attention, on slices."""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled


@functools.cache
def merge_rows(begin: int) -> Kernel:
    """Returns the kernel that merges attention of some rows over more keys into that of all rows.

    (outputs float32 [B, S, H, D], log_z [B, H, S], others [B, R, H, D] of the rows from `begin` on, their log_z
    [B, H, R], whether there are others) -> (outputs, log_z) over both sets of keys.

    Source: Liu et al. 2023, Ring Attention with Blockwise Transformers, section 3; Dao et al. 2022, section 3.1.
    """

    def kernel(
        outputs: tf.Tensor, log_z: tf.Tensor, others: tf.Tensor, other_log_z: tf.Tensor, are_there: tf.Tensor
    ) -> tuple[tf.Tensor, tf.Tensor]:
        n_after = outputs.shape[1] - begin - others.shape[1]
        nothing = tf.constant(float("-inf"))
        other_log_z = tf.where(are_there, other_log_z, nothing)
        other_log_z = tf.pad(other_log_z, [[0, 0], [0, 0], [begin, n_after]], constant_values=nothing)
        others = tf.pad(tf.cast(others, tf.float32), [[0, 0], [begin, n_after], [0, 0], [0, 0]])
        share = tf.transpose(tf.sigmoid(log_z - other_log_z), [0, 2, 1])[..., None]
        return outputs * share + others * (1.0 - share), log_z + tf.math.softplus(other_log_z - log_z)

    return compiled(kernel)


@functools.cache
def add_rows(begin: int) -> Kernel:
    """Returns the kernel that adds to some rows.

    (sums float32 [B, S, H, D], summands [B, R, H, D] of the rows from `begin` on, whether there are summands) -> sums.
    """

    def kernel(sums: tf.Tensor, summands: tf.Tensor, are_there: tf.Tensor) -> tf.Tensor:
        n_after = sums.shape[1] - begin - summands.shape[1]
        summands = tf.where(are_there, tf.cast(summands, tf.float32), 0.0)
        return sums + tf.pad(summands, [[0, 0], [begin, n_after], [0, 0], [0, 0]])

    return compiled(kernel)
