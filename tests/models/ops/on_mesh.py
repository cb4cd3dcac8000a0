"""Placement of an operation over four devices, and its gradients."""

from __future__ import annotations

from meshtf import mtf
from runtime.mesh.placement import Placement, place
from tests import tiny

Devices = tuple[str, ...]


def placed(devices: Devices, mesh_shape: str, layout: str) -> Placement:
    return place(tiny.mesh_config(mesh_shape, layout), devices if mesh_shape else devices[:1])


def with_gradients(outputs: mtf.Tensor, d_outputs: mtf.Tensor, *inputs: mtf.Tensor) -> list[mtf.Tensor]:
    """The outputs, and the gradient of their product with `d_outputs` for each input."""
    return [outputs, *mtf.gradients([mtf.reduce_sum(outputs * d_outputs)], list(inputs))]
