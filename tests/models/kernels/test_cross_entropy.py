"""The kernels of the cross-entropy against NumPy in float64, on the whole vocabulary and on slices."""

from __future__ import annotations

import numpy as np
import pytest

from meshtf import tf
from models.kernels import cross_entropy
from tests.models import reference
from tests.models.arrays import close, normal, slope


def softmax(logits: np.ndarray, labels: np.ndarray, n_slices: int) -> tuple[np.ndarray, ...]:
    """The exponentials, their sum, label_logit and log_z, from slices as `models/ops/cross_entropy.py` has them."""
    slices = np.split(logits, n_slices, -1)
    largest = np.max([cross_entropy.largest_logit(part) for part in slices], 0)
    starts = [np.int32(index * slices[0].shape[-1]) for index in range(n_slices)]
    parts = [
        cross_entropy.exponentials_and_label_logit(part, labels, largest, start)
        for part, start in zip(slices, starts, strict=True)
    ]
    exponentials, totals, label_logits = zip(*(map(np.asarray, part) for part in parts), strict=True)
    return np.concatenate(exponentials, -1), sum(totals), sum(label_logits), largest + np.log(sum(totals))


@pytest.mark.parametrize("n_slices", [1, 3])
@pytest.mark.parametrize("shift", [0.0, 300.0])
def test_cross_entropy(n_slices: int, shift: float) -> None:
    logits, labels = normal(2, 5, 12, std=3.0) + np.float32(shift), np.arange(10, dtype=np.int32).reshape(2, 5) + 2
    _, _, label_logit, log_z = softmax(logits, labels, n_slices)
    cross_entropy, exact_log_z = reference.losses(logits.astype(np.float64), labels)
    close(log_z, exact_log_z)
    close(log_z - label_logit, cross_entropy, 1e-5 if shift == 0 else 1e-4)


@pytest.mark.parametrize("n_slices", [1, 3])
@pytest.mark.parametrize("softcap", [None, 2.0])
def test_the_weighted_loss_and_its_gradient(n_slices: int, softcap: float | None) -> None:
    z_loss, weights = 0.1, np.array([0.3, 0.0, 0.2, 0.1, 0.4], np.float32)
    products, labels = normal(5, 12, std=3.0), np.array([0, 3, 4, 11, 11], np.int32)

    def terms(products: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return reference.losses(np.tanh(products / softcap) * softcap if softcap else products, labels)

    def loss(products: np.ndarray) -> np.ndarray:
        losses, log_z = terms(products)
        return weights * (losses + z_loss * log_z**2)

    exact = products.astype(np.float64)
    expected = np.stack([slope(lambda t, unit=unit: loss(exact + t * unit)) for unit in np.eye(12)], -1)
    logits = np.asarray(cross_entropy.finished_logits(softcap)(products))
    exponentials, *others = softmax(logits, labels, n_slices)
    kernel = cross_entropy.weighted_cross_entropy(z_loss, softcap, tf.float32)
    slices, sizes = (np.split(x, n_slices, -1) for x in (exponentials, logits)), 12 // n_slices
    parts = [
        kernel(own, *others, labels, weights, np.int32(sizes * index), *([capped] if softcap else []))
        for index, (own, capped) in enumerate(zip(*slices, strict=True))
    ]
    close(np.concatenate([d_products for _, _, d_products in parts], -1), expected)
    close(parts[0][0], loss(exact).sum())
    close(parts[0][1], (weights * terms(exact)[0]).sum())
