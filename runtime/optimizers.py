"""Optimisers: from gradients to updated variables."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from configs.schema import TrainingConfig
from meshtf import mtf, tf
from models import variables
from models.kernels import optimizers
from models.ops.gradients import global_norm

# GPT-Neo searches the whole name; so `ln_f/g` and `ln_f/b` are decayed, while the blocks' norms and every bias are not.
NOT_DECAYED = re.compile("norm|bias")


SMALL_VARIABLE = 1 << 15
Pair = tuple[variables.SlicedVariable, mtf.Tensor]


class AdamUpdate(mtf.Operation):
    """Updates variables and their slots `{variable}/adam_m` and `{variable}/adam_v` in place."""

    def __init__(
        self,
        updated: Sequence[variables.SlicedVariable],
        gradients: Sequence[mtf.Tensor],
        scalars: Sequence[mtf.Tensor],
        constants: optimizers.AdamConstants,
    ):
        ms, vs = ([_slot(variable, name) for variable in updated] for name in ("adam_m", "adam_v"))
        self._updated = [*updated, *ms, *vs]
        self._kernel = optimizers.adam(constants)
        super().__init__([*scalars, *(variable.value for variable in self._updated), *gradients], name="adam_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        values = lowering.mesh_impl(self).slicewise(self._kernel, *[lowering.tensors[x] for x in self.inputs])
        for variable, value in zip(self._updated, values, strict=True):
            lowering.variables[variable].assign(value)


def _slot(variable: variables.SlicedVariable, name: str) -> variables.SlicedVariable:
    value = variables.get_variable(
        variable.mesh, f"{variable.name}/{name}", variable.shape, variables.zeros, trainable=False
    )
    return value.operation


def _decay(variable: variables.SlicedVariable, training: TrainingConfig) -> float:
    return 0.0 if NOT_DECAYED.search(variable.name) else training.weight_decay


def _groups(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Large variables alone, the small ones together: a call for each norm and bias costs more than its arithmetic."""
    large, small = [], []
    for pair in pairs:
        (large if pair[0].shape.size > SMALL_VARIABLE else small).append([pair])
    return large + ([[pair for (pair,) in small]] if small else [])


def build_update(
    trainable: Sequence[variables.SlicedVariable],
    gradients: Sequence[mtf.Tensor],
    training: TrainingConfig,
    learning_rate: mtf.Tensor,
) -> mtf.Tensor:
    """Adds one Adam step to the graph, as GPT-Neo takes it, with the gradients clipped by their global norm.

    Args:
      trainable: the variables to update.
      gradients: of each, of its shape.
      training: beta1, beta2, epsilon, weight_decay, gradient_clipping (None: no clipping).
      learning_rate: float32 scalar.

    Returns:
      The global norm of the gradients before clipping, a float32 scalar.
    """
    norm = global_norm(gradients)
    limit = training.gradient_clipping
    mesh = norm.mesh
    scale = (
        mtf.constant(mesh, 1.0)
        if limit is None
        else limit / mtf.maximum(norm, mtf.constant(mesh, limit, dtype=tf.float32))
    )
    pairs = list(zip(trainable, gradients, strict=True))
    for decay in sorted({_decay(variable, training) for variable in trainable}):
        constants = optimizers.AdamConstants(training.beta1, training.beta2, training.epsilon, decay)
        for group in _groups(pair for pair in pairs if _decay(pair[0], training) == decay):
            updated, their_gradients = zip(*group, strict=True)
            AdamUpdate(updated, their_gradients, [scale, learning_rate], constants)
    return norm
