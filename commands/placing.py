"""Where a run is computed."""

from __future__ import annotations

from commands.console import say
from commands.options import Options
from configs.schema import RunConfig
from runtime.cluster.process_group import ProcessGroup
from runtime.mesh.devices import choose_devices
from runtime.mesh.multi_process import place_process
from runtime.mesh.placement import Placement, place
from runtime.mesh.tpu_discovery import find_tpu
from runtime.mesh.tpu_replicate import place_on_tpu


def place_run(config: RunConfig, options: Options, group: ProcessGroup) -> Placement:
    """The devices that the command line names, or that are there, as the mesh of the config."""
    if options.tpu is not None:
        placement = place_on_tpu(config.mesh, find_tpu(options.tpu))
    elif group.device is None:
        placement = place(config.mesh, choose_devices(options.gpu_ids, options.n_cpu_devices))
    else:
        placement = place_process(config.mesh, group.index, group.size, group.device)
    say(f"mesh: {placement.describe()}")
    return placement
