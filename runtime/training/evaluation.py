"""The loss on held-out data, over every token or pair once."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Mapping

import numpy as np

from configs.errors import DataError
from data.loading.batch import Batch


@dataclasses.dataclass(frozen=True)
class TokenCounts:
    """Which labels count, and how many bytes of text they stand for.

    Attributes:
        has_likelihood: the loss is -log p(label), so that perplexity and bits per byte are defined.
        padding_id: labels with this id are padding, and do not count; None if there is no such id.
        bytes_V: UTF-8 bytes of each id, int [vocab]; None if unknown.
    """

    has_likelihood: bool
    padding_id: int | None
    bytes_V: np.ndarray | None


def evaluate(
    step: Callable[..., Mapping[str, np.ndarray]], batches: Iterable[Batch], counts: TokenCounts
) -> dict[str, float]:
    """Measures the loss.

    Args:
        step: maps tokens_BS, labels_BS and, if there are segments, segment_starts_BS to `token_loss`, each token's
            nats, float32 [batch, sequence].
        batches: a finite stream; labels of weight 0, such as padding, are not measured.
        counts: which labels count.

    Returns:
        `loss` (nats per token, the mean by the weights) and `tokens`, how many are measured; for a likelihood also
        `perplexity` (exp of the loss) and, if the bytes are known, `bits_per_byte` of the text.

    Raises:
        DataError: no label counts.
    """
    total_nats, total_weight, n_tokens, n_bytes = 0.0, 0.0, 0, 0.0
    for batch in batches:
        counted_BS = (batch.weights_BS > 0) & (batch.labels_BS != counts.padding_id)
        weights = batch.weights_BS[counted_BS].astype(np.float64)
        nats_BS = step(batch.tokens_BS, batch.labels_BS, *batch.segments)["token_loss"]
        total_nats += float(weights @ nats_BS[counted_BS])
        total_weight += float(weights.sum())
        n_tokens += len(weights)
        if counts.bytes_V is not None:
            n_bytes += float(weights @ counts.bytes_V[batch.labels_BS[counted_BS]])
    if n_tokens == 0:
        raise DataError(
            f"nothing to evaluate: every label is padding_id {counts.padding_id}, or an id that is never masked; "
            "give held-out text, or the padding_id of the tokenizer"
        )
    loss = total_nats / total_weight
    if not counts.has_likelihood:
        return {"loss": loss, "tokens": n_tokens}
    measured = {"loss": loss, "perplexity": math.exp(min(loss, 700.0)), "tokens": n_tokens}
    return {**measured, "bits_per_byte": total_nats / math.log(2) / n_bytes} if n_bytes else measured


def evaluate_pairs(step: Callable[..., Mapping[str, np.ndarray]], batches: Iterable[Batch]) -> dict[str, float]:
    """Measures a ranking model.

    Args:
        step: see `evaluate`; its loss at the end of the worse text of a pair is that of the pair.
        batches: see `evaluate`.

    Returns:
        `loss` (nats per pair), `accuracy` (share of the pairs whose better text scores higher) and `pairs`.

    Raises:
        DataError: there is no pair.
    """
    losses = [
        step(batch.tokens_BS, batch.labels_BS, *batch.segments)["token_loss"][batch.weights_BS > 0] for batch in batches
    ]
    nats = np.concatenate([np.zeros(0), *losses])
    if not len(nats):
        raise DataError("nothing to evaluate: the held-out data holds no pair; raise eval_fraction")
    # A pair with equal scores has a loss of log 2.
    return {"loss": float(nats.mean()), "accuracy": float((nats < math.log(2.0)).mean()), "pairs": len(nats)}
