"""The terms of the cross-entropy."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from meshtf import LaidOut, mtf, tf
from models.kernels import cross_entropy as kernels
from models.ops.mesh_operation import MeshOperation, mesh_axes, slice_start


class SliceSoftmax(NamedTuple):
    """The softmax of slices of logits [..., vocab], float32.

    Attributes:
        exponentials: of the logits less the largest, [..., vocab].
        total: their sum over the whole vocabulary, [...].
        label_logit: [...].
        log_z: the log-partition function, [...].
    """

    exponentials: LaidOut
    total: LaidOut
    label_logit: LaidOut
    log_z: LaidOut


def slice_softmax(mesh_impl: mtf.MeshImpl, vocab_dim: mtf.Dimension, logits: LaidOut, labels: LaidOut) -> SliceSoftmax:
    """Returns the softmax of slices of logits [..., vocab] and its terms for labels [...]."""
    axes = mesh_axes(mesh_impl, [vocab_dim])
    largest = mesh_impl.allreduce(mesh_impl.slicewise(kernels.largest_logit, logits), axes, "MAX")
    start = slice_start(mesh_impl, vocab_dim)
    exponentials, *sums = mesh_impl.slicewise(kernels.exponentials_and_label_logit, logits, labels, largest, start)
    total, label_logit = (mesh_impl.allreduce(part, axes, "SUM") for part in sums)
    log_z = mesh_impl.slicewise(lambda largest, total: largest + tf.math.log(total), largest, total)
    return SliceSoftmax(exponentials, total, label_logit, log_z)


class SoftmaxStatistics(MeshOperation):
    """The log-partition function and the logit of the label, without a gradient.

    logits [batch, sequence, vocab], labels [batch, sequence] -> log_z, label_logit, both float32 [batch,
    sequence].
    """

    def __init__(self, logits: mtf.Tensor, labels: mtf.Tensor) -> None:
        super().__init__([logits, labels], [(labels.shape, tf.float32)] * 2, "softmax_statistics")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, logits: LaidOut, labels: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        softmax = slice_softmax(mesh_impl, self.inputs[0].shape.dims[-1], logits, labels)
        return softmax.log_z, softmax.label_logit


class IsBeaten(MeshOperation):
    """Whether another token is more likely than the label, int32 1 or 0: of equal logits the first one wins.

    logits [batch, sequence, vocab], labels [batch, sequence], label_logit float32 [batch, sequence] -> [batch,
    sequence].
    """

    def __init__(self, logits: mtf.Tensor, labels: mtf.Tensor, label_logit: mtf.Tensor) -> None:
        super().__init__([logits, labels, label_logit], [(labels.shape, tf.int32)], "is_beaten")

    def lower_slices(
        self, mesh_impl: mtf.MeshImpl, logits: LaidOut, labels: LaidOut, label_logit: LaidOut
    ) -> Sequence[LaidOut]:
        """Computes the output from the slices of the inputs."""
        vocab_dim = self.inputs[0].shape.dims[-1]
        start = slice_start(mesh_impl, vocab_dim)
        is_beaten = mesh_impl.slicewise(kernels.is_beaten, logits, labels, label_logit, start)
        return [mesh_impl.allreduce(is_beaten, mesh_axes(mesh_impl, [vocab_dim]), "MAX")]


def label_scores(logits: mtf.Tensor, labels: mtf.Tensor) -> tuple[mtf.Tensor, mtf.Tensor]:
    """Returns the log-probability of each label, and whether greedy decoding would choose it.

    Args:
        logits: [batch, sequence, vocab]; vocab may be split.
        labels: int32 [batch, sequence].

    Returns:
        float32, in nats, and int32, 1 where it is the argmax, of equal logits the first; both [batch, sequence].
    """
    log_z, label_logit = SoftmaxStatistics(logits, labels).outputs
    return label_logit - log_z, 1 - IsBeaten(logits, labels, label_logit).outputs[0]
