"""Optimisers: from gradients to updated variables."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Callable, Iterable, Iterator, Sequence

from configs.schema import TrainingConfig
from meshtf import LaidOut, mtf, operation_scope, tf
from models import variables
from models.kernels import optimizers as kernels
from models.kernels.compile import Kernel
from models.kernels.gradients import sum_of_squares
from models.ops.gradients import global_norm
from models.ops.mesh_operation import mesh_axes
from models.ops.newton_schulz import Arrangement, arrange, orthogonalized
from runtime.checkpoint.reader import EMA_SUFFIX
from runtime.training.state_sharding import Parameter

# GPT-Neo searches the whole name, so `ln_f/g` and `ln_f/b` are decayed, while the blocks' norms and every bias are not.
# The parameters of activations, which GPT-Neo lacks, are exempt: slopes and rates have no reason to be near 0.
NOT_DECAYED_BY_ADAM = re.compile("norm|bias|/activation/")

# The matrices of the blocks: Muon's own. A router's, the learned keys and values of attention, both tables and the
# output layer are not among them.
ORTHOGONALIZED_BY_MUON = re.compile(r"/attn/[qkvo]$|/conv1d_main/c_\w+/kernel$|/w[io]/kernel$")
# By which Muon's updates are as large as AdamW's, so that its rate and decay carry over.
# Source: Liu et al. 2025, Muon is Scalable for LLM Training, section 2.2.
RMS_OF_ADAMW = 0.2
# The weights whose rate falls as the width grows; embeddings, output layers, biases and norms keep it.
# Source: Yang et al. 2022, Tensor Programs V, tables 3 (of the router, an output layer without multiplier) and 8.
HIDDEN = re.compile(f"{ORTHOGONALIZED_BY_MUON.pattern}|/top_2_gating/kernel$")
LARGEST_STACK = 1 << 24  # elements that are orthogonalised at once: a few large products, and not a second model

# The groups of variables whose gradient norms are logged, by the first pattern that a name has.
GRADIENT_GROUPS = {
    "norms": re.compile("norm|/ln_f/"),
    "embeddings": re.compile("/wte$|wpe"),
    "head": re.compile("/wte_final_linear/|/score$"),
    "attention": re.compile("/attn/"),
    "experts": re.compile("/w[io]/|/top_2_gating/"),
    "feed_forward": re.compile(""),
}

SMALL_VARIABLE = 1 << 15
SMALLEST_FACTORED_DIM = 128
Pair = tuple[Parameter, mtf.Tensor]  # and its gradient, in its shape
Decay = Callable[[Parameter, TrainingConfig], float]
Scalars = tuple[mtf.Tensor, mtf.Tensor, mtf.Tensor]  # factor of the gradients, learning rate, update number


def _slot(parameter: Parameter, suffix: str, shape: mtf.Shape) -> Parameter:
    name, mesh = parameter.name + suffix, parameter.variable.mesh
    return Parameter(variables.get_variable(mesh, name, shape, variables.zeros, variables.Role.SLOT).operation, shape)


def _adam_decay(parameter: Parameter, training: TrainingConfig) -> float:
    return 0.0 if NOT_DECAYED_BY_ADAM.search(parameter.name) else training.weight_decay


def _matrix_decay(parameter: Parameter, training: TrainingConfig) -> float:
    """Returns the decay: of matrices only, not of biases and norms."""
    return training.weight_decay if len(parameter.shape) >= 2 else 0.0


ADAM_SLOTS, LION_SLOTS = ("/adam_m", "/adam_v"), ("/lion_m",)


def _laid_out(lowering: mtf.Lowering, tensors: Iterable[mtf.Tensor]) -> list[LaidOut]:
    return [lowering.tensors[x].to_laid_out_tensor() for x in tensors]


@dataclasses.dataclass(frozen=True)
class _Shared:
    """What later updates wait for.

    Attributes:
        own: this processor's part of an update.
        received: the parts of others.
    """

    own: list[tf.Tensor | tf.Operation]
    received: list[tf.Tensor | tf.Operation]


def _in_turn(operation: mtf.Operation, lowering: mtf.Lowering, updated: Iterable[Parameter], scale: LaidOut) -> LaidOut:
    """Returns the scale, delayed for shared updates until earlier ones are done.

    Without the delay the results of all updates would be in memory at once. The last update may still receive the
    parts of others, so that arithmetic and network overlap.
    """
    if not any(parameter.is_shared for parameter in updated):
        return scale
    earlier = itertools.takewhile(lambda other: other is not operation, operation.graph.operations)
    done = [each for each in map(lowering.operations.get, earlier) if isinstance(each, _Shared)]
    waits = [x for each in done[-1:] for x in each.own] + [x for each in done[-2:-1] for x in each.received]
    with tf.control_dependencies(waits):
        return lowering.mesh_impl(operation).slicewise(tf.identity, scale)


def _assign(
    operation: mtf.Operation, lowering: mtf.Lowering, updated: Sequence[Parameter], values: Sequence[LaidOut]
) -> None:
    """Sets variables and slots to what an operation has computed."""
    own, received = [x for value in values[:1] for x in value.all_slices], []
    for parameter, value in zip(updated, values, strict=True):
        (received if parameter.is_shared else own).extend(parameter.assign(lowering, value))
    if received:
        lowering.operations[operation] = _Shared(own, received)


class ElementwiseUpdate(mtf.Operation):
    """Updates variables and their slots `{variable}{suffix}`, shaped like them, in one kernel call."""

    def __init__(
        self, pairs: Sequence[Pair], scalars: Sequence[mtf.Tensor], suffixes: Sequence[str], kernel: Kernel
    ) -> None:
        updated, self._gradients = zip(*pairs, strict=True)
        slots = [_slot(parameter, suffix, parameter.shape) for suffix in suffixes for parameter in updated]
        self._updated, self._scalars, self._kernel = [*updated, *slots], scalars, kernel
        values = [parameter.value for parameter in self._updated]
        super().__init__([*scalars, *values, *self._gradients], name="elementwise_update")

    @property
    def shared(self) -> list[Parameter]:
        """The variables whose update is split over the replicas of the batch."""
        return [parameter for parameter in self._updated if parameter.is_shared]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Runs the kernel on every slice, in the memory of the slots and of the variables that are not shared."""
        scalars, gradients = _laid_out(lowering, self._scalars), _laid_out(lowering, self._gradients)
        scale = _in_turn(self, lowering, self._updated, scalars[0])
        states = [
            parameter.value_before(lowering, scale) if parameter.is_shared else lowering.variables[parameter.variable]
            for parameter in self._updated
        ]
        parts = lowering.mesh_impl(self).update(self._kernel, [scale, *scalars[1:]], states, gradients)
        _assign(self, lowering, self.shared, parts)


def _groups(pairs: Iterable[Pair]) -> list[list[Pair]]:
    """Groups all small variables: a kernel call for each norm and bias would cost more than its arithmetic."""
    large, small = [], []
    for pair in pairs:
        (large if pair[0].shape.size > SMALL_VARIABLE else small).append([pair])
    return large + ([[pair for (pair,) in small]] if small else [])


@dataclasses.dataclass(frozen=True)
class _Settings:
    """What an optimiser goes by.

    Attributes:
        training: its hyperparameters.
        width: `ModelConfig.width_multiplier`, for muP.
    """

    training: TrainingConfig
    width: float

    def rate_factor(self, parameter: Parameter) -> float:
        """Returns what the rate of a variable is multiplied by, if the size of its updates does not depend on it."""
        return 1.0 / self.width if HIDDEN.search(parameter.name) else 1.0

    def rate_factor_of_muon(self) -> float:
        """Returns the same for orthogonalised updates.

        Those of size 1 in each element have a spectral norm that grows with the root of the width, and not with the
        width itself.

        Source: Yang, Simon and Bernstein 2023, A Spectral Condition for Feature Learning, condition 1.
        """
        return 1.0 / math.sqrt(self.width)

    def adam(self, decay: float, factor: float) -> kernels.AdamConstants:
        """Returns the constants of Adam.

        With the width all gradients shrink alike, and epsilon with them.
        """
        training = self.training
        return kernels.AdamConstants(training.beta1, training.beta2, training.epsilon / self.width, decay, factor)


def _by_rule(pairs: Sequence[Pair], settings: _Settings, decay: Decay) -> Iterator[tuple[float, float, list[Pair]]]:
    """Yields groups of variables with the same decay and factor of the rate."""
    rules = [(decay(parameter, settings.training), settings.rate_factor(parameter)) for parameter, _ in pairs]
    for rule in sorted(set(rules)):
        for group in _groups(pair for pair, own in zip(pairs, rules, strict=True) if own == rule):
            yield *rule, group


def _adam(pairs: Sequence[Pair], settings: _Settings, scalars: Scalars) -> None:
    for decay, factor, group in _by_rule(pairs, settings, _adam_decay):
        ElementwiseUpdate(group, scalars[:2], ADAM_SLOTS, kernels.adam(settings.adam(decay, factor)))


def _adamw(pairs: Sequence[Pair], settings: _Settings, scalars: Scalars) -> None:
    for decay, factor, group in _by_rule(pairs, settings, _matrix_decay):
        ElementwiseUpdate(group, scalars, ADAM_SLOTS, kernels.adamw(settings.adam(decay, factor)))


def _lion(pairs: Sequence[Pair], settings: _Settings, scalars: Scalars) -> None:
    for decay, factor, group in _by_rule(pairs, settings, _matrix_decay):
        kernel = kernels.lion(settings.training.beta1, settings.training.beta2, decay, factor)
        ElementwiseUpdate(group, scalars[:2], LION_SLOTS, kernel)


class MuonUpdate(mtf.Operation):
    """Updates matrices of the same dimensions and their slots `{variable}/muon_m` in place.

    The last two dimensions are those of the matrix; before them there may be the experts'.
    """

    def __init__(self, pairs: Sequence[Pair], scalars: Scalars, settings: _Settings) -> None:
        self._updated, self._gradients = zip(*pairs, strict=True)
        self._scalars, self._settings = scalars[:2], settings
        self._ms = [_slot(parameter, "/muon_m", parameter.shape) for parameter in self._updated]
        self._matrix_dims = self._updated[0].shape.dims[-2:]
        values = [parameter.value for parameter in (*self._updated, *self._ms)]
        super().__init__([*self._scalars, *values, *self._gradients], name="muon_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Orthogonalises the whole matrices' momenta, and assigns the results."""
        mesh_impl, (scale, rate) = lowering.mesh_impl(self), _laid_out(lowering, self._scalars)
        gradients, ms = _laid_out(lowering, self._gradients), _laid_out(lowering, (m.value for m in self._ms))
        scale = _in_turn(self, lowering, self._updated, scale)
        values = [parameter.value_before(lowering, scale) for parameter in self._updated]
        momentum = kernels.muon_momentum(self._settings.training.muon_momentum)
        *new_ms, stack = mesh_impl.slicewise(momentum, scale, *ms, *gradients)
        directions = orthogonalized(mesh_impl, stack, *self._matrix_dims)
        size = RMS_OF_ADAMW * math.sqrt(max(dim.size for dim in self._matrix_dims))
        factor = size * self._settings.rate_factor_of_muon()
        step = kernels.muon_step(factor, self._settings.training.weight_decay)
        new = mesh_impl.slicewise(step, scale, rate, directions, *values, *new_ms, *ms)
        _assign(self, lowering, [*self._updated, *self._ms], new)

    def arrangement(self, mesh_impl: mtf.MeshImpl) -> tuple[Arrangement, int]:
        """Returns how the matrices are laid out between, and on how many a processor works."""
        arrangement = arrange(mesh_impl, *self._matrix_dims)
        size = sum(mesh_impl.slice_size(parameter.shape) for parameter in self._updated)
        return arrangement, size // math.prod(arrangement.layout_slice)


def _stacks(pairs: Iterable[Pair]) -> Iterator[list[Pair]]:
    """Yields groups of matrices that have the same dimensions, of bounded size."""
    by_dims: dict[tuple[mtf.Dimension, ...], list[Pair]] = {}
    for pair in pairs:
        by_dims.setdefault(tuple(pair[0].shape.dims), []).append(pair)
    for dims, group in by_dims.items():
        size = max(LARGEST_STACK // mtf.Shape(dims).size, 1)
        yield from (group[start : start + size] for start in range(0, len(group), size))


def _muon(pairs: Sequence[Pair], settings: _Settings, scalars: Scalars) -> None:
    for group in _stacks(pair for pair in pairs if ORTHOGONALIZED_BY_MUON.search(pair[0].name)):
        MuonUpdate(group, scalars, settings)
    _adamw([pair for pair in pairs if not ORTHOGONALIZED_BY_MUON.search(pair[0].name)], settings, scalars)


def _factored_dims(shape: mtf.Shape) -> list[mtf.Dimension]:
    """Returns the two largest dimensions, the largest first and ties in order; none if either is small."""
    largest = sorted(shape.dims, key=lambda dim: -dim.size)[:2]
    return largest if len(largest) == 2 and largest[1].size >= SMALLEST_FACTORED_DIM else []


def _adafactor_slots(parameter: Parameter, has_mean: bool) -> list[Parameter]:
    shape, factored = parameter.shape, _factored_dims(parameter.shape)
    shapes = {"_slot_vr": shape - factored[0], "_slot_vc": shape - factored[1]} if factored else {"_slot_v": shape}
    if has_mean:
        shapes["_slot_m"] = shape
    return [_slot(parameter, suffix, slot_shape) for suffix, slot_shape in shapes.items()]


class AdafactorUpdate(mtf.Operation):
    """Updates a variable and its slots in place.

    The slots are named as mesh-TensorFlow names them: `{variable}_slot_vr` (without the largest dimension) and
    `{variable}_slot_vc` (without the second), or `{variable}_slot_v` for a variable that is not factored; with beta1,
    also `{variable}_slot_m`.
    """

    def __init__(self, pair: Pair, scalars: Scalars, constants: kernels.AdafactorConstants) -> None:
        (self._parameter, self._gradient), self._scalars = pair, scalars
        self._constants = constants
        self._factored = _factored_dims(self._parameter.shape)
        self._slots = _adafactor_slots(self._parameter, constants.beta1 > 0.0)
        values = [parameter.value for parameter in (self._parameter, *self._slots)]
        super().__init__([*scalars, self._gradient, *values], name="adafactor_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Computes the update on every slice, with sums over the mesh, and assigns the results."""
        mesh_impl = lowering.mesh_impl(self)
        scale, rate, number, gradient = _laid_out(lowering, [*self._scalars, self._gradient])
        scale = _in_turn(self, lowering, [self._parameter], scale)
        value = self._parameter.value_before(lowering, scale)
        slots = _laid_out(lowering, (slot.value for slot in self._slots))
        n_moments = 2 if self._factored else 1
        find_direction = self._factored_direction if self._factored else self._plain_direction
        direction, *moments = find_direction(mesh_impl, scale, number, gradient, *slots[:n_moments])
        squares = [self._whole_sum_of_squares(mesh_impl, slices) for slices in (value, direction)]
        step = kernels.adafactor_step(self._constants, self._parameter.shape.size)
        new_value, *means = mesh_impl.slicewise(step, rate, value, direction, *squares, *slots[n_moments:])
        kept = mesh_impl.slicewise(kernels.unless_nonfinite, scale, new_value, *moments, *means, value, *slots)
        _assign(self, lowering, [self._parameter, *self._slots], kept)

    def _plain_direction(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Returns the normalised gradient, and v."""
        return mesh_impl.slicewise(kernels.adafactor_direction(self._constants), *inputs)

    def _factored_direction(
        self, mesh_impl: mtf.MeshImpl, scale: LaidOut, number: LaidOut, gradient: LaidOut, vr: LaidOut, vc: LaidOut
    ) -> Sequence[LaidOut]:
        """Returns the normalised gradient, vr and vc."""
        dims = self._parameter.shape.dims
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
        axes = mesh_axes(mesh_impl, self._parameter.shape.dims)
        return mesh_impl.allreduce(mesh_impl.slicewise(sum_of_squares, slices), axes, "SUM")


def _adafactor(pairs: Sequence[Pair], settings: _Settings, scalars: Scalars) -> None:
    training = settings.training  # configs with muP are refused
    for pair in pairs:
        constants = kernels.AdafactorConstants(
            beta1=training.beta1,
            decay_rate=training.ada_decay_rate,
            epsilon1=training.ada_epsilon1,
            epsilon2=training.ada_epsilon2,
            weight_decay=_matrix_decay(pair[0], training),
        )
        AdafactorUpdate(pair, scalars, constants)


class EmaUpdate(mtf.Operation):
    """Updates the averages `{variable}/ema` of variables that were updated before, in one kernel call."""

    def __init__(self, pairs: Sequence[Pair], scale: mtf.Tensor, update_number: mtf.Tensor, decay: float) -> None:
        self._updated, self._decay = [parameter for parameter, _ in pairs], decay
        self._averages = [_slot(parameter, EMA_SUFFIX, parameter.shape) for parameter in self._updated]
        super().__init__([scale, update_number, *(average.value for average in self._averages)], name="ema_update")

    def lower(self, lowering: mtf.Lowering) -> None:
        """Reads the new values of the variables, which are no inputs: those are the values before the update."""
        scalars = _laid_out(lowering, self.inputs[:2])
        values = [parameter.newest_value(lowering) for parameter in self._updated]
        averages = [lowering.variables[average.variable] for average in self._averages]
        lowering.mesh_impl(self).update(kernels.ema(self._decay), scalars, averages, values)


_UPDATES = {"adam": _adam, "adamw": _adamw, "lion": _lion, "muon": _muon, "adafactor": _adafactor}


def _nan_unless_finite(scale: tf.Tensor, norm: tf.Tensor) -> tf.Tensor:
    return tf.where(tf.math.is_finite(norm), scale, math.nan)


@operation_scope("optimizer")
def build_update(
    trainable: Sequence[variables.SlicedVariable],
    gradients: Sequence[mtf.Tensor],
    training: TrainingConfig,
    learning_rate: mtf.Tensor,
    update_number: mtf.Tensor,
    width_multiplier: float = 1.0,
) -> mtf.Tensor:
    """Adds one step of the optimiser `opt_name` to the graph, with the gradients clipped by their global norm.

    If that norm is not finite, variables and slots stay as they are. With `ema_decay`, the averages `{variable}/ema` of
    the new values follow.

    Args:
        trainable: the variables to update.
        gradients: of each variable, in its shape, or with the dimension over which its update is split renamed.
        training: the optimiser, its hyperparameters, gradient_clipping (None means no clipping) and ema_decay.
        learning_rate: float32 scalar.
        update_number: int32 scalar, the number of updates made so far.
        width_multiplier: that of the model, by which muP lowers the rate of its matrices.

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
    pairs = [(Parameter(variable, grad.shape), grad) for variable, grad in zip(trainable, gradients, strict=True)]
    settings = _Settings(training, width_multiplier)
    _UPDATES[training.opt_name](pairs, settings, (scale, learning_rate, update_number))
    if training.ema_decay is not None:
        for group in _groups(pairs):
            EmaUpdate(group, scale, update_number, training.ema_decay)
    return norm


def gradient_norms(
    trainable: Sequence[variables.SlicedVariable], gradients: Sequence[mtf.Tensor]
) -> dict[str, mtf.Tensor]:
    """Returns the norms of the gradients of each variable and each group before clipping, float32 scalars.

    Args:
        trainable: the variables.
        gradients: of each variable, as `build_update` takes them.

    Returns:
        By metric name, `grads/norm/{variable}` and, for each of `GRADIENT_GROUPS` that has variables,
        `grads/group/{group}`: the norm of all their gradients as one vector.
    """
    norms = {variable.name: global_norm([grad]) for variable, grad in zip(trainable, gradients, strict=True)}
    groups: dict[str, list[mtf.Tensor]] = {}
    for name, norm in norms.items():
        groups.setdefault(_gradient_group(name), []).append(norm)
    return {
        **{f"grads/norm/{name.removeprefix('gpt2/')}": norm for name, norm in norms.items()},
        **{f"grads/group/{group}": global_norm(own) for group, own in groups.items()},
    }


def _gradient_group(name: str) -> str:
    return next(group for group, pattern in GRADIENT_GROUPS.items() if pattern.search(name))
