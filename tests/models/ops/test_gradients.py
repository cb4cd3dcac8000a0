"""The norm of all gradients."""

from __future__ import annotations

import numpy as np

from models.ops.gradients import global_norm
from tests import tiny
from tests.models.arrays import close, normal
from tests.models.ops.on_mesh import Devices, placed


def test_global_norm_counts_every_element_once(devices: Devices) -> None:
    gradients = [normal(8, 4), normal(4, seed=1), normal(6, seed=2)]
    placement = placed(devices, "x:2,y:2", "vocab:x,embd:y")  # both split, one split, and none
    names = ["vocab embd", "embd", "intermediate_expanded"]
    (norm,) = tiny.evaluate(lambda *xs: [global_norm(xs)], placement, *zip(names, gradients, strict=True))
    close(norm, np.sqrt(sum((gradient.astype(np.float64) ** 2).sum() for gradient in gradients)))
