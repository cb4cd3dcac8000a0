"""Runs one command, in one process or in all processes of a cluster.

The commands connect configs, data, models and the runtime, and have no logic of their own.
"""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Callable

from commands.chat import chat
from commands.check_dataset import check_dataset
from commands.console import mute_other_processes
from commands.evaluate import evaluate
from commands.export import export
from commands.fetch_tasks import fetch_tasks
from commands.interactive import interact
from commands.options import Options
from commands.plan import plan, with_chosen_layout
from commands.predict import predict
from commands.run_tokenizer import with_tokenizer
from commands.serve import serve
from commands.train import train
from configs.errors import DeviceError, UserError
from configs.load import resolved_json
from configs.schema import RunConfig
from meshtf import tf
from runtime.cluster.process_group import ProcessGroup
from runtime.cluster.rendezvous import connect
from runtime.cluster.spec import Cluster, find_cluster
from runtime.run import directory as run_directory

# All processes of a cluster run these together.
GROUP_COMMANDS: dict[str, Callable[[RunConfig, Options, ProcessGroup], int]] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "interactive": interact,
    "chat": chat,
    "serve": serve,
}
# The first process runs these alone.
SINGLE_COMMANDS: dict[str, Callable[[RunConfig, Options], int]] = {
    "check_dataset": check_dataset,
    "export": export,
    "fetch_tasks": fetch_tasks,
    "plan": plan,
}
# These take their input from a terminal or a network, which only one process has.
UNCLUSTERED_COMMANDS = ("interactive", "chat", "serve")
# These touch neither the run nor its tokenizer.
DRY_COMMANDS = ("fetch_tasks", "plan")
GENERATION_COMMANDS = ("predict", *UNCLUSTERED_COMMANDS)


def confirm_delete(config: RunConfig, confirm: Callable[[str], bool]) -> bool:
    """Returns whether there is no run at model_path, or `confirm` allows deleting it.

    Raises:
        UserError: model_path holds something that is not a run.
    """
    path = config.model_path
    run_directory.check_path(path)
    run_directory.check_access(path)
    if run_directory.is_empty(path):
        return True
    if not run_directory.is_run(path):
        raise UserError(
            f"--new: model_path = {path}: holds no run, so it is not deleted; delete it yourself, or give another "
            "model_path"
        )
    return confirm(f"Delete the run in {path}?")


def run(command: str, config: RunConfig, options: Options) -> int:
    """Runs one command; returns the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    run_directory.check_path(config.model_path)
    only_shows = options.layout_search is not None and not options.layout_search.is_applied
    if command not in DRY_COMMANDS and not only_shows:
        run_directory.check_access(config.model_path)
    for path in (options.init_from, options.adapter):
        if options.new and path is not None:
            run_directory.check_outside(config.model_path, path)
    cluster = find_cluster(options.hosts, options.host_index)
    if cluster is not None:
        _check_cluster(command, options)
    try:
        if command in GROUP_COMMANDS and not only_shows:
            return _run_in_group(command, config, options, cluster)
        return _run_alone(command, config, options) if cluster is None or cluster.index == 0 else 0
    except tf.errors.ResourceExhaustedError as error:
        raise DeviceError(
            f"{config.name}: out of memory: the {command} step does not fit; {_memory_remedy(command)}, or split the "
            "model over more devices"
        ) from error


def _check_cluster(command: str, options: Options) -> None:
    """Rejects what a cluster of processes cannot do."""
    if command in UNCLUSTERED_COMMANDS:
        raise DeviceError(
            f"--{command}: runs in a single process, which may have many devices; leave out --hosts, TF_CONFIG and "
            "Slurm"
        )
    if options.gpu_ids is not None or options.cpu_devices is not None or options.tpu is not None:
        raise DeviceError(
            "--hosts, TF_CONFIG or Slurm: each process has one device, the GPU of its local rank or the CPU; leave out "
            "--gpu_ids, --cpu_devices and --tpu"
        )


def _run_in_group(command: str, config: RunConfig, options: Options, cluster: Cluster | None) -> int:
    with connect(cluster, options.wait_seconds) as group, mute_other_processes(group):
        group.check_same("the config", resolved_json(config))
        group.check_same(
            "the command line", repr(dataclasses.replace(options, hosts=None, host_index=None, wait_seconds=0))
        )
        if options.layout_search is not None:
            config = with_chosen_layout(config, options, options.layout_search)
        config = group.first_process_first(lambda: with_tokenizer(config, options, _note if group.is_first else _mute))
        return GROUP_COMMANDS[command](config, options, group)


def _run_alone(command: str, config: RunConfig, options: Options) -> int:
    if options.layout_search is not None:
        config = with_chosen_layout(config, options, options.layout_search)
        if not options.layout_search.is_applied:
            return 0
    if command not in DRY_COMMANDS:
        config = with_tokenizer(config, options, _note)
    return SINGLE_COMMANDS[command](config, options)


def _note(line: str) -> None:
    print(line, file=sys.stderr, flush=True)  # standard output may be left to the answers


def _mute(line: str) -> None:
    """Leaves a line to the first process."""


def _memory_remedy(command: str) -> str:
    if command in GENERATION_COMMANDS:
        return "give fewer --rows, set cache_dtype to bfloat16"
    return "lower the batch size, set tokens_per_mb_per_replica or recompute"
