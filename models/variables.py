"""Model variables, which exist as slices only, and their initial values."""

from __future__ import annotations

import zlib
from collections.abc import Callable
from enum import Enum

import numpy as np

from meshtf import mtf, tf

Initializer = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


class Role(Enum):
    """What a variable is: a parameter that is trained or frozen, or a slot of the optimiser."""

    TRAINED = "trained"
    FROZEN = "frozen"
    SLOT = "slot"


class SlicedVariable(mtf.Variable):
    """A variable that is distributed over the mesh, with no whole copy anywhere.

    `mtf.Variable` makes a whole master copy with `tf.get_variable`. Here the mesh makes the slices when the graph is
    lowered, and checkpoints are written from the slices.

    Attributes:
        role: what it is.
        model_shape: as the model reads it; `shape` may have another name for one of the dimensions.
    """

    def __init__(
        self, mesh: mtf.Mesh, name: str, shape: mtf.Shape, initializer: Initializer, role: Role = Role.TRAINED
    ) -> None:
        """Adds a float32 variable to the mesh's graph under exactly this name."""
        mtf.Operation.__init__(self, [], mesh, name="variable")
        self._dtype = mtf.VariableDType(tf.float32)
        self.role = role
        self.model_shape = shape
        self._trainable = role is Role.TRAINED
        self._name = name
        self._initializer = initializer
        self._outputs = [mtf.Tensor(self, shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()
        self.graph.all_variables.append(self)
        self.graph.name_to_variable[name] = self
        if self._trainable:
            self.graph.trainable_variables.append(self)

    @property
    def is_parameter(self) -> bool:
        """Whether it belongs to the model, and not to the optimiser."""
        return self.role is not Role.SLOT

    def rename_dimension(self, old_name: str, new_name: str) -> None:
        """Gives the variable a new value tensor, in which one dimension has another name and so another layout."""
        shape = self.shape.rename_dimension(old_name, new_name)
        self._outputs = [mtf.Tensor(self, shape, tf.float32)]
        self._splittable_dims, self._unsplittable_dims = self._initialize_all_dimensions_as_splittable()

    def initial_value(self, seed: int) -> np.ndarray:
        """Returns the whole initial value, a function of seed and name, so that it is the same on any mesh."""
        generator = np.random.Generator(np.random.Philox(key=[seed, zlib.crc32(self.name.encode())]))
        return self._initializer(generator, tuple(self.shape.to_integer_list)).astype(np.float32)


def get_variable(
    mesh: mtf.Mesh, name: str, shape: mtf.Shape, initializer: Initializer, role: Role = Role.TRAINED
) -> mtf.Tensor:
    """Returns the float32 value of a variable, which is created on first use.

    Args:
        mesh: the mesh that holds it.
        name: its name in checkpoints, such as `gpt2/h0/attn/q`.
        shape: its dimensions, in the order of the checkpoint.
        initializer: gives the initial value.
        role: what it is; without gradient and slots unless it is trained.
    """
    variable = mesh.graph.name_to_variable.get(name) or SlicedVariable(mesh, name, shape, initializer, role)
    assert variable.shape == shape, f"{name} was created with shape {variable.shape}, but is requested with {shape}"
    return variable.value


def normal(std: float) -> Initializer:
    """Returns an initializer of normally distributed values with mean 0."""
    return lambda generator, shape: generator.standard_normal(shape, dtype=np.float32) * np.float32(std)


def uniform(bound: float) -> Initializer:
    """Returns an initializer of values that are spread evenly over [-bound, bound)."""
    return lambda generator, shape: generator.uniform(-bound, bound, shape).astype(np.float32)


def zeros(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns zeros."""
    return np.zeros(shape, np.float32)


def ones(generator: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    """Returns ones."""
    return np.ones(shape, np.float32)
