"""The terms of the cross-entropy on slices of the vocabulary."""

from __future__ import annotations

from meshtf import tf
from models.kernels.compile import compiled


@compiled
def largest_logit(logits: tf.Tensor) -> tf.Tensor:
    """[B, S, V] -> float32 [B, S]."""
    return tf.cast(tf.reduce_max(logits, -1), tf.float32)


@compiled
def exponential_sum_and_label_logit(
    logits: tf.Tensor, labels: tf.Tensor, largest: tf.Tensor, vocab_start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns the sum of exp(logit - largest) over this slice, and the logit of the label, 0 if it is not in the slice.

    [B, S, V], [B, S], [B, S], scalar -> float32 [B, S] twice.
    """
    logits = tf.cast(logits, tf.float32)
    local, is_here = labels_in_slice(labels, vocab_start, logits.shape[-1])
    label_logit = tf.where(is_here, tf.gather(logits, local, batch_dims=2), 0.0)
    return tf.reduce_sum(tf.exp(logits - largest[..., None]), -1), label_logit


def labels_in_slice(labels: tf.Tensor, start: tf.Tensor, size: int) -> tuple[tf.Tensor, tf.Tensor]:
    """Returns labels relative to the start of the slice, clipped into it, and whether each lies in it."""
    local = labels - start
    return tf.clip_by_value(local, 0, size - 1), (local >= 0) & (local < size)


@compiled
def is_beaten(logits: tf.Tensor, labels: tf.Tensor, label_logit: tf.Tensor, vocab_start: tf.Tensor) -> tf.Tensor:
    """Returns whether this slice holds a larger logit than the label's, or an equal one before it; NaN loses.

    [B, S, V], int32 [B, S], float32 [B, S], scalar -> int32 [B, S], 1 or 0.
    """
    logits, label_logit = tf.cast(logits, tf.float32), label_logit[..., None]
    is_before = vocab_start + tf.range(logits.shape[-1]) < labels[..., None]
    is_less = tf.where(is_before, logits < label_logit, logits <= label_logit)
    return tf.cast(tf.reduce_any(~is_less, -1), tf.int32)


@compiled
def cross_entropy_gradient(
    logits: tf.Tensor,
    labels: tf.Tensor,
    log_z: tf.Tensor,
    d_log_z: tf.Tensor,
    d_label_logit: tf.Tensor,
    vocab_starts: tf.Tensor,
) -> tf.Tensor:
    """d_logits [B, S, V] = softmax * d_log_z + one_hot(label) * d_label_logit, without the one-hot.

    The slice begins at `vocab_starts`, int32 [1].
    """
    softmax = tf.exp(tf.cast(logits, tf.float32) - log_z[..., None])
    is_label = vocab_starts + tf.range(logits.shape[-1]) == labels[..., None]
    return tf.cast(softmax * d_log_z[..., None] + tf.where(is_label, d_label_logit[..., None], 0.0), logits.dtype)
