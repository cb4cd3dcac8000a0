"""One update on eight virtual devices against one; a program of its own, for a process can make its devices once only.

`python -m tests.runtime.eight_devices` ends with 0 if all agree, and says which layouts it has tried.
"""

from __future__ import annotations

import sys

from runtime.mesh.devices import choose_devices
from tests import tiny
from tests.runtime.spmd_worker import MODELS

IN_PARTS = {"tokens_per_mb_per_replica": tiny.MODEL.n_ctx}
WHOLE: dict[str, object] = {}
# Model, mesh, layout, and how the batch is computed.
CASES = (
    ("dense", "x:8", "batch:x", WHOLE),
    ("dense", "x:8", "embd:x,memory_length:x", WHOLE),
    ("dropout", "x:2,y:4", "batch:x,heads:y,vocab:y,intermediate_expanded:y", WHOLE),
    ("recomputed", "x:4,y:2", "batch:x,heads:y,vocab:y,intermediate_expanded:y", IN_PARTS),
    ("recomputed", "x:2,y:2,z:2", "batch:x,heads:y,vocab:y,embd:z", IN_PARTS),
    ("linear", "x:2,y:4", "batch:x,heads:y,vocab:y", IN_PARTS),
    ("mixture", "x:2,y:4", "batch:x,experts:y", WHOLE),
    ("mixture", "x:4,y:2", "batch:x,experts:x,expert_hidden:y", WHOLE),
)


def main() -> int:
    """Tries all cases."""
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
