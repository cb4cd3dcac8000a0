"""The choice of the next token."""

from __future__ import annotations

import dataclasses
import functools

from meshtf import tf
from models.kernels.compile import Kernel, compiled
from models.kernels.entmax import entmax
from models.kernels.noise import uniform

LOWEST_TEMPERATURE = 1e-30  # below it float32 has too few digits to divide by


@dataclasses.dataclass(frozen=True)
class SamplingRule:
    """How the next token is chosen from its logits.

    Attributes:
      temperature: divides the logits; 0: the likeliest token.
      top_k: only the k likeliest tokens; 0: all.
      top_p: only the likeliest tokens that together hold this probability; 1: all.
      entmax: probabilities are the entmax of the logits, not their softmax.
    """

    temperature: float
    top_k: int
    top_p: float
    entmax: bool = False


def filtered_logits(rule: SamplingRule, logits: tf.Tensor) -> tf.Tensor:
    """Logits whose softmax the next token is drawn from: divided by the temperature, and -inf for tokens that may not
    be drawn. float32 [B, V] -> [B, V].

    Source: top-k, Fan et al. 2018, Hierarchical Neural Story Generation, section 5; top-p, Holtzman et al. 2020, The
    Curious Case of Neural Text Degeneration, section 3.1; entmax in place of the softmax, GPT-Neo.
    """
    # From the largest one down, so that no temperature takes a logit out of range.
    logits = (logits - tf.reduce_max(logits, -1, keepdims=True)) / max(rule.temperature, LOWEST_TEMPERATURE)
    if rule.entmax:
        logits = tf.math.log(entmax(logits))
    if 0 < rule.top_k < logits.shape[-1]:
        smallest = tf.math.top_k(logits, rule.top_k).values[:, -1:]
        logits = tf.where(logits < smallest, -float("inf"), logits)
    if rule.top_p < 1.0:
        descending = tf.sort(logits, axis=-1, direction="DESCENDING")
        before = tf.cumsum(tf.nn.softmax(descending), axis=-1, exclusive=True)
        smallest = tf.reduce_min(tf.where(before < rule.top_p, descending, float("inf")), -1, keepdims=True)
        logits = tf.where(logits < smallest, -float("inf"), logits)
    return logits


@functools.cache
def sample(rule: SamplingRule) -> Kernel:
    """(logits [B, V], key, rows [B]) -> int32 [B], drawn by the Gumbel-max trick: a function of key and row."""

    def kernel(logits: tf.Tensor, key: tf.Tensor, rows: tf.Tensor) -> tf.Tensor:
        logits = tf.cast(logits, tf.float32)
        if rule.temperature:
            noise = uniform(key, rows, tf.constant([0]), tuple(logits.shape))
            logits = filtered_logits(rule, logits) - tf.math.log(-tf.math.log(noise))
        return tf.argmax(logits, -1, output_type=tf.int32)

    return compiled(kernel)
