"""Arrays for tests of kernels and operations."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def normal(*shape: int, seed: int = 0, std: float = 1.0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).normal(0.0, std, shape).astype(np.float32)


def close(actual: object, expected: np.ndarray, tolerance: float = 1e-5) -> None:
    np.testing.assert_allclose(np.asarray(actual), expected, rtol=tolerance, atol=tolerance)


def slope(function: Callable, step: float = 1e-6) -> np.ndarray | float:
    """The derivative of a function at 0, by central differences."""
    return (function(step) - function(-step)) / (2 * step)
