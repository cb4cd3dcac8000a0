"""What the command line says beside the config."""

from __future__ import annotations

import dataclasses

from serving.settings import ServingSettings


@dataclasses.dataclass(frozen=True)
class Export:
    """What to write for other programs: in which format, into which folder."""

    format: str
    directory: str


@dataclasses.dataclass(frozen=True)
class Choice:
    """That a layout is to be chosen.

    Attributes:
        may_change_mesh: the mesh_shape is chosen too.
        is_applied: the verb goes on with it; else it is only shown.
    """

    may_change_mesh: bool
    is_applied: bool


@dataclasses.dataclass(frozen=True)
class Options:
    """What the command line says beside the config.

    Attributes:
        hosts: the processes of a run of many, apart by commas; None: not given.
        host_index: which of them this one is; None: not given.
        tpu: the TPU to run on; None: none.
        gpu_ids: devices by name; None: what is there.
        n_cpu_devices: virtual CPU devices to make; None: none.
        steps_per_checkpoint: steps between checkpoints.
        sacred_id: stands in the names of output files.
        prompt_path: file of what is continued, "-" for standard input; None: a prompt of our own.
        output_path: file that gets the answers as lines of JSON, "-" for standard output; None: none.
        n_rows: texts that are written at once; None: as many as are asked for, up to a few.
        is_new: delete the run at the model path before training, once all else is known to be right.
        init_from: weights to begin with, or to use in place of the newest checkpoint; None: none.
        export: what to write with the verb export.
        serving: how the verb serve behaves; None: it is another verb.
        choice: of a layout; None: that of the config is taken.
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
    choice: Choice | None
