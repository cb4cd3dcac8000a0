"""Compares one update on eight virtual devices with one device; a program, as a process creates its devices only once.

`python -m tests.runtime.eight_devices` prints each layout that agrees, and exits with 0 if all do.
"""

from __future__ import annotations

import sys

from runtime.mesh.devices import choose_devices
from tests import tiny
from tests.runtime.spmd_worker import MODELS

MICROBATCHES = {"tokens_per_mb_per_replica": tiny.MODEL.n_ctx}
WHOLE_BATCH: dict[str, object] = {}
# Model, mesh, layout, and training settings.
CASES = (
    ("dense", "x:8", "batch:x", WHOLE_BATCH),
    ("dense", "x:8", "embd:x,memory_length:x", WHOLE_BATCH),
    ("dropout", "x:2,y:4", "batch:x,heads:y,vocab:y,intermediate_expanded:y", WHOLE_BATCH),
    ("recomputed", "x:4,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y", MICROBATCHES),
    ("recomputed", "x:2,y:2,z:2", "batch:x,heads:y,vocab:y,embd:z", MICROBATCHES),
    ("linear", "x:2,y:4", "batch:x,heads:y,vocab:y", MICROBATCHES),
    ("grouped", "x:2,y:4", "batch:x,heads:y", WHOLE_BATCH),
    ("mixture", "x:2,y:4", "batch:x,experts:y", WHOLE_BATCH),
    ("mixture", "x:4,y:2", "batch:x,experts:x,expert_hidden:y", WHOLE_BATCH),
)


def main() -> int:
    """Runs all cases."""
    devices = choose_devices(None, 8)
    expected = {
        model: tiny.one_update(tiny.run_config(model=MODELS[model]), devices) for model in {case[0] for case in CASES}
    }
    for model, mesh_shape, layout, training in CASES:
        config = tiny.run_config(tiny.mesh_config(mesh_shape, layout), MODELS[model], training)
        tiny.assert_same_update(tiny.one_update(config, devices), expected[model])
        print(model, mesh_shape, layout, flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
