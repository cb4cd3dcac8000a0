"""Optimisers: from gradients to updated variables."""

from __future__ import annotations

import re
from collections.abc import Sequence

from configs.schema import TrainingConfig
from meshtf import mtf, tf
from models import kernels, ops, variables

# GPT-Neo searches the whole name; so `ln_f/g` and `ln_f/b` are decayed, while the blocks' norms and every bias are not.
NOT_DECAYED = re.compile("norm|bias")


class AdamUpdate(mtf.Operation):
    """Updates one variable and its slots `{variable}/adam_m` and `{variable}/adam_v` in place."""

    def __init__(
        self,
        variable: variables.SlicedVariable,
        gradient: mtf.Tensor,
        scalars: Sequence[mtf.Tensor],
        constants: kernels.AdamConstants,
    ):
        slots = [
            variables.get_variable(
                variable.mesh, f"{variable.name}/{slot}", variable.shape, variables.zeros, trainable=False
            )
            for slot in ("adam_m", "adam_v")
        ]
        self._updated = [variable, *(slot.operation for slot in slots)]
        self._kernel = kernels.adam(constants)
        super().__init__([variable.value, *slots, gradient, *scalars], name="adam_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        values = lowering.mesh_impl(self).slicewise(self._kernel, *[lowering.tensors[x] for x in self.inputs])
        for variable, value in zip(self._updated, values, strict=True):
            lowering.variables[variable].assign(value)


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
    norm = ops.global_norm(gradients)
    limit = training.gradient_clipping
    mesh = norm.mesh
    scale = (
        mtf.constant(mesh, 1.0)
        if limit is None
        else limit / mtf.maximum(norm, mtf.constant(mesh, limit, dtype=tf.float32))
    )
    for variable, gradient in zip(trainable, gradients, strict=True):
        decay = 0.0 if NOT_DECAYED.search(variable.name) else training.weight_decay
        constants = kernels.AdamConstants(training.beta1, training.beta2, training.epsilon, decay)
        AdamUpdate(variable, gradient, [scale, learning_rate], constants)
    return norm
