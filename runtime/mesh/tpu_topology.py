"""Orders the cores of a TPU for the processors of a mesh.

Processors that differ along the last mesh axis communicate most, those that differ along the first one least. So the
last axis runs through the cores of each chip and through neighbouring chips, in a closed ring where possible; the axis
before it runs from one such tile of chips to the next, and so on.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from meshtf import tf

Grid = tuple[int, int]


def _ring(rows: int, columns: int) -> list[Grid]:
    """Returns a path through a grid, from neighbour to neighbour if the number of rows is even or one."""
    if columns == 1:
        return [(row, 0) for row in range(rows)]
    zigzag = [
        (row, column)
        for row in range(rows)
        for column in (range(1, columns) if row % 2 == 0 else reversed(range(1, columns)))
    ]
    return zigzag + [(row, 0) for row in reversed(range(rows))]


def _tour(rows: int, columns: int) -> list[Grid]:
    """Returns a ring through a grid, closed if either size is even."""
    if rows % 2 == 0:
        return _ring(rows, columns)
    return [(row, column) for column, row in _ring(columns, rows)]


def _tile(rows: int, columns: int, n_chips: int) -> Grid | None:
    """Returns the squarest tile of this many chips that divides the grid; None: there is none."""
    tiles = [(height, n_chips // height) for height in range(1, n_chips + 1) if n_chips % height == 0]
    fitting = [tile for tile in tiles if rows % tile[0] == 0 and columns % tile[1] == 0]
    return min(fitting, key=lambda tile: abs(tile[0] - tile[1]), default=None)


def _chips(rows: int, columns: int, sizes: Sequence[int]) -> list[Grid] | None:
    """Returns the chips of a grid in the order of a mesh of these sizes; None: no tiles fit."""
    if len(sizes) < 2:
        return _tour(rows, columns)
    n_tiles, *rest = sizes
    tile = _tile(rows, columns, rows * columns // n_tiles)
    within = tile and _chips(*tile, rest)
    if not within:
        return None
    tiles = _tour(rows // tile[0], columns // tile[1])
    return [(row * tile[0] + r, column * tile[1] + c) for row, column in tiles for r, c in within]


def cores_in_order(topology: tf.tpu.experimental.Topology, sizes: Sequence[int]) -> np.ndarray:
    """Returns the coordinates of each processor's core, [processors, 4].

    If the TPU lacks chips, or no tiles fit the mesh, the cores are in the order of their coordinates.

    Args:
        topology: the topology of the TPU.
        sizes: the sizes of the mesh axes, which multiply to the number of cores.
    """
    n_x, n_y, n_z, n_per_chip = (int(size) for size in topology.mesh_shape)
    *others, last = [size for size in sizes if size > 1] or [1]
    if not len(topology.missing_devices) and last % n_per_chip == 0:
        chips = _chips(n_x, n_y * n_z, [*others, last // n_per_chip])
        if chips:
            cores = itertools.product(chips, range(n_per_chip))
            return np.array([(x, yz // n_z, yz % n_z, core) for (x, yz), core in cores], np.int32)
    return np.array(sorted(map(tuple, topology.device_coordinates.reshape(-1, 4).tolist())), np.int32)
