"""Gradient accumulation: a batch is computed in microbatches, so that only one microbatch's activations are in memory.

The results of the microbatches are summed in place. Allreduces are deferred until after the last microbatch where that
is possible, which includes every variable's gradient: gradients are sent once per step, not once per microbatch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

from configs.schema import RunConfig
from meshtf import LaidOut, mtf, tf
from models.ops.mesh_operation import MeshOperation, loop, zeros
from models.ops.precision import Widened
from runtime.training.state_sharding import Sharing

Tensors = dict[str, mtf.Tensor]


def n_microbatches(config: RunConfig, batch_split: int) -> int:
    """Returns the number of microbatches: the fewest that keep each within `tokens_per_mb_per_replica`.

    Source: GPT-Neo, by way of mesh-TensorFlow: the largest size that divides the batch of a replica.
    """
    tokens = config.training.tokens_per_mb_per_replica
    if tokens is None:
        return 1
    batch_per_replica = config.training.train_batch_size // batch_split
    size = min(batch_per_replica, max(1, tokens // config.model.n_ctx))
    while batch_per_replica % size:
        size -= 1
    return batch_per_replica // size


def gradients(
    features: Mapping[str, mtf.Tensor],
    outputs_of: Callable[[Tensors], Tensors],
    microbatch_count: int,
    sharing: Sharing,
) -> tuple[list[mtf.Tensor], Tensors]:
    """Returns the gradients of all trainable variables, and other outputs, summed over the microbatches.

    Args:
        features: [batch, ...].
        outputs_of: maps the features of a microbatch to float32 tensors without a batch dimension; the gradients are
            those of `loss`.
        microbatch_count: divides each processor's rows.
        sharing: what replicas share.
    """
    if microbatch_count == 1:
        return _microbatch_gradients(dict(features), outputs_of, sharing)
    names: list[str] = []

    def build(microbatch: Tensors) -> list[mtf.Tensor]:
        own_gradients, outputs = _microbatch_gradients(microbatch, outputs_of, sharing)
        names.extend(outputs)
        return [*outputs.values(), *own_gradients]

    sums = sum_over_microbatches(features, build, microbatch_count)
    return sums[len(names) :], dict(zip(names, sums, strict=False))


def _microbatch_gradients(
    microbatch: Tensors, outputs_of: Callable[[Tensors], Tensors], sharing: Sharing
) -> tuple[list[mtf.Tensor], Tensors]:
    operations = next(iter(microbatch.values())).graph.operations
    n_before = len(operations)
    outputs = outputs_of(microbatch)
    trainable = outputs["loss"].graph.trainable_variables
    own_gradients = mtf.gradients([outputs["loss"]], [variable.value for variable in trainable])
    own_gradients = sharing.scattered(trainable, own_gradients)
    needed = _read_by(operations[n_before:], [*outputs.values(), *own_gradients])
    operations[n_before:] = sharing.arranged(needed)
    return own_gradients, outputs


def _read_by(operations: Sequence[mtf.Operation], results: Iterable[mtf.Tensor]) -> list[mtf.Operation]:
    """Returns the variables, and the operations that the results depend on.

    Mesh-TensorFlow adds the gradients of all inputs of an operation: of a frozen kernel too, which nothing reads.
    """
    read, kept = set(results), []
    for operation in reversed(operations):
        if isinstance(operation, mtf.Variable) or not read.isdisjoint(operation.outputs):
            kept.append(operation)
            read.update(operation.inputs)
    return kept[::-1]


def sum_over_microbatches(
    features: Mapping[str, mtf.Tensor], build: Callable[[Tensors], Sequence[mtf.Tensor]], microbatch_count: int
) -> list[mtf.Tensor]:
    """Returns the sums, over the microbatches, of what `build` computes.

    Args:
        features: [batch, ...].
        build: adds the operations on one microbatch to the graph, from its features to float32 tensors; called once.
        microbatch_count: divides each processor's rows.
    """
    mesh = next(iter(features.values())).mesh
    operations = mesh.graph.operations
    n_before = len(operations)
    index = _MicrobatchIndex(mesh).outputs[0]
    terms = build({name: _Microbatch(x, index, microbatch_count).outputs[0] for name, x in features.items()})
    added = operations[n_before + 1 :]
    variables = [operation for operation in added if isinstance(operation, mtf.Variable)]
    operations[n_before:] = variables
    body = [operation for operation in added if operation not in variables]
    return MicrobatchLoop(index, body, terms, microbatch_count).outputs


class _MicrobatchIndex(mtf.Operation):
    """The index of the current microbatch, an int32 scalar that the loop sets."""

    def __init__(self, mesh: mtf.Mesh) -> None:
        super().__init__([], mesh, name="microbatch_index")
        self._outputs = [mtf.Tensor(self, mtf.Shape([]), tf.int32)]


class _Microbatch(MeshOperation):
    """Maps x [batch, ...] and an index to [batch / count, ...]: every `count`th of each processor's rows."""

    def __init__(self, x: mtf.Tensor, index: mtf.Tensor, microbatch_count: int) -> None:
        self._count = microbatch_count
        batch_dim, *rest = x.shape.dims
        rows_dim = mtf.Dimension(batch_dim.name, batch_dim.size // microbatch_count)
        super().__init__([x, index], [(mtf.Shape([rows_dim, *rest]), x.dtype)], "microbatch")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, index: LaidOut) -> Sequence[LaidOut]:
        def own_rows(x: tf.Tensor, index: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, [-1, self._count, *x.shape[1:]])[:, index]

        return (mesh_impl.slicewise(own_rows, x, index),)


class MicrobatchLoop(mtf.Operation):
    """Runs operations for each microbatch, and sums their results.

    Attributes:
        operations: on one microbatch.
        microbatch_count: how often they run.
    """

    def __init__(
        self, index: mtf.Tensor, operations: Sequence[mtf.Operation], terms: Sequence[mtf.Tensor], microbatch_count: int
    ) -> None:
        made_inside = {index, *(y for operation in operations for y in operation.outputs)}
        read = dict.fromkeys(x for operation in operations for x in operation.inputs)
        super().__init__([x for x in read if x not in made_inside], index.mesh, "microbatches")
        assert all(term.dtype == tf.float32 for term in terms), "sums in a lower precision would lose small terms"
        self._index, self._terms = index, terms
        self.operations, self.microbatch_count = operations, microbatch_count
        self._outputs = [mtf.Tensor(self, term.shape, term.dtype, index=i) for i, term in enumerate(terms)]

    def lower(self, lowering: mtf.Lowering) -> None:
        """Lowers to a loop of TensorFlow over the microbatches."""
        mesh_impl = lowering.mesh_impl(self)

        def add_microbatch(index: tf.Tensor, *sums: LaidOut) -> list[LaidOut]:
            self._lower_microbatch(lowering, index)
            return [
                mesh_impl.slicewise(tf.add, _partial_sums(lowering.tensors[term]), total)
                for term, total in zip(self._terms, sums, strict=True)
            ]

        first = [zeros(mesh_impl, mesh_impl.slice_shape(term.shape)) for term in self._terms]
        sums = loop(mesh_impl, self.microbatch_count, add_microbatch, first)
        for term, output, total in zip(self._terms, self.outputs, sums, strict=True):
            lowering.set_tensor_lowering(output, _summed_like(lowering.tensors[term], total))

    def _lower_microbatch(self, lowering: mtf.Lowering, index: tf.Tensor) -> None:
        lowering.set_tensor_lowering(self._index, lowering.mesh_impl(self).slicewise(lambda: tf.identity(index)))
        only_summed = _only_summed(self.operations)
        for operation in self.operations:
            with tf.name_scope(operation.name):
                if operation in only_summed:
                    _lower_on_partial_sums(operation, lowering)
                else:
                    operation.lower(lowering)


def _partial_sums(laid_out: LaidOut) -> LaidOut:
    """Returns each processor's term of a deferred allreduce, or else its slice."""
    return laid_out.laid_out_input if isinstance(laid_out, mtf.LazyAllreduceSum) else laid_out.to_laid_out_tensor()


def _summed_like(term: LaidOut, total: LaidOut) -> LaidOut:
    """Returns a total of `_partial_sums` in the form of its terms: a deferred allreduce, or slices."""
    is_put_off = isinstance(term, mtf.LazyAllreduceSum)
    return mtf.LazyAllreduceSum(term.mesh_impl, total, term.mesh_axes) if is_put_off else total


# Linear operations: they give the same result before and after an allreduce.
LINEAR = (
    mtf.AddOperation,
    mtf.ReshapeOperation,
    mtf.ScalarMultiplyOperation,
    mtf.StackOperation,
    mtf.UnstackOperation,
    Widened,
)


def _only_summed(operations: Sequence[mtf.Operation]) -> set[mtf.Operation]:
    """Returns the linear operations whose outputs are read by nothing but such operations and the sums."""
    readers: dict[mtf.Tensor, list[mtf.Operation]] = {}
    for operation in operations:
        for x in operation.inputs:
            readers.setdefault(x, []).append(operation)
    found: set[mtf.Operation] = set()
    for operation in reversed(operations):
        read_by = {reader for y in operation.outputs for reader in readers.get(y, [])}
        if isinstance(operation, LINEAR) and read_by <= found:
            found.add(operation)
    return found


def _lower_on_partial_sums(operation: mtf.Operation, lowering: mtf.Lowering) -> None:
    """Lowers a linear operation on deferred allreduces as one on each processor's terms."""
    mesh_impl, sums = lowering.mesh_impl(operation), {x: lowering.tensors[x] for x in operation.inputs}
    if not mtf.compatible_lazy_allreduce_sums(list(sums.values())):
        operation.lower(lowering)
        return
    axes = next(iter(sums.values())).mesh_axes
    if _moved_axes(operation, mesh_impl) & set(axes):
        operation.lower(lowering)
        return
    lowering.tensors.update({x: _partial_sums(each) for x, each in sums.items()})
    operation.lower(lowering)
    lowering.tensors.update(sums)
    for output in operation.outputs:
        lowering.tensors[output] = mtf.LazyAllreduceSum(mesh_impl, lowering.tensors[output], axes)


def _moved_axes(operation: mtf.Operation, mesh_impl: mtf.MeshImpl) -> set[int]:
    """Returns the mesh axes along which a reshape moves data between processors."""
    if not isinstance(operation, mtf.ReshapeOperation):
        return set()
    before, after = (mesh_impl.mesh_axis_to_cumprod(x.shape) for x in (*operation.inputs, *operation.outputs))
    return {axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
