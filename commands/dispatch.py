"""One verb, by one process or by all of a cluster: each puts configs, data, model and runtime together, and owns no
logic of theirs.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from commands.check_dataset import check_dataset
from commands.console import mute_other_processes
from commands.evaluate import evaluate
from commands.export import export
from commands.interactive import interact
from commands.options import Options
from commands.plan import plan, with_chosen_layout
from commands.predict import predict
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

# Many processes do these together.
VERBS_OF_ALL: dict[str, Callable[[RunConfig, Options, ProcessGroup], int]] = {
    "train": train,
    "eval": evaluate,
    "predict": predict,
    "interactive": interact,
    "serve": serve,
}
VERBS_THAT_WRITE = ("predict", "interactive", "serve")
# Of these, what one process alone can do, for it goes on as somebody at the terminal or on the network says.
VERBS_WITH_OTHERS = ("interactive", "serve")
# The first of many processes does these alone.
VERBS_OF_ONE: dict[str, Callable[[RunConfig, Options], int]] = {
    "check_dataset": check_dataset,
    "export": export,
    "plan": plan,
}


def confirm_delete(config: RunConfig, confirm: Callable[[str], bool]) -> bool:
    """Returns whether `--new` may proceed: `model_path` holds no run, or `confirm` agrees to its deletion.

    Raises:
        UserError: `model_path` holds something else.
    """
    path = config.model_path
    run_directory.check_path(path)
    if run_directory.is_empty(path):
        return True
    if not run_directory.is_run(path):
        raise UserError(
            f"--new: model_path = {path}: holds no run, so it is not deleted; delete it yourself, or give another "
            "model_path"
        )
    return confirm(f"Delete the run in {path}?")


def _run_together(verb: str, config: RunConfig, options: Options, cluster: Cluster | None) -> int:
    with connect(cluster) as group, mute_other_processes(group):
        group.check_same("the config", resolved_json(config))
        group.check_same("the command line", repr(dataclasses.replace(options, hosts=None, host_index=None)))
        if options.choice is not None:
            config = with_chosen_layout(config, options, options.choice)
        return VERBS_OF_ALL[verb](config, options, group)


def _run_alone(verb: str, config: RunConfig, options: Options) -> int:
    if options.choice is not None:
        config = with_chosen_layout(config, options, options.choice)
        if not options.choice.is_applied:
            return 0
    return VERBS_OF_ONE[verb](config, options)


def _check_cluster(verb: str, options: Options) -> None:
    """Refuses what a process of many cannot be told."""
    if verb in VERBS_WITH_OTHERS:
        raise DeviceError(
            f"--{verb}: is for one process, which may have many devices; leave out --hosts, TF_CONFIG and Slurm"
        )
    if options.gpu_ids is not None or options.n_cpu_devices is not None or options.tpu is not None:
        raise DeviceError(
            "--hosts, TF_CONFIG or Slurm: a process of many has one device, the GPU of its rank on its machine or "
            "the CPU; leave out --gpu_ids, --cpu_devices and --tpu"
        )


def run(verb: str, config: RunConfig, options: Options) -> int:
    """Runs one verb; returns the exit status.

    Raises:
        UserError: something that the user gave cannot be used.
    """
    run_directory.check_path(config.model_path)
    if options.is_new and options.init_from is not None:
        run_directory.check_outside(config.model_path, options.init_from)
    cluster = find_cluster(options.hosts, options.host_index)
    if cluster is not None:
        _check_cluster(verb, options)
    only_shows = options.choice is not None and not options.choice.is_applied
    try:
        if verb in VERBS_OF_ALL and not only_shows:
            return _run_together(verb, config, options, cluster)
        return _run_alone(verb, config, options) if cluster is None or cluster.index == 0 else 0
    except tf.errors.ResourceExhaustedError as error:
        raise DeviceError(
            f"{config.name}: out of memory: the {verb} step does not fit; {_remedy(verb)}, or split the model over "
            "more devices"
        ) from error


def _remedy(verb: str) -> str:
    """What takes less memory."""
    if verb in VERBS_THAT_WRITE:
        return "give fewer --rows, set cache_dtype to bfloat16"
    return "lower the batch size, set tokens_per_mb_per_replica or recompute_grad"
