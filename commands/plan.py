"""The command `--plan`, and the automatic choice of a layout."""

from __future__ import annotations

import dataclasses
import math
import posixpath

from commands.console import say
from commands.options import LayoutSearch, Options
from configs.errors import ConfigError
from configs.layout import format_pairs
from configs.schema import RunConfig
from meshtf import tf
from runtime.cluster.spec import find_cluster
from runtime.mesh.devices import choose_devices
from runtime.planning.auto_layout import auto_layout, auto_layout_and_mesh_shape
from runtime.planning.diagram import draw_plan
from runtime.planning.dry_run import dry_placement
from runtime.planning.machines import MACHINES, Machine, machine_of, machine_of_kind
from runtime.planning.plan import format_plan, make_plan
from runtime.planning.scaling import format_scales, scales
from runtime.run import directory as run_directory
from storage.files import is_local


def _planned_devices(config: RunConfig, options: Options) -> tuple[int, Machine]:
    """Returns the number and kind of the devices of mesh_shape, which need not exist, or else of those present."""
    cluster = find_cluster(options.hosts, options.host_index)
    devices = choose_devices(options.gpu_ids, options.cpu_devices)
    if cluster is not None:
        devices = devices[:1] * cluster.size
    n_devices = math.prod(size for _, size in config.mesh.mesh_shape or (("all", len(devices)),))
    if options.device_kind is not None:
        return n_devices, machine_of_kind(options.device_kind, config.model.precision)
    return n_devices, machine_of(devices) if n_devices == len(devices) else MACHINES["TPU"]


def plan(config: RunConfig, options: Options) -> int:
    """Shows and draws the cost of a training step on the config's mesh, whose devices need not exist."""
    n_devices, machine = _planned_devices(config, options)
    planned = make_plan(config, dry_placement(config.mesh, n_devices))
    say(format_plan(planned))
    if options.device_kind is not None:
        say("\n" + format_scales(options.device_kind, list(scales(config, machine))))
    if not is_local(config.model_path):
        say(f"no plot: model_path = {config.model_path}: is a bucket; for a plot give --set model_path=FOLDER")
        return 0
    path = posixpath.join(config.model_path, run_directory.PLAN_PICTURE)
    tf.io.gfile.makedirs(config.model_path)
    draw_plan(planned, path)
    say(f"plot written to {path}")
    return 0


def with_chosen_layout(config: RunConfig, options: Options, search: LayoutSearch) -> RunConfig:
    """Returns the config with the layout, and the mesh if it may change, that should train fastest.

    Raises:
        UserError: the config has no mesh_shape, or no layout splits anything and fits into memory.
    """
    n_devices, machine = _planned_devices(config, options)
    if search.may_change_mesh:
        mesh_shape, layout = auto_layout_and_mesh_shape(config, n_devices, machine)
    elif config.mesh.mesh_shape is None:
        raise ConfigError(
            "--auto_layout: the config has no mesh_shape; give one, such as --set mesh_shape=x:4,y:2, or "
            "--auto_layout_and_mesh_shape"
        )
    else:
        mesh_shape = config.mesh.mesh_shape
        layout = auto_layout(config, mesh_shape, machine)
    say(f'"mesh_shape": "{format_pairs(mesh_shape)}", "layout": "{format_pairs(layout)}"')
    for axis, size in mesh_shape:
        if size > 1 and axis not in {axis for _, axis in layout}:
            say(f"{axis}: splits nothing, so its {size} devices do the same work; give a size that divides a dimension")
    return dataclasses.replace(config, mesh=dataclasses.replace(config.mesh, mesh_shape=mesh_shape, layout=layout))
