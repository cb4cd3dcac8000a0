"""Loss on held-out data, over every token once."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping
from typing import Protocol

import numpy as np


class EvaluationBatch(Protocol):
    """Rows of weight 0 only fill the last batch up."""

    tokens_BS: np.ndarray
    labels_BS: np.ndarray
    weights_B: np.ndarray


def evaluate(
    step: Callable[..., Mapping[str, np.ndarray]], batches: Iterable[EvaluationBatch], token_bytes_V: np.ndarray | None
) -> dict[str, float]:
    """Measures the loss.

    Args:
      step: from (tokens_BS, labels_BS) to `cross_entropy`, the sum over each row's tokens in nats.
      batches: a finite stream.
      token_bytes_V: UTF-8 bytes that each token stands for; None: not known.

    Returns:
      `loss` (nats a token), `perplexity` (its exponential), `tokens`, and, if the bytes are known, `bits_per_byte` of
      the text.
    """
    total_nats, n_tokens, n_bytes = 0.0, 0, 0
    for batch in batches:
        is_real_B = batch.weights_B > 0
        row_nats_B = step(batch.tokens_BS, batch.labels_BS)["cross_entropy"].astype(np.float64)
        total_nats += float(row_nats_B[is_real_B].sum())
        n_tokens += int(batch.labels_BS[is_real_B].size)
        if token_bytes_V is not None:
            n_bytes += int(token_bytes_V[batch.labels_BS[is_real_B]].sum())
    loss = total_nats / n_tokens
    measured = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": n_tokens}
    return {**measured, "bits_per_byte": total_nats / math.log(2) / n_bytes} if n_bytes else measured
