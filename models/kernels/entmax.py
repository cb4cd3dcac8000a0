"""Entmax, a sparse softmax, and its loss, on slices with the whole vocabulary."""

from __future__ import annotations

from meshtf import tf
from models.kernels.compile import compiled

ENTMAX_ALPHA = 1.3  # 1: softmax; 2: sparsemax. GPT-Neo's.

# Each step shrinks the error at least by the factor 2 - alpha, and quadratically near the root: enough for float32 and
# a million tokens.
N_NEWTON_STEPS = 16


def _power(base: tf.Tensor, exponent: float) -> tf.Tensor:
    """base^exponent for base >= 0 and exponent > 0; as exp and log, since XLA does not vectorise powers on CPUs."""
    return tf.exp(exponent * tf.math.log(base))


def _centered(logits: tf.Tensor) -> tf.Tensor:
    """Shifts float32 logits so that the largest is 0, which changes no probability."""
    logits = tf.cast(logits, tf.float32)
    return logits - tf.reduce_max(logits, -1, keepdims=True)


def _excess(centered: tf.Tensor, tau: tf.Tensor) -> tf.Tensor:
    return tf.maximum((ENTMAX_ALPHA - 1.0) * centered - tau[..., None], 0.0)


def _threshold(centered: tf.Tensor) -> tf.Tensor:
    """Finds the tau at which the probabilities of centred logits sum to 1: float32 [..., V] -> [...], in [-1, 0).

    Newton's method on a convex, decreasing sum: from below the root it increases and never overshoots. It needs a third
    of the passes over the logits that bisection needs.
    """
    exponent = 1.0 / (ENTMAX_ALPHA - 1.0)

    def step(n_made: tf.Tensor, tau: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
        excess = _excess(centered, tau)
        slopes = _power(excess, exponent - 1.0)
        too_much = tf.reduce_sum(slopes * excess, -1) - 1.0
        return n_made + 1, tau + too_much / (exponent * tf.reduce_sum(slopes, -1))

    lowest = tf.fill(centered.shape[:-1], -1.0)  # there the most likely token alone has probability 1
    return tf.while_loop(lambda n_made, _: n_made < N_NEWTON_STEPS, step, (0, lowest))[1]


def _probabilities(centered: tf.Tensor, tau: tf.Tensor) -> tf.Tensor:
    weights = _power(_excess(centered, tau), 1.0 / (ENTMAX_ALPHA - 1.0))
    return weights / tf.reduce_sum(weights, -1, keepdims=True)


@compiled
def entmax(logits: tf.Tensor) -> tf.Tensor:
    """[..., V] -> float32 probabilities [..., V], exactly 0 for tokens far below the most likely.

    Source: Peters, Niculae & Martins 2019, Sparse Sequence-to-Sequence Models, section 3.
    """
    centered = _centered(logits)
    return _probabilities(centered, _threshold(centered))


@compiled
def entmax_loss(logits: tf.Tensor, labels: tf.Tensor) -> tuple[tf.Tensor, tf.Tensor]:
    """[B, S, V], [B, S] -> the loss and tau, float32 [B, S] each.

    Source: Peters, Niculae & Martins 2019, equation 9. It is finite where the label has the probability 0, unlike -log
    of it, and 0 where the label has all.
    """
    centered = _centered(logits)
    tau = _threshold(centered)
    probabilities = _probabilities(centered, tau)
    sum_of_powers = tf.reduce_sum(_power(probabilities, ENTMAX_ALPHA), -1)
    entropy = (1.0 - sum_of_powers) / (ENTMAX_ALPHA * (ENTMAX_ALPHA - 1.0))
    label_logit = tf.gather(centered, labels, batch_dims=labels.shape.rank)
    return tf.reduce_sum(probabilities * centered, -1) - label_logit + entropy, tau


@compiled
def entmax_loss_gradient(logits: tf.Tensor, labels: tf.Tensor, tau: tf.Tensor, d_loss: tf.Tensor) -> tf.Tensor:
    """d_logits [B, S, V] = (probabilities - one_hot(label)) * d_loss, the probabilities computed again from tau."""
    is_label = tf.range(logits.shape[-1]) == labels[..., None]
    d_logits = (_probabilities(_centered(logits), tau) - tf.cast(is_label, tf.float32)) * d_loss[..., None]
    return tf.cast(d_logits, logits.dtype)
