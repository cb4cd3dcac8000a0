"""Evaluation metrics against hand-computed values."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator

import numpy as np
import pytest

from configs.errors import DataError
from data.loading.batch import Batch
from runtime.training.evaluation import TokenCounts, evaluate

# Nats of each token of three rows, and the ids that they are nats of.
NATS_BS = np.array([[0.5, 1.5], [2.0, 1.0], [3.0, 4.0]])
LABELS_BS = np.array([[0, 1], [2, 2], [1, 0]], np.int32)
BYTES_V = np.array([0, 3, 5], np.int32)


def batches(*weights: list) -> Iterator[Batch]:
    """The rows in batches of 2, weighted by row or by token; labels of weight 0 are valid ids too."""
    rows_BS = np.resize(LABELS_BS, (2 * len(weights), 2))
    for number, batch_weights in enumerate(weights):
        labels_BS = rows_BS[2 * number : 2 * number + 2]
        weights_BS = np.broadcast_to(np.array(batch_weights, np.float32).reshape(2, -1), (2, 2))
        yield Batch(labels_BS + 10, labels_BS, weights_BS, 0)


def step_of_rows():
    """Returns a step that gives the nats of the rows, batch by batch."""
    nats = iter(np.resize(NATS_BS, (4, 2)).reshape(2, 2, 2).astype(np.float32))

    def step(tokens_BS: np.ndarray, labels_BS: np.ndarray) -> dict[str, np.ndarray]:
        np.testing.assert_array_equal(tokens_BS, labels_BS + 10)
        return {"token_loss": next(nats)}

    return step


def test_the_loss_is_the_mean_over_the_tokens_of_full_batches() -> None:
    measured = evaluate(step_of_rows(), batches([1, 1]), TokenCounts(True, None, None))
    assert evaluate(step_of_rows(), batches([1, 1]), TokenCounts(False, None, BYTES_V)) == {
        name: measured[name] for name in ("loss", "tokens")
    }
    assert measured == {"loss": 1.25, "perplexity": math.exp(1.25), "tokens": 4}


def test_rows_of_weight_0_do_not_count() -> None:
    measured = evaluate(step_of_rows(), batches([1, 1], [1, 0]), TokenCounts(True, None, BYTES_V))
    # 2 + 3 + 7 nats over 6 tokens, which are 0 + 3 + 5 + 5 + 3 + 0 bytes of text.
    assert measured["loss"] == 2.0
    assert measured["tokens"] == 6
    assert measured["perplexity"] == pytest.approx(math.e**2, rel=1e-12)
    assert measured["bits_per_byte"] == pytest.approx(12 / math.log(2) / 16, rel=1e-12)


def test_only_the_masked_labels_count() -> None:
    measured = evaluate(step_of_rows(), batches([[1, 0], [0, 1]], [[0, 1], [0, 0]]), TokenCounts(True, None, BYTES_V))
    # 0.5 + 1 + 4 nats of the ids 0, 2 and 0, of which only the second is text: 5 bytes.
    assert measured["loss"] == pytest.approx(5.5 / 3, rel=1e-12)
    assert measured["tokens"] == 3
    assert measured["bits_per_byte"] == pytest.approx(5.5 / math.log(2) / 5, rel=1e-12)


def test_labels_count_by_their_weight() -> None:
    measured = evaluate(step_of_rows(), batches([[0.5, 2.0], [0.0, 0.25]]), TokenCounts(True, None, BYTES_V))
    # Half of 0.5, twice 1.5 and a quarter of 1 nats; the ids 1 and 2 are 3 and 5 bytes of text.
    assert measured["loss"] == pytest.approx(3.5 / 2.75, rel=1e-12)
    assert measured["tokens"] == 3
    assert measured["bits_per_byte"] == pytest.approx(3.5 / math.log(2) / (2 * 3 + 0.25 * 5), rel=1e-12)


def test_steps_get_the_segments_of_a_batch() -> None:
    starts_BS = np.array([[0, 1], [0, 0]], np.int32)
    (batch,) = batches([1, 1])
    given = []

    def step(*inputs: np.ndarray) -> dict[str, np.ndarray]:
        given.append(inputs)
        return {"token_loss": NATS_BS[:2].astype(np.float32)}

    evaluate(step, [batch, dataclasses.replace(batch, segment_starts_BS=starts_BS)], TokenCounts(True, None, None))
    assert [len(inputs) for inputs in given] == [2, 3] and given[1][2] is starts_BS


def test_padding_does_not_count_even_where_it_has_a_weight() -> None:
    measured = evaluate(step_of_rows(), batches([[1, 0], [0, 1]]), TokenCounts(True, 2, None))
    assert (measured["loss"], measured["tokens"]) == (0.5, 1)


def test_masked_data_without_a_chosen_label_cannot_be_evaluated() -> None:
    with pytest.raises(DataError, match="^nothing to evaluate: .* never masked"):
        evaluate(step_of_rows(), batches([0, 0]), TokenCounts(True, 2, None))


def test_a_uniform_model_of_bytes_takes_eight_bits_a_byte() -> None:
    labels_BS = np.arange(256, dtype=np.int32).reshape(4, 64)
    uniform = [Batch(labels_BS, labels_BS, np.ones((4, 64), np.float32), 0)]
    nats_BS = np.full((4, 64), math.log(256), np.float32)
    measured = evaluate(
        lambda tokens, labels: {"token_loss": nats_BS}, uniform, TokenCounts(True, None, np.ones(256, int))
    )
    assert measured["bits_per_byte"] == pytest.approx(8.0, rel=1e-6)
    assert measured["perplexity"] == pytest.approx(256.0, rel=1e-5)


def test_many_tokens_are_summed_in_double_precision() -> None:
    labels_BS = np.zeros((1, 1001), np.int32)
    batch = Batch(labels_BS, labels_BS, np.ones((1, 1001), np.float32), 0)
    nats_BS = np.array([[2.0**24, *[0.5] * 1000]], np.float32)
    measured = evaluate(lambda tokens, labels: {"token_loss": nats_BS}, [batch] * 2, TokenCounts(True, None, None))
    assert measured["loss"] == (2.0**24 + 500) / 1001


def test_padding_counts_neither_as_tokens_nor_as_nats() -> None:
    measured = evaluate(step_of_rows(), batches([1, 1]), TokenCounts(True, 2, BYTES_V))
    # Of the rows 0.5 1.5 and 2.0 1.0 the second holds padding, id 2, alone.
    assert measured["loss"] == 1.0
    assert measured["tokens"] == 2
    assert measured["bits_per_byte"] == pytest.approx(2 / math.log(2) / 3, rel=1e-12)


def test_a_huge_loss_has_a_finite_perplexity() -> None:
    batch = Batch(LABELS_BS[:1], LABELS_BS[:1], np.ones((1, 2), np.float32), 0)
    nats_BS = np.full((1, 2), 5e5, np.float32)
    measured = evaluate(lambda tokens, labels: {"token_loss": nats_BS}, [batch], TokenCounts(True, None, None))
    assert measured["loss"] == 5e5
    assert math.isfinite(measured["perplexity"])


def test_data_that_is_only_padding_cannot_be_evaluated() -> None:
    labels_BS = np.full((1, 2), 7, np.int32)
    batch = Batch(labels_BS, labels_BS, np.ones((1, 2), np.float32), 0)
    with pytest.raises(DataError) as error:
        evaluate(lambda tokens, labels: {"token_loss": np.ones((1, 2))}, [batch], TokenCounts(True, 7, None))
    assert str(error.value) == (
        "nothing to evaluate: every label is padding_id 7, or an id that is never masked; give held-out text, or the "
        "padding_id of the tokenizer"
    )
