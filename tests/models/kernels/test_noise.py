"""Random numbers by index, and dropout."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import tf
from models.kernels import noise


def dropped(rate: float, key: int = 3, shape: tuple[int, ...] = (8, 64, 128)) -> np.ndarray:
    rows, starts = np.arange(shape[0], dtype=np.int32), np.zeros(len(shape) - 1, np.int32)
    return np.asarray(noise.dropout(rate)(np.ones(shape, np.float32), np.int32(key), rows, starts))


@pytest.mark.parametrize("rate", [0.1, 0.5, 0.9])
def test_dropout_zeroes_its_share_and_scales_the_rest(rate: float) -> None:
    factors = dropped(rate)
    np.testing.assert_allclose(np.unique(factors), [0.0, 1.0 / (1.0 - rate)], rtol=1e-6)
    # Five standard deviations of the share of 65536 draws, which each row and each feature must meet too.
    bound = 5.0 * np.sqrt(rate * (1.0 - rate))
    assert abs((factors == 0).mean() - rate) < bound / np.sqrt(factors.size)
    assert np.abs((factors == 0).mean((1, 2)) - rate).max() < bound / np.sqrt(64 * 128)
    assert np.abs((factors == 0).mean((0, 1)) - rate).max() < bound / np.sqrt(8 * 64)


def test_dropout_differs_by_key_and_by_row() -> None:
    zeros = {key: dropped(0.5, key) == 0 for key in (3, 4, 2**31 - 1, -(2**31))}
    masks = [mask for key in zeros for mask in zeros[key]]
    for index, mask in enumerate(masks):
        for other in masks[:index]:
            assert abs((mask == other).mean() - 0.5) < 5 * 0.5 / np.sqrt(mask.size)


@given(st.data())
@settings(max_examples=25, deadline=None)
def test_a_slice_has_the_numbers_of_the_whole(data: st.DataObject) -> None:
    shape = tuple(data.draw(st.lists(st.integers(1, 7), min_size=2, max_size=4), label="shape"))
    begins = [data.draw(st.integers(0, size - 1)) for size in shape]
    sizes = [data.draw(st.integers(1, size - begin)) for begin, size in zip(begins, shape, strict=True)]
    rows = tf.constant(data.draw(st.permutations(range(100, 100 + shape[0]))), tf.int32)
    own_rows = rows[begins[0] : begins[0] + sizes[0]]
    key, origin = tf.constant(5), tf.zeros(len(shape) - 1, tf.int32)
    whole = noise.uniform(key, rows, origin, shape)
    part = noise.uniform(key, own_rows, tf.constant(begins[1:], tf.int32), tuple(sizes))
    np.testing.assert_array_equal(part, whole[tuple(map(slice, begins, np.add(begins, sizes)))])


def test_uniform_numbers_are_uniform() -> None:
    numbers = np.asarray(noise.uniform(tf.constant(1), tf.range(64), tf.zeros(2, tf.int32), (64, 32, 64)))
    assert numbers.dtype == np.float32 and numbers.min() >= 0.0 and numbers.max() < 1.0
    counts = np.bincount((numbers * 256).astype(int).ravel(), minlength=256)
    chi_square = ((counts - numbers.size / 256) ** 2 / (numbers.size / 256)).sum()
    assert abs(chi_square - 255) < 5 * np.sqrt(2 * 255)
    for shifted in (numbers[1:] * numbers[:-1], numbers[:, 1:] * numbers[:, :-1], numbers[..., 1:] * numbers[..., :-1]):
        assert abs(shifted.mean() - 0.25) < 5 * 0.23 / np.sqrt(shifted.size)


def test_dropout_of_bfloat16_keeps_the_dtype_and_the_mask() -> None:
    rows, starts = np.arange(8, dtype=np.int32), np.zeros(2, np.int32)
    y = noise.dropout(0.5)(tf.ones((8, 64, 128), tf.bfloat16), np.int32(3), rows, starts)
    assert y.dtype == tf.bfloat16
    np.testing.assert_array_equal(np.asarray(tf.cast(y, tf.float32)), dropped(0.5))
