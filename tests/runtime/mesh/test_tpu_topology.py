"""Processors that communicate much are placed on neighbouring cores."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from meshtf import tf
from runtime.mesh.tpu_topology import cores_in_order


def topology(rows: int, columns: int, depth: int, n_per_chip: int, n_missing: int = 0) -> tf.tpu.experimental.Topology:
    """One host with all chips but the last few."""
    sizes = (rows, columns, depth, n_per_chip)
    coordinates = np.stack(np.unravel_index(np.arange(math.prod(sizes)), sizes), -1)
    return tf.tpu.experimental.Topology(None, sizes, coordinates[None, : len(coordinates) - n_missing * n_per_chip])


@settings(max_examples=60)
@given(st.integers(1, 6), st.integers(1, 6), st.integers(1, 3), st.sampled_from([1, 2]), st.integers(0, 2), st.data())
def test_every_core_has_one_processor(
    rows: int, columns: int, depth: int, n_per_chip: int, n_missing: int, data: st.DataObject
) -> None:
    n_missing = min(n_missing, rows * columns * depth - 1)
    there = topology(rows, columns, depth, n_per_chip, n_missing)
    remaining, sizes = (rows * columns * depth - n_missing) * n_per_chip, []
    while len(sizes) < 3:
        sizes.append(data.draw(st.sampled_from([size for size in range(1, remaining + 1) if remaining % size == 0])))
        remaining //= sizes[-1]
    cores = cores_in_order(there, [*sizes, remaining])
    assert sorted(map(tuple, cores)) == sorted(map(tuple, there.device_coordinates[0]))


def chips_of(cores: np.ndarray) -> list[tuple[int, int]]:
    """The chips, each once, in the order of their first cores."""
    return list(dict.fromkeys((int(x), int(y)) for x, y, _, _ in cores))


def is_ring(chips: list[tuple[int, int]]) -> bool:
    following = [*chips[1:], chips[0]]
    return all(abs(a - c) + abs(b - d) == 1 for (a, b), (c, d) in zip(chips, following, strict=True))


@pytest.mark.parametrize(("rows", "columns"), [(2, 2), (4, 4), (8, 16), (3, 4), (4, 3)])
def test_one_axis_runs_in_a_closed_ring_of_chips(rows: int, columns: int) -> None:
    cores = cores_in_order(topology(rows, columns, 1, 2), [rows * columns * 2])
    np.testing.assert_array_equal(cores[:, 3], [0, 1] * (rows * columns))
    np.testing.assert_array_equal(cores[::2, :3], cores[1::2, :3])
    assert is_ring(chips_of(cores))


@pytest.mark.parametrize(
    ("rows", "columns", "sizes", "tile"),
    [(8, 16, (64, 4), (1, 2)), (8, 16, (16, 16), (2, 4)), (8, 16, (8, 32), (4, 4)), (4, 4, (4, 1, 8), (2, 2))],
)
def test_the_last_axis_fills_tiles_and_the_one_before_goes_from_tile_to_tile(
    rows: int, columns: int, sizes: tuple[int, ...], tile: tuple[int, int]
) -> None:
    cores = cores_in_order(topology(rows, columns, 1, 2), sizes).reshape(sizes[0], sizes[-1], 4)
    corners = []
    for group in cores:
        chips = np.array(chips_of(group))
        assert len(chips) == sizes[-1] // 2 and (len(chips) == 2 or is_ring(chips_of(group)))
        assert tuple(sorted(np.ptp(chips, axis=0) + 1)) == tile
        corners.append(chips.min(0) // (np.ptp(chips, axis=0) + 1))
    assert is_ring([tuple(map(int, corner)) for corner in corners])


def test_two_cores_that_communicate_most_are_on_one_chip() -> None:
    cores = cores_in_order(topology(8, 16, 1, 2), [128, 2])
    assert all(tuple(one[:3]) == tuple(other[:3]) for one, other in cores.reshape(128, 2, 4))


def test_without_tiles_cores_are_in_the_order_of_their_coordinates() -> None:
    there = topology(2, 3, 1, 2)
    np.testing.assert_array_equal(cores_in_order(there, [4, 3]), there.device_coordinates[0])
