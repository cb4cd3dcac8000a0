"""The settings of the command line that are not keys of the config."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from serving.settings import ServingSettings


@dataclasses.dataclass(frozen=True)
class LayoutSearch:
    """The search for a layout.

    Attributes:
        may_change_mesh: mesh_shape is chosen too.
        is_applied: the command runs with the result, which is otherwise only shown.
    """

    may_change_mesh: bool
    is_applied: bool


@dataclasses.dataclass(frozen=True)
class Options:
    """The settings of the command line that are not keys of the config, most by the name of their flag.

    Attributes:
        hosts: the processes of the run, separated by commas; None: not given.
        host_index: the index of this process in `hosts`; None: not given.
        wait_seconds: how long to wait for the other processes to start.
        tpu: the TPU; None: none.
        gpu_ids: the names of devices; None: the default ones.
        cpu_devices: the number of virtual CPU devices to make; None: none.
        steps_per_checkpoint: the steps between checkpoints.
        sacred_id: a part of the names of output files.
        prompt: the file of prompts, "-" for standard input; None or empty: a default prompt.
        prompt_text: the prompt itself; None: not given.
        output: the file for the answers as lines of JSON, "-" for standard output; None: none.
        rows: the number of samples generated at once; None: as many as are needed, up to a limit.
        new: delete the run at model_path before training, once everything else has been checked.
        init_from: the initial weights, or those to use instead of the newest checkpoint; None: none.
        export_format: "saved_model" or "hf".
        export_dir: the folder of an export.
        serving: the settings of the command serve; None for other commands.
        layout_search: how to choose a layout; None: the config's layout is used.
    """

    hosts: str | None
    host_index: int | None
    wait_seconds: int
    tpu: str | None
    gpu_ids: Sequence[str] | None
    cpu_devices: int | None
    steps_per_checkpoint: int
    sacred_id: str
    prompt: str | None
    prompt_text: str | None
    output: str | None
    rows: int | None
    new: bool
    init_from: str | None
    export_format: str
    export_dir: str
    serving: ServingSettings | None
    layout_search: LayoutSearch | None
