"""The softmax attention kernels against NumPy in float64, forward and backward."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import tf
from models.kernels import attention, noise
from models.kernels.attention import AttentionParams
from tests.models import reference_attention as reference

KEY, ROWS, ORIGIN = np.int32(11), np.arange(2, dtype=np.int32), np.zeros(3, np.int32)
N_HEADS, N_FEATURES = 3, 4


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(size=shape).astype(np.float32)


def close(actual: object, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def all_close(actual: object, expected: object, tolerance: float = 1e-5) -> None:
    for one, other in zip(actual, expected, strict=True):
        close(one, other, tolerance)


def doubles(*arrays: np.ndarray) -> list[np.ndarray]:
    return [array.astype(np.float64) for array in arrays]


def inputs_of(n_queries: int, n_keys: int | None = None) -> list[np.ndarray]:
    """Queries, keys and values."""
    lengths = (n_queries, n_keys or n_queries, n_keys or n_queries)
    return [normal(2, length, N_HEADS, N_FEATURES, seed=seed) for seed, length in enumerate(lengths)]


def attend(rule: AttentionParams, inputs: list[np.ndarray], is_aligned: bool = True) -> tuple[tf.Tensor, tf.Tensor]:
    return attention.attention(rule, is_aligned)(*inputs, ORIGIN, KEY, ROWS)


def gradients(
    rule: AttentionParams, inputs: list[np.ndarray], *d_results: np.ndarray, is_aligned: bool = True
) -> tuple[tf.Tensor, ...]:
    """Gradients of queries, keys and values from d_outputs and optionally d_log_z."""
    results = attend(rule, inputs, is_aligned)
    return attention.attention_gradient(rule, is_aligned)(*inputs, ORIGIN, KEY, ROWS, *results, *d_results)


def dropout_factor(rate: float, length: int) -> np.ndarray:
    shape = (2, N_HEADS, length, length)
    uniform = np.asarray(noise.uniform(tf.constant(KEY), tf.constant(ROWS), tf.constant(ORIGIN), shape))
    return np.where(uniform >= rate, 1.0 / (1.0 - rate), 0.0)


# Blocks have 64 queries here; radii below, at and above that, and longer than the sequence.
LENGTHS_AND_RADII = [(1, None), (7, 3), (7, 20), (130, None), (130, 64), (130, 100)]


@pytest.mark.parametrize("is_causal", [True, False])
@pytest.mark.parametrize(("length", "radius"), LENGTHS_AND_RADII)
def test_masks(length: int, radius: int | None, is_causal: bool) -> None:
    inputs, rule = inputs_of(length), AttentionParams(is_causal, radius, 0.0)
    d_outputs, d_log_z = normal(2, length, N_HEADS, N_FEATURES, seed=9), normal(2, N_HEADS, length, seed=9)
    seen = reference.visible(length, length, is_causal, radius)
    all_close(attend(rule, inputs), reference.softmax_attention(*doubles(*inputs), seen))
    expected = reference.softmax_attention_gradient(doubles(*inputs), seen, d_outputs, d_log_z)
    all_close(gradients(rule, inputs, d_outputs, d_log_z), expected, 2e-5)


@pytest.mark.parametrize("radius", [None, 70])
def test_blocks_in_parts(radius: int | None, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their dropout, bounds, masks and sums over the parts are those of whole blocks."""
    rule = AttentionParams(True, radius, 0.3, softcap=2.0, has_segments=True)
    inputs, d_outputs = inputs_of(130), normal(2, 130, N_HEADS, N_FEATURES, seed=9)
    segments = [np.where(np.arange(130) < [[40], [90]], 0, [[40], [90]]).astype(np.int32)] * 2

    def results() -> list[tf.Tensor]:
        for kernel in (attention.attention, attention.attention_gradient, attention.attention_block_gradient):
            kernel.cache_clear()
        outputs = attention.attention(rule, True)(*inputs, ORIGIN, KEY, ROWS, *segments)
        gradient = attention.attention_gradient(rule, True)
        return [*outputs, *gradient(*inputs, ORIGIN, KEY, ROWS, *segments, *outputs, d_outputs)]

    whole = results()
    monkeypatch.setattr(attention, "PART_BYTES", 50_000)
    monkeypatch.setattr(attention, "SMALLEST_PART", 1)
    all_close(results(), whole)


def test_keys_that_are_split_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    rule = AttentionParams(True, None, 0.3, has_segments=True)
    queries, keys, values = inputs_of(130)
    segments = [np.where(np.arange(130) < [[40], [90]], 0, [[40], [90]]).astype(np.int32)] * 2

    def results() -> list[tf.Tensor]:
        for kernel in (attention.attention_largest_logit, attention.attention_sums):
            kernel.cache_clear()
        largest = attention.attention_largest_logit(rule)(queries, keys, ORIGIN, *segments)
        return [largest, *attention.attention_sums(rule)(queries, keys, values, ORIGIN, KEY, ROWS, largest, *segments)]

    whole = results()
    monkeypatch.setattr(attention, "PART_BYTES", 50_000)
    monkeypatch.setattr(attention, "SMALLEST_PART", 1)
    all_close(results(), whole)


@pytest.mark.parametrize(
    ("n_rows", "n_queries", "n_parts"),
    [(8, 1024, 8), (8, 1000, 8), (8, 1022, 14), (8, 1021, 1), (1, 1, 1), (96, 128, 2), (1024, 1024, 16)],
)
def test_parts_divide_the_queries_and_have_64_or_more(n_rows: int, n_queries: int, n_parts: int) -> None:
    assert attention.n_parts_of(n_rows, n_queries, n_keys=8192) == n_parts


def test_bounded_logits() -> None:
    inputs, rule, seen = inputs_of(7), AttentionParams(True, 3, 0.0, softcap=0.5), reference.visible(7, 7, True, 3)
    d_outputs, d_log_z = normal(2, 7, N_HEADS, N_FEATURES, seed=9), normal(2, N_HEADS, 7, seed=9)

    def total(*inputs: np.ndarray) -> float:
        outputs, log_z = reference.softmax_attention(*inputs, seen, softcap=0.5)
        return (outputs * d_outputs).sum() + (log_z * d_log_z).sum()

    all_close(attend(rule, inputs), reference.softmax_attention(*doubles(*inputs), seen, softcap=0.5))
    all_close(gradients(rule, inputs, d_outputs, d_log_z), reference.slopes(total, doubles(*inputs)))


@pytest.mark.parametrize("radius", [None, 70])
def test_the_gradient_of_the_outputs_alone(radius: int | None) -> None:
    inputs, d_outputs = inputs_of(130), normal(2, 130, N_HEADS, N_FEATURES, seed=9)
    seen = reference.visible(130, 130, True, radius)
    expected = reference.softmax_attention_gradient(doubles(*inputs), seen, d_outputs)
    all_close(gradients(AttentionParams(True, radius, 0.0), inputs, d_outputs), expected, 2e-5)


def test_fewer_keys_than_queries_without_a_mask() -> None:
    inputs, rule = inputs_of(70, 3), AttentionParams(is_causal=False, radius=None, dropout_rate=0.0)
    d_outputs, d_log_z = normal(2, 70, N_HEADS, N_FEATURES, seed=9), normal(2, N_HEADS, 70, seed=9)
    seen = np.ones((70, 3), bool)
    all_close(attend(rule, inputs, is_aligned=False), reference.softmax_attention(*doubles(*inputs), seen))
    expected = reference.softmax_attention_gradient(doubles(*inputs), seen, d_outputs, d_log_z)
    all_close(gradients(rule, inputs, d_outputs, d_log_z, is_aligned=False), expected, 2e-5)


def test_log_z_by_hand() -> None:
    numbers = np.array([2, 3, 5], np.float32).reshape(3, 1, 1, 1, 1)
    queries, keys, values = np.ones((3, 1, 2, 1, 1), np.float32) * numbers
    kernel = attention.attention(AttentionParams(is_causal=True, radius=None, dropout_rate=0.0), True)
    outputs, log_z = kernel(queries, keys, values, ORIGIN, KEY, np.zeros(1, np.int32))
    close(log_z, np.array([[[6.0, 6.0 + np.log(2.0)]]]))
    close(outputs, np.full((1, 2, 1, 1), 5.0))


@pytest.mark.parametrize(("is_causal", "radius"), [(True, None), (True, 2), (False, 2)])
def test_the_gradient_of_the_reference_by_central_differences(is_causal: bool, radius: int | None) -> None:
    inputs = doubles(*(normal(1, 4, 1, 2, seed=seed) for seed in range(3)))
    d_outputs, d_log_z = doubles(normal(1, 4, 1, 2, seed=9), normal(1, 1, 4, seed=9))
    seen, factor = reference.visible(4, 4, is_causal, radius), np.where(normal(1, 1, 4, 4, seed=8) > 0, 2.0, 0.0)

    def result(*inputs: np.ndarray) -> float:
        outputs, log_z = reference.softmax_attention(*inputs, seen, factor)
        return (outputs * d_outputs).sum() + (log_z * d_log_z).sum()

    actual = reference.softmax_attention_gradient(inputs, seen, d_outputs, d_log_z, factor)
    all_close(actual, reference.slopes(result, inputs), 1e-8)


@pytest.mark.parametrize(("is_causal", "radius"), [(True, None), (True, 3), (False, None), (False, 3)])
def test_slices_of_keys_equal_the_whole(is_causal: bool, radius: int | None) -> None:
    queries, keys, values = inputs_of(8)
    rule = AttentionParams(is_causal, radius, dropout_rate=0.4)
    halves = [(slice(start, start + 4), np.array([0, 0, start], np.int32)) for start in (0, 4)]
    largest = np.max([attention.attention_largest_logit(rule)(queries, keys[:, half], at) for half, at in halves], 0)
    parts = [
        attention.attention_sums(rule)(queries, keys[:, half], values[:, half], at, KEY, ROWS, largest)
        for half, at in halves
    ]
    total, weighted = (sum(np.asarray(part[index]) for part in parts) for index in (0, 1))
    aligned, unaligned = (attend(rule, [queries, keys, values], is_aligned)[0] for is_aligned in (True, False))
    close(weighted / total.transpose(0, 2, 1)[..., None], unaligned)
    close(aligned, unaligned)


@pytest.mark.parametrize(("is_causal", "radius"), [(True, None), (True, 70), (False, 70)])
def test_dropout(is_causal: bool, radius: int | None) -> None:
    inputs, d_outputs = inputs_of(130), normal(2, 130, N_HEADS, N_FEATURES, seed=9)
    d_log_z, seen = normal(2, N_HEADS, 130, seed=9), reference.visible(130, 130, is_causal, radius)
    factor, rule = dropout_factor(0.25, 130), AttentionParams(is_causal, radius, 0.25)
    all_close(attend(rule, inputs), reference.softmax_attention(*doubles(*inputs), seen, factor))
    expected = reference.softmax_attention_gradient(doubles(*inputs), seen, d_outputs, d_log_z, factor)
    all_close(gradients(rule, inputs, d_outputs, d_log_z), expected, 2e-5)


def test_bfloat16_has_float32_statistics() -> None:
    rule = AttentionParams(is_causal=True, radius=None, dropout_rate=0.0)
    inputs = [tf.cast(x, tf.bfloat16) for x in inputs_of(40)]
    outputs, log_z = attend(rule, inputs)
    exact = [np.asarray(tf.cast(x, tf.float64)) for x in inputs]
    expected = reference.softmax_attention(*exact, reference.visible(40, 40, True, None))
    assert (outputs.dtype, log_z.dtype) == (tf.bfloat16, tf.float32)
    all_close((tf.cast(outputs, tf.float32), log_z), expected, 0.03)
    assert {x.dtype for x in gradients(rule, inputs, outputs)} == {tf.bfloat16}


STARTS = reference.segments((1, 5, 60, 64), (66, 64))


@pytest.mark.parametrize("is_aligned", [True, False])
@pytest.mark.parametrize(("is_causal", "radius"), [(True, None), (True, 70), (False, None), (False, 3)])
def test_a_segment_is_as_if_alone(is_causal: bool, radius: int | None, is_aligned: bool) -> None:
    inputs, rule = inputs_of(130), AttentionParams(is_causal, radius, 0.0, has_segments=True)
    d_outputs = normal(2, 130, N_HEADS, N_FEATURES, seed=9)

    def exact(*inputs: np.ndarray) -> tuple[np.ndarray, ...]:
        *inputs, d_outputs = inputs
        seen = reference.visible(inputs[0].shape[1], inputs[0].shape[1], is_causal, radius)
        gradients = reference.softmax_attention_gradient(inputs, seen, d_outputs)
        return reference.softmax_attention(*inputs, seen)[0], *gradients

    arguments = (*inputs, ORIGIN, KEY, ROWS, STARTS, STARTS)
    results = attention.attention(rule, is_aligned)(*arguments)
    gradients = attention.attention_gradient(rule, is_aligned)(*arguments, *results, d_outputs)
    for index, actual in enumerate((results[0], *gradients)):
        alone = reference.by_segment(lambda *own, index=index: exact(*own)[index], STARTS, *doubles(*inputs, d_outputs))
        close(actual, alone, 2e-5)
