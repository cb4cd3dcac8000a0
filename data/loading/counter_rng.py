"""A counter-based random number generator: the n-th number is a function of n, without those before it."""

from __future__ import annotations

import numpy as np

_GOLDEN = 0x9E3779B97F4A7C15


def random_bits(state: int, counters: np.ndarray) -> np.ndarray:
    """Returns the numbers at `counters` of the generator splitmix64 in `state`, uniform uint64 of the same shape.

    Source: Steele, Lea and Flood, "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014, figure 16.
    """
    mixed = np.uint64(state) + (counters.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)
    mixed = (mixed ^ (mixed >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    mixed = (mixed ^ (mixed >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return mixed ^ (mixed >> np.uint64(31))


def uniform(state: int, counters: np.ndarray) -> np.ndarray:
    """Returns the numbers at `counters` as float64 in [0, 1), of the same shape: the first 53 bits of each."""
    return (random_bits(state, counters) >> np.uint64(11)) * 2.0**-53


def stream_state(seed: int, stream: int) -> int:
    """Returns the state of one of the independent streams of a seed."""
    (seeded,) = random_bits(seed, np.array([0]))
    (state,) = random_bits(int(seeded), np.array([stream]))
    return int(state)
