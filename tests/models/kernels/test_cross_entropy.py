"""The kernels of the cross-entropy against NumPy in float64, on the whole vocabulary and on slices."""

from __future__ import annotations

import numpy as np
import pytest

from models.kernels import cross_entropy
from tests.models import reference
from tests.models.arrays import close, normal, slope


def log_z_and_label_logit(logits: np.ndarray, labels: np.ndarray, n_slices: int) -> tuple[np.ndarray, np.ndarray]:
    """Combines the slices of the vocabulary as `models/ops/cross_entropy.py` does."""
    slices = np.split(logits, n_slices, -1)
    largest = np.max([cross_entropy.largest_logit(part) for part in slices], 0)
    starts = [np.int32(index * slices[0].shape[-1]) for index in range(n_slices)]
    parts = [
        cross_entropy.exponential_sum_and_label_logit(part, labels, largest, start)
        for part, start in zip(slices, starts, strict=True)
    ]
    total, label_logit = (sum(np.asarray(part[index]) for part in parts) for index in (0, 1))
    return largest + np.log(total), label_logit


@pytest.mark.parametrize("n_slices", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_cross_entropy(n_slices: int, shift: float) -> None:
    logits, labels = normal(2, 5, 12, std=3.0) + np.float32(shift), np.arange(10, dtype=np.int32).reshape(2, 5) + 2
    log_z, label_logit = log_z_and_label_logit(logits, labels, n_slices)
    cross_entropy, exact_log_z = reference.losses(logits.astype(np.float64), labels)
    close(log_z, exact_log_z)
    close(log_z - label_logit, cross_entropy, 1e-5 if shift == 0 else 1e-4)


@pytest.mark.parametrize("n_slices", [1, 3])
def test_cross_entropy_gradient_with_z_loss(n_slices: int) -> None:
    z_loss = 0.1
    logits, labels = normal(2, 5, 12, std=3.0), np.array([[0, 3, 4, 11, 11], [7, 8, 1, 2, 5]], np.int32)
    exact = logits.astype(np.float64)

    def loss(logits: np.ndarray) -> np.ndarray:
        cross_entropy, log_z = reference.losses(logits, labels)
        return cross_entropy + z_loss * log_z**2

    expected = np.stack([slope(lambda t, unit=unit: loss(exact + t * unit)) for unit in np.eye(12)], -1)
    log_z = reference.losses(exact, labels)[1].astype(np.float32)
    d_log_z, d_label_logit = 1.0 + 2.0 * z_loss * log_z, np.full((2, 5), -1.0, np.float32)
    actual = [
        cross_entropy.cross_entropy_gradient(
            part, labels, log_z, d_log_z, d_label_logit, np.int32(12 // n_slices * index)
        )
        for index, part in enumerate(np.split(logits, n_slices, -1))
    ]
    close(np.concatenate(actual, -1), expected)
