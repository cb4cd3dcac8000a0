"""The settings of the command line that are not keys of the config."""

from __future__ import annotations

import dataclasses

from serving.settings import ServingSettings


@dataclasses.dataclass(frozen=True)
class Export:
    """The format and the folder of an export."""

    format: str
    directory: str


@dataclasses.dataclass(frozen=True)
class LayoutSearch:
    """The search for a layout.

    Attributes:
        may_change_mesh: mesh_shape is chosen too.
        is_applied: the command runs with the result, which else is only shown.
    """

    may_change_mesh: bool
    is_applied: bool


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of the command line that are not keys of the config.

    Attributes:
        hosts: the processes of the run, separated by commas; None: not given.
        host_index: the index of this process in `hosts`; None: not given.
        tpu: the TPU; None: none.
        gpu_ids: the names of devices; None: the default ones.
        n_cpu_devices: the number of virtual CPU devices to make; None: none.
        steps_per_checkpoint: the steps between checkpoints.
        sacred_id: a part of the names of output files.
        prompt_path: the file of prompts, "-" for standard input; None: a default prompt.
        output_path: the file for the answers as lines of JSON, "-" for standard output; None: none.
        n_rows: the number of samples generated at once; None: as many as are needed, up to a limit.
        is_new: delete the run at model_path before training, once everything else has been checked.
        init_from: the initial weights, or those to use in place of the newest checkpoint; None: none.
        export: the settings of the command export.
        serving: the settings of the command serve; None for other commands.
        layout_search: how to choose a layout; None: the config's layout is used.
    """

    hosts: str | None
    host_index: int | None
    tpu: str | None
    gpu_ids: tuple[str, ...] | None
    n_cpu_devices: int | None
    steps_per_checkpoint: int
    sacred_id: str
    prompt_path: str | None
    output_path: str | None
    n_rows: int | None
    is_new: bool
    init_from: str | None
    export: Export
    serving: ServingSettings | None
    layout_search: LayoutSearch | None
