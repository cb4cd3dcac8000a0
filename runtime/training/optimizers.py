"""Optimisers: from gradients to updated variables."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Sequence

from configs.schema import TrainingConfig
from meshtf import LaidOut, mtf, tf
from models import variables
from models.kernels import optimizers as kernels
from models.kernels.compile import Kernel
from models.kernels.gradients import sum_of_squares
from models.ops.gradients import global_norm
from models.ops.mesh_operation import mesh_axes

# GPT-Neo searches the whole name, so `ln_f/g` and `ln_f/b` are decayed, while the blocks' norms and every bias are not.
# The parameters of activations, which GPT-Neo lacks, are exempt: slopes and rates have no reason to be near 0.
NOT_DECAYED_BY_ADAM = re.compile("norm|bias|/activation/")

SMALL_VARIABLE = 1 << 15
SMALLEST_FACTORED_DIM = 128
Pair = tuple[variables.SlicedVariable, mtf.Tensor]
Scalars = tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]  # factor of the gradients, learning rate, update number


def _slot(variable: variables.SlicedVariable, suffix: str, shape: mtf.Shape) -> variables.SlicedVariable:
    name = variable.name + suffix
    return variables.get_variable(variable.mesh, name, shape, variables.zeros, trainable=False).operation


def _adam_decay(variable: variables.SlicedVariable, training: TrainingConfig) -> float:
    return 0.0 if NOT_DECAYED_BY_ADAM.search(variable.name) else training.weight_decay


def _matrix_decay(variable: variables.SlicedVariable, training: TrainingConfig) -> float:
    """Returns the decay: of matrices only, not of biases and norms."""
    return training.weight_decay if len(variable.shape) >= 2 else 0.0


class AdamUpdate(mtf.Operation):
    """Updates variables and their slots `{variable}/adam_m` and `{variable}/adam_v` in place, in one kernel call."""

    def __init__(self, pairs: Sequence[Pair], scalars: Sequence[mtf.Tensor], kernel: Kernel) -> None:
        updated, gradients = zip(*pairs, strict=True)
        ms, vs = (
            [_slot(variable, suffix, variable.shape) for variable in updated] for suffix in ("/adam_m", "/adam_v")
        )
        self._updated = [*updated, *ms, *vs]
        self._kernel = kernel
        super().__init__([*scalars, *(variable.value for variable in self._updated), *gradients], name="adam_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Runs the kernel on every slice, and assigns the results."""
        values = lowering.mesh_impl(self).slicewise(self._kernel, *[lowering.tensors[x] for x in self.inputs])
        for variable, value in zip(self._updated, values, strict=True):
            lowering.variables[variable].assign(value)


def _groups(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Groups all small variables: a kernel call for each norm and bias would cost more than its arithmetic."""
    large, small = [], []
    for pair in pairs:
        (large if pair[0].shape.size > SMALL_VARIABLE else small).append([pair])
    return large + ([[pair for (pair,) in small]] if small else [])


def _add_adam(
    pairs: Sequence[Pair],
    training: TrainingConfig,
    scalars: Sequence[mtf.Tensor],
    kernel_of: Callable[[kernels.AdamConstants], Kernel],
    decay_of: Callable[[variables.SlicedVariable, TrainingConfig], float],
) -> None:
    decays = [decay_of(variable, training) for variable, _ in pairs]
    for decay in sorted(set(decays)):
        kernel = kernel_of(kernels.AdamConstants(training.beta1, training.beta2, training.epsilon, decay))
        for group in _groups(pair for pair, own in zip(pairs, decays, strict=True) if own == decay):
            AdamUpdate(group, scalars, kernel)


def _adam(pairs: Sequence[Pair], training: TrainingConfig, scalars: Scalars) -> None:
    _add_adam(pairs, training, scalars[:2], kernels.adam, _adam_decay)


def _adamw(pairs: Sequence[Pair], training: TrainingConfig, scalars: Scalars) -> None:
    _add_adam(pairs, training, scalars, kernels.adamw, _matrix_decay)


def _factored_dims(shape: mtf.Shape) -> list[mtf.Dimension]:
    """Returns the two largest dimensions, the largest first and ties in order; none if either is small."""
    largest = sorted(shape.dims, key=lambda dim: -dim.size)[:2]
    return largest if len(largest) == 2 and largest[1].size >= SMALLEST_FACTORED_DIM else []


def _adafactor_slots(variable: variables.SlicedVariable, has_mean: bool) -> list[variables.SlicedVariable]:
    shape, factored = variable.shape, _factored_dims(variable.shape)
    shapes = {"_slot_vr": shape - factored[0], "_slot_vc": shape - factored[1]} if factored else {"_slot_v": shape}
    if has_mean:
        shapes["_slot_m"] = shape
    return [_slot(variable, suffix, slot_shape) for suffix, slot_shape in shapes.items()]


class AdafactorUpdate(mtf.Operation):
    """Updates a variable and its slots in place.

    The slots are named as mesh-TensorFlow names them: `{variable}_slot_vr` (without the largest dimension) and
    `{variable}_slot_vc` (without the second), or `{variable}_slot_v` for a variable that is not factored; with beta1,
    also `{variable}_slot_m`.
    """

    def __init__(self, pair: Pair, scalars: Scalars, constants: kernels.AdafactorConstants) -> None:
        self._variable, gradient = pair
        self._constants = constants
        self._factored = _factored_dims(self._variable.shape)
        self._slots = _adafactor_slots(self._variable, constants.beta1 > 0.0)
        values = [variable.value for variable in (self._variable, *self._slots)]
        super().__init__([*scalars, gradient, *values], name="adafactor_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Computes the update on every slice, with sums over the mesh, and assigns the results."""
        mesh_impl = lowering.mesh_impl(self)
        scale, rate, number, gradient, value, *slots = [lowering.tensors[x].to_laid_out_tensor() for x in self.inputs]
        n_moments = 2 if self._factored else 1
        find_direction = self._factored_direction if self._factored else self._plain_direction
        direction, *moments = find_direction(mesh_impl, scale, number, gradient, *slots[:n_moments])
        squares = [self._whole_sum_of_squares(mesh_impl, slices) for slices in (value, direction)]
        step = kernels.adafactor_step(self._constants, self._variable.shape.size)
        new_value, *means = mesh_impl.slicewise(step, rate, value, direction, *squares, *slots[n_moments:])
        kept = mesh_impl.slicewise(kernels.unless_nonfinite, scale, new_value, *moments, *means, value, *slots)
        for variable, new in zip([self._variable, *self._slots], kept, strict=True):
            lowering.variables[variable].assign(new)

    def _plain_direction(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Returns the normalised gradient, and v."""
        return mesh_impl.slicewise(kernels.adafactor_direction(self._constants), *inputs)

    def _factored_direction(
        self, mesh_impl: mtf.MeshImpl, scale: LaidOut, number: LaidOut, gradient: LaidOut, vr: LaidOut, vc: LaidOut
    ) -> Sequence[LaidOut]:
        """Returns the normalised gradient, vr and vc."""
        dims = self._variable.shape.dims
        axes_of_factors = tuple(dims.index(dim) for dim in self._factored)
        factors = kernels.Factors(axes_of_factors, tuple(dim.size for dim in self._factored))
        axes = [mesh_axes(mesh_impl, [dim]) for dim in self._factored]
        sums = mesh_impl.slicewise(kernels.adafactor_sums(self._constants, factors), scale, gradient)
        sums = [mesh_impl.allreduce(part, own, "SUM") for part, own in zip(sums, axes, strict=True)]
        vr, vc, vr_sum = mesh_impl.slicewise(kernels.adafactor_factors(self._constants, factors), number, *sums, vr, vc)
        vr_sum = mesh_impl.allreduce(vr_sum, axes[1], "SUM")
        direction = kernels.adafactor_factored_direction(factors)
        return mesh_impl.slicewise(direction, scale, gradient, vr, vc, vr_sum), vr, vc

    def _whole_sum_of_squares(self, mesh_impl: mtf.MeshImpl, slices: LaidOut) -> LaidOut:
        axes = mesh_axes(mesh_impl, self._variable.shape.dims)
        return mesh_impl.allreduce(mesh_impl.slicewise(sum_of_squares, slices), axes, "SUM")


def _adafactor(pairs: Sequence[Pair], training: TrainingConfig, scalars: Scalars) -> None:
    for pair in pairs:
        constants = kernels.AdafactorConstants(
            beta1=training.beta1,
            decay_rate=training.ada_decay_rate,
            epsilon1=training.ada_epsilon1,
            epsilon2=training.ada_epsilon2,
            weight_decay=_matrix_decay(pair[0], training),
        )
        AdafactorUpdate(pair, scalars, constants)


_UPDATES = {"adam": _adam, "adamw": _adamw, "adafactor": _adafactor}


def _nan_unless_finite(scale: tf.Tensor, norm: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(norm), scale, math.nan)


def build_update(
    trainable: Sequence[variables.SlicedVariable],
    gradients: Sequence[mtf.Tensor],
    training: TrainingConfig,
    learning_rate: mtf.Tensor,
    update_number: mtf.Tensor,
) -> mtf.Tensor:
    """Adds one step of the optimiser `opt_name` to the graph, with the gradients clipped by their global norm.

    If that norm is not finite, variables and slots stay as they are.

    Args:
        trainable: the variables to update.
        gradients: of each variable, in its shape.
        training: the optimiser, its hyperparameters, and gradient_clipping (None means no clipping).
        learning_rate: float32 scalar.
        update_number: int32 scalar, the number of updates made so far.

    Returns:
        The global norm of the gradients before clipping, a float32 scalar.
    """
    norm = global_norm(gradients)
    limit = training.gradient_clipping
    if limit is None:
        scale = mtf.constant(norm.mesh, 1.0)
    else:
        scale = limit / mtf.maximum(norm, mtf.constant(norm.mesh, limit, dtype=tf.float32))
    scale = mtf.cwise(_nan_unless_finite, [scale, norm])
    pairs = list(zip(trainable, gradients, strict=True))
    _UPDATES[training.opt_name](pairs, training, (scale, learning_rate, update_number))
    return norm


def gradient_norms(
    trainable: Sequence[variables.SlicedVariable], gradients: Sequence[mtf.Tensor]
) -> dict[str, mtf.Tensor]:
    """Returns the norm of each variable's gradient before clipping, float32 scalars by metric name.

    Args:
        trainable: the variables.
        gradients: of each variable, in its shape.
    """
    pairs = zip(trainable, gradients, strict=True)
    return {f"grads/norm/{variable.name.removeprefix('gpt2/')}": global_norm([grad]) for variable, grad in pairs}
