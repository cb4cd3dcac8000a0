"""The update of Adam, by hand and against NumPy."""

from __future__ import annotations

import numpy as np

from meshtf import tf
from models.kernels import optimizers
from models.kernels.optimizers import AdamConstants
from tests.models import reference
from tests.models.arrays import close, normal


def test_adam_by_hand() -> None:
    scale, rate = np.float32(0.5), np.float32(0.01)
    value, m, v, gradient = (np.array([x], np.float32) for x in (2.0, 0.5, 4.0, 6.0))
    constants = AdamConstants(beta1=0.9, beta2=0.75, epsilon=0.5, weight_decay=0.1)
    updated = optimizers.adam(constants)(scale, rate, value, m, v, gradient)
    # gradient 3; m = .9 * .5 + .1 * 3; v = .75 * 4 + .25 * 9; value = 2 - .01 * (.75 / (sqrt(5.25) + .5) + .1 * 2)
    close(tf.concat(updated, 0), np.array([2.0 - 0.01 * (0.75 / (5.25**0.5 + 0.5) + 0.2), 0.75, 5.25]), 1e-6)


def test_adam_of_two_variables_over_some_steps() -> None:
    numbers = {"beta1": 0.8, "beta2": 0.9, "epsilon": 1e-3}
    kernel = optimizers.adam(AdamConstants(**numbers, weight_decay=0.2))
    first = [(normal(*shape), np.zeros(shape), np.zeros(shape)) for shape in ((3, 5), (4,))]
    expected, actual = first, [np.float32(part) for parts in zip(*first, strict=True) for part in parts]
    for step in range(1, 5):
        gradients, lr = [normal(3, 5, seed=step), normal(4, seed=step)], 0.1 / step
        actual = kernel(np.float32(1.0), np.float32(lr), *actual, *gradients)
        expected = [
            reference.adam_step(*parts, gradient, lr=lr, **numbers, decay=0.2)
            for parts, gradient in zip(expected, gradients, strict=True)
        ]
    for one, other in zip(actual, [part for parts in zip(*expected, strict=True) for part in parts], strict=True):
        close(one, other)
