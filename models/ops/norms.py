"""Layer normalisation."""

from __future__ import annotations

from collections.abc import Sequence

from meshtf import LaidOut, mtf, tf
from models.kernels import norms as kernels
from models.ops.mesh_operation import MeshOperation, lazy_sum, mesh_axes


class LayerNorm(MeshOperation):
    """x [..., embd], gain [embd], bias [embd] -> y [..., embd], mean [...], inverse_std [...]."""

    def __init__(self, x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, epsilon: float) -> None:
        self._epsilon = epsilon
        rows = mtf.Shape(x.shape.dims[:-1])
        super().__init__([x, gain, bias], [(x.shape, x.dtype), (rows, tf.float32), (rows, tf.float32)], "layer_norm")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, x: LaidOut, gain: LaidOut, bias: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        embd_dim = self.inputs[0].shape.dims[-1]
        axes = mesh_axes(mesh_impl, [embd_dim])
        if not axes:
            return mesh_impl.slicewise(kernels.layer_norm(self._epsilon), x, gain, bias)
        total = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_embd, x), axes, "SUM")
        mean = mesh_impl.slicewise(lambda total: total / embd_dim.size, total)
        squares = mesh_impl.allreduce(mesh_impl.slicewise(kernels.sum_of_squares_about, x, mean), axes, "SUM")
        inverse_std = mesh_impl.slicewise(
            lambda squares: tf.math.rsqrt(squares / embd_dim.size + self._epsilon), squares
        )
        return mesh_impl.slicewise(kernels.scale_and_shift, x, mean, inverse_std, gain, bias), mean, inverse_std

    def gradient(self, grad_ys: Sequence[mtf.Tensor]) -> list[mtf.Tensor]:
        """Returns the gradients of the inputs."""
        x, gain, _ = self.inputs
        _, mean, inverse_std = self.outputs
        return LayerNormGradient(x, mean, inverse_std, gain, grad_ys[0]).outputs


class LayerNormGradient(MeshOperation):
    """x, mean, inverse_std, gain, dy -> dx [..., embd], d_gain [embd], d_bias [embd]."""

    def __init__(
        self, x: mtf.Tensor, mean: mtf.Tensor, inverse_std: mtf.Tensor, gain: mtf.Tensor, dy: mtf.Tensor
    ) -> None:
        outputs = [(x.shape, x.dtype), (gain.shape, gain.dtype), (gain.shape, gain.dtype)]
        super().__init__([x, mean, inverse_std, gain, dy], outputs, "layer_norm_gradient")

    def lower_slices(self, mesh_impl: mtf.MeshImpl, *inputs: LaidOut) -> Sequence[LaidOut]:
        """Computes the outputs from the slices of the inputs."""
        *row_dims, embd_dim = self.inputs[0].shape.dims
        sums = mesh_impl.slicewise(kernels.layer_norm_gradient_sums, *inputs)
        sums = [mesh_impl.allreduce(part, mesh_axes(mesh_impl, [embd_dim]), "SUM") for part in sums]
        dx, d_gain, d_bias = mesh_impl.slicewise(kernels.layer_norm_gradient(embd_dim.size), *inputs, *sums)
        return dx, lazy_sum(mesh_impl, d_gain, row_dims), lazy_sum(mesh_impl, d_bias, row_dims)


def layer_norm(x: mtf.Tensor, gain: mtf.Tensor, bias: mtf.Tensor, epsilon: float) -> mtf.Tensor:
    """Normalises the last dimension and applies an affine map.

    Args:
        x: [..., embd].
        gain: [embd].
        bias: [embd].
        epsilon: added to the variance.

    Returns:
        [..., embd] in x's dtype; statistics are float32.

    Source: Ba et al. 2016, Layer Normalization, equation 4.
    """
    return LayerNorm(x, gain, bias, epsilon).outputs[0]
