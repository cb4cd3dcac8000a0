"""Model variables that exist as slices only, and where their first values come from."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from meshtf import mtf, tf

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class SlicedVariable(mtf.Variable):
    """A variable laid over the mesh with no whole copy anywhere.

    `mtf.Variable` makes a whole master with `tf.get_variable`; here the mesh makes the slices when the graph is
    lowered, and checkpoints are written from them.

    Attributes:
        initial_value: a function of the seed that gives the whole first value, float32.
    """

    def __init__(self, mesh: mtf.Mesh, name: str, shape: mtf.Shape, initializer: Initializer, trainable: bool):
        """Adds a float32 variable to the mesh's graph under exactly this name."""
        mtf.Operation.__init__(self, [], mesh, name="variable")
        self._dtype = mtf.VariableDType(tf.float32)
        self._trainable = trainable
        self._name = name
        self._initializer = initializer
        self._outputs = [mtf.Tensor(self, shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()
        self.graph.all_variables.append(self)
        self.graph.name_to_variable[name] = self
        if trainable:
            self.graph.trainable_variables.append(self)

    def initial_value(self, seed: int) -> np.ndarray:
        """The whole first value: a function of seed and name, so that it is the same on any mesh."""
        generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(self.name.encode())]))
        return self._initializer(generator, tuple(self.shape.to_integer_list)).astype(np.float32)


def get_variable(
    mesh: mtf.Mesh, name: str, shape: mtf.Shape, initializer: Initializer, trainable: bool = True
) -> mtf.Tensor:
    """The float32 value of the variable of that checkpoint name, made on first use.

    Args:
        mesh: the mesh it lies on.
        name: checkpoint name, as `gpt2/h0/attn/q`.
        shape: dimensions, in the order of the checkpoint.
        initializer: of the first value.
        trainable: False for what the optimiser keeps.
    """
    variable = mesh.graph.name_to_variable.get(name) or SlicedVariable(mesh, name, shape, initializer, trainable)
    assert variable.shape == shape, f"{name} was made with shape {variable.shape}, and is now wanted with {shape}"
    return variable.value


def normal(std: float) -> Initializer:
    """Normally distributed values with mean 0."""
    return lambda generator, shape: generator.standard_normal(shape, dtype=np.float32) * np.float32(std)


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All 0."""
    return np.zeros(shape, np.float32)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """All 1."""
    return np.ones(shape, np.float32)
