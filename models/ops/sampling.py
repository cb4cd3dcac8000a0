"""The choice of the next token."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import mtf, tf
from models.kernels import sampling as kernels
from models.ops.dropout import Noise
from models.ops.mesh_operation import MeshOperation


class Sample(MeshOperation):
    """logits [batch, vocab], key, rows -> int32 [batch]."""

    def __init__(self, logits: mtf.Tensor, noise: Noise, rule: kernels.SamplingRule):
        self._rule = rule
        super().__init__([logits, *noise.tensors()], [(mtf.Shape(logits.shape.dims[:1]), tf.int32)], "sample")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: object) -> Sequence[object]:
        return (mesh_impl.slicewise(kernels.sample(self._rule), *inputs),)


def sample(logits: mtf.Tensor, noise: Noise, rule: kernels.SamplingRule) -> mtf.Tensor:
    """Draws a token for each row; the same one on any mesh.

    Args:
      logits: [batch, vocab].
      noise: of this position.
      rule: temperature and filters.

    Returns:
      int32 [batch].
    """
    return Sample(mtf.rename_dimension(logits, "vocab", "whole"), noise, rule).outputs[0]
