"""Model variables, which exist as slices only, and their initial values."""

from __future__ import annotations

import zlib
from collections.abc import Callable

import numpy as np

from meshtf import mtf, tf

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class SlicedVariable(mtf.Variable):
    """A variable that is distributed over the mesh, with no whole copy anywhere.

    `mtf.Variable` makes a whole master copy with `tf.get_variable`. Here the mesh makes the slices when the graph is
    lowered, and checkpoints are written from the slices.
    """

    def __init__(self, mesh: mtf.Mesh, name: str, shape: mtf.Shape, initializer: Initializer, trainable: bool) -> None:
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
        """Returns the whole initial value, a function of seed and name, so that it is the same on any mesh."""
        generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(self.name.encode())]))
        return self._initializer(generator, tuple(self.shape.to_integer_list)).astype(np.float32)


def get_variable(
    mesh: mtf.Mesh, name: str, shape: mtf.Shape, initializer: Initializer, trainable: bool = True
) -> mtf.Tensor:
    """Returns the float32 value of a variable, which is created on first use.

    Args:
        mesh: the mesh that holds it.
        name: its name in checkpoints, such as `gpt2/h0/attn/q`.
        shape: its dimensions, in the order of the checkpoint.
        initializer: gives the initial value.
        trainable: False for the slots of the optimiser.
    """
    variable = mesh.graph.name_to_variable.get(name) or SlicedVariable(mesh, name, shape, initializer, trainable)
    assert variable.shape == shape, f"{name} was created with shape {variable.shape}, but is requested with {shape}"
    return variable.value


def normal(std: float) -> Initializer:
    """Returns an initializer of normally distributed values with mean 0."""
    return lambda generator, shape: generator.standard_normal(shape, dtype=np.float32) * np.float32(std)


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns zeros."""
    return np.zeros(shape, np.float32)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns ones."""
    return np.ones(shape, np.float32)
