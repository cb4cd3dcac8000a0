"""Where a run is computed, and which programs are built for that place."""

from __future__ import annotations

from types import ModuleType

from configs.schema import RunConfig
from runtime import graph, tpu_step
from runtime.mesh import Placement, choose_devices, place
from runtime.spmd import place_process
from runtime.team import Team
from runtime.tpu import find_tpu
from runtime.tpu_mesh import TpuPlacement, place_on_tpu
from verbs.options import Options
from verbs.screen import say


def place_run(config: RunConfig, options: Options, team: Team) -> Placement:
    """The devices that the command line names, or that are there, as the mesh of the config."""
    if options.tpu is not None:
        placement = place_on_tpu(config.mesh, find_tpu(options.tpu))
    elif team.device is None:
        placement = place(config.mesh, choose_devices(options.gpu_ids, options.n_cpu_devices))
    else:
        placement = place_process(config.mesh, team.index, team.size, team.device)
    say(f"mesh: {placement.describe()}")
    return placement


def programs_for(placement: Placement) -> ModuleType:
    """Where the programs for a placement are built."""
    return tpu_step if isinstance(placement, TpuPlacement) else graph
