"""A batch in parts, which are computed one after the other, so that the activations of one part are there at a time.

What the parts give is added up in place. Sums over processors are put off until after the last part where that is
possible, and so for every gradient of a variable: they are sent once a step, and not once for each part.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from configs.schema import RunConfig
from meshtf import LaidOut, mtf, tf
from models.ops.mesh_operation import MeshOperation
from models.ops.precision import Widened

Tensors = dict[str, mtf.Tensor]


def n_microbatches(config: RunConfig, batch_split: int) -> int:
    """In how many parts a batch is computed, one after the other, so that none is larger than asked for.

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
    features: Mapping[str, mtf.Tensor], outputs_of: Callable[[Tensors], Tensors], n_parts: int
) -> tuple[list[mtf.Tensor], Tensors]:
    """The gradients of all trainable variables, and other outputs, summed over the parts of a batch.

    Args:
        features: [batch, ...].
        outputs_of: from the features of a part to float32 tensors without a batch dimension; that of `loss` is the one
            whose gradients are taken.
        n_parts: how many parts there are.
    """
    if n_parts == 1:
        return _part_gradients(dict(features), outputs_of)
    names: list[str] = []

    def build(part: Tensors) -> list[mtf.Tensor]:
        part_gradients, outputs = _part_gradients(part, outputs_of)
        names.extend(outputs)
        return [*outputs.values(), *part_gradients]

    sums = sum_over_parts(features, build, n_parts)
    return sums[len(names) :], dict(zip(names, sums, strict=False))


def _part_gradients(part: Tensors, outputs_of: Callable[[Tensors], Tensors]) -> tuple[list[mtf.Tensor], Tensors]:
    outputs = outputs_of(part)
    trainable = outputs["loss"].graph.trainable_variables
    return mtf.gradients([outputs["loss"]], [variable.value for variable in trainable]), outputs


def sum_over_parts(
    features: Mapping[str, mtf.Tensor], build: Callable[[Tensors], Sequence[mtf.Tensor]], n_parts: int
) -> list[mtf.Tensor]:
    """The sums of what each part of a batch gives.

    Args:
        features: [batch, ...].
        build: adds the operations on one part to the graph, from its features to float32 tensors; called once.
        n_parts: which divides the slices of batch.
    """
    mesh = next(iter(features.values())).mesh
    operations = mesh.graph.operations
    n_before = len(operations)
    number = _PartNumber(mesh).outputs[0]
    terms = build({name: _Part(x, number, n_parts).outputs[0] for name, x in features.items()})
    added = operations[n_before + 1 :]
    variables = [operation for operation in added if isinstance(operation, mtf.Variable)]
    operations[n_before:] = variables
    body = [operation for operation in added if operation not in variables]
    return MicrobatchLoop(number, body, terms, n_parts).outputs


class _PartNumber(mtf.Operation):
    """The number of the part that is computed, an int32 scalar, which the loop over parts sets."""

    def __init__(self, mesh: mtf.Mesh):
        super().__init__([], mesh, name="part_number")
        self._outputs = [mtf.Tensor(self, mtf.Shape([]), tf.int32)]


class _Part(MeshOperation):
    """x [batch, ...], part number -> [batch / n_parts, ...]: of each processor's rows every `n_parts`th."""

    def __init__(self, x: mtf.Tensor, number: mtf.Tensor, n_parts: int):
        self._n_parts = n_parts
        batch_dim, *rest = x.shape.dims
        rows_dim = mtf.Dimension(batch_dim.name, batch_dim.size // n_parts)
        super().__init__([x, number], [(mtf.Shape([rows_dim, *rest]), x.dtype)], "part")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, number: LaidOut) -> Sequence[LaidOut]:
        def own_rows(x: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
            return tf.reshape(x, [-1, self._n_parts, *x.shape[1:]])[:, number]

        return (mesh_impl.slicewise(own_rows, x, number),)


class MicrobatchLoop(mtf.Operation):
    """Sums over the parts of a batch of what its operations give for each.

    Attributes:
        operations: on one part.
        n_parts: how many there are.
    """

    def __init__(
        self, number: mtf.Tensor, operations: Sequence[mtf.Operation], terms: Sequence[mtf.Tensor], n_parts: int
    ):
        made_inside = {number, *(y for operation in operations for y in operation.outputs)}
        read = dict.fromkeys(x for operation in operations for x in operation.inputs)
        super().__init__([x for x in read if x not in made_inside], number.mesh, "parts")
        assert all(term.dtype == tf.float32 for term in terms), "sums of other numbers would lose what is small"
        self._number, self._terms = number, terms
        self.operations, self.n_parts = operations, n_parts
        self._outputs = [mtf.Tensor(self, term.shape, term.dtype, index=index) for index, term in enumerate(terms)]

    def lower(self, lowering: mtf.Lowering) -> None:
        mesh_impl = lowering.mesh_impl(self)

        def add_part(number: tf.Tensor, *sums: list[tf.Tensor]) -> list[LaidOut]:
            self._lower_part(lowering, number)
            pairs = zip(self._terms, map(mesh_impl.LaidOutTensor, sums), strict=True)
            new_sums = [mesh_impl.slicewise(tf.add, _unsent(lowering.tensors[term]), total) for term, total in pairs]
            return [number + 1, *(total.tensor_list for total in new_sums)]

        zeros = [mesh_impl.slicewise(_zeros(mesh_impl.slice_shape(term.shape))).tensor_list for term in self._terms]
        # TensorFlow would begin with the next parts before one is done, and so hold the activations of several.
        _, *sums = tf.while_loop(
            lambda number, *_: number < self.n_parts, add_part, [tf.constant(0), *zeros], parallel_iterations=1
        )
        for term, output, total in zip(self._terms, self.outputs, map(mesh_impl.LaidOutTensor, sums), strict=True):
            lowering.set_tensor_lowering(output, _summed_like(lowering.tensors[term], total))

    def _lower_part(self, lowering: mtf.Lowering, number: tf.Tensor) -> None:
        lowering.set_tensor_lowering(self._number, lowering.mesh_impl(self).slicewise(lambda: tf.identity(number)))
        added_up = _leading_to_sums_only(self.operations)
        for operation in self.operations:
            with tf.name_scope(operation.name):
                if operation in added_up:
                    _lower_unsent(operation, lowering)
                else:
                    operation.lower(lowering)


def _zeros(shape: Sequence[int]) -> Callable[[], tf.Tensor]:
    # `tf.zeros` would be folded into a constant, which lies beside the sums for as long as the program runs.
    return lambda: tf.raw_ops.Empty(shape=shape, dtype=tf.float32, init=True)


def _unsent(laid_out: LaidOut) -> LaidOut:
    """What each processor has to add to a sum over processors, or simply what it has."""
    return laid_out.laid_out_input if isinstance(laid_out, mtf.LazyAllreduceSum) else laid_out.to_laid_out_tensor()


def _summed_like(term: LaidOut, total: LaidOut) -> LaidOut:
    """A total of `_unsent` terms as what it stands for."""
    is_put_off = isinstance(term, mtf.LazyAllreduceSum)
    return mtf.LazyAllreduceSum(term.mesh_impl, total, term.mesh_axes) if is_put_off else total


# Operations on sums that may as well be done on what is summed.
LINEAR = (
    mtf.AddOperation,
    mtf.ReshapeOperation,
    mtf.ScalarMultiplyOperation,
    mtf.StackOperation,
    mtf.UnstackOperation,
    Widened,
)


def _leading_to_sums_only(operations: Sequence[mtf.Operation]) -> set[mtf.Operation]:
    """Linear operations whose outputs are read by such operations alone: all that they give is added up."""
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


def _lower_unsent(operation: mtf.Operation, lowering: mtf.Lowering) -> None:
    """Lowers a linear operation on sums over processors as one on what each processor has to add to them."""
    mesh_impl, sums = lowering.mesh_impl(operation), {x: lowering.tensors[x] for x in operation.inputs}
    if not mtf.compatible_lazy_allreduce_sums(list(sums.values())):
        operation.lower(lowering)
        return
    axes = next(iter(sums.values())).mesh_axes
    if _moved_axes(operation, mesh_impl) & set(axes):
        operation.lower(lowering)
        return
    lowering.tensors.update({x: _unsent(each) for x, each in sums.items()})
    operation.lower(lowering)
    lowering.tensors.update(sums)
    for output in operation.outputs:
        lowering.tensors[output] = mtf.LazyAllreduceSum(mesh_impl, lowering.tensors[output], axes)


def _moved_axes(operation: mtf.Operation, mesh_impl: mtf.MeshImpl) -> set[int]:
    """The mesh axes along which a reshape moves data between processors."""
    if not isinstance(operation, mtf.ReshapeOperation):
        return set()
    before, after = (mesh_impl.mesh_axis_to_cumprod(x.shape) for x in (*operation.inputs, *operation.outputs))
    return {axis for axis, (old, new) in enumerate(zip(before, after, strict=True)) if old != new}
