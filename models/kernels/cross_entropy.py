"""The terms of the cross-entropy on slices of the vocabulary."""

from __future__ import annotations

import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled


@compiled
def largest_logit(logits: tf.Tensor) -> tf.Tensor:
    """[..., V] -> float32 [...]."""
    return tf.cast(tf.reduce_max(logits, -1), tf.float32)


@compiled
def exponentials_and_label_logit(
    logits: tf.Tensor, labels: tf.Tensor, largest: tf.Tensor, vocab_start: tf.Tensor
) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
    """Returns exp(logit - largest), its sum over this slice, and the logit of the label, 0 if it is not in the slice.

    [..., V], [...], [...], scalar -> float32 [..., V], [...], [...].
    """
    logits = tf.cast(logits, tf.float32)
    local, is_here = labels_in_slice(labels, vocab_start, logits.shape[-1])
    label_logit = tf.where(is_here, tf.gather(logits, local, batch_dims=labels.shape.rank), 0.0)
    exponentials = tf.exp(logits - largest[..., None])
    return exponentials, tf.reduce_sum(exponentials, -1), label_logit


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


@functools.cache
def finished_logits(softcap: float | None) -> Kernel:
    """(products [N, V], bias [V] or nothing) -> logits [N, V], with the bias and the bound that the model has."""

    def kernel(products: tf.Tensor, *bias: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(products, tf.float32)
        if bias:
            logits += tf.cast(bias[0], tf.float32)
        return tf.cast(logits if softcap is None else softcap * tf.tanh(logits / softcap), products.dtype)

    return compiled(kernel)


@functools.cache
def weighted_cross_entropy(z_loss: float, softcap: float | None, dtype: tf.DType) -> Kernel:
    """Returns the kernel of the loss of a block of tokens and its gradient.

    (exponentials [N, V], their sum, label_logit, log_z, labels, weights [N], vocab_start, with a bound the logits
    [N, V]) -> the sums of weights * (cross-entropy + z_loss * log_z^2) and of weights * cross-entropy, float32 scalars,
    and d_products [N, V] of the first in a dtype: those before the bound, if there is one.
    """

    def kernel(
        exponentials: tf.Tensor,
        total: tf.Tensor,
        label_logit: tf.Tensor,
        log_z: tf.Tensor,
        labels: tf.Tensor,
        weights: tf.Tensor,
        vocab_start: tf.Tensor,
        *logits: tf.Tensor,
    ) -> tuple[tf.Tensor, tf.Tensor, tf.Tensor]:
        mean = tf.reduce_sum(weights * (log_z - label_logit))
        loss = mean + z_loss * tf.reduce_sum(weights * tf.square(log_z))
        scale = weights * (1.0 + 2.0 * z_loss * log_z) / total
        is_label = vocab_start + tf.range(exponentials.shape[-1]) == labels[:, None]
        d_logits = exponentials * scale[:, None] - tf.where(is_label, weights[:, None], 0.0)
        if softcap is not None:
            d_logits *= 1.0 - tf.square(tf.cast(logits[0], tf.float32) / softcap)
        return loss, mean, tf.cast(d_logits, dtype)

    return compiled(kernel)
