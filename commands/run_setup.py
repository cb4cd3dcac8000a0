"""Sets up a run: its devices, its tokenizer, its datasets and its weights."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence

from commands.backend import Backend, backend_of
from commands.console import say
from commands.options import Options
from commands.run_data import RunData, trained_tokenizer
from configs.errors import CheckpointError, ConfigError, looked_from
from configs.layout import find_layout_issues, format_pairs
from configs.schema import RunConfig
from configs.weights import weights_at
from data.tokenization.tokenizer import Tokenizer
from runtime.checkpoint import reader
from runtime.checkpoint.adapters import Base, read_base
from runtime.checkpoint.init_from import (
    check_initial_weights,
    find_adapters,
    find_base,
    find_weights,
    load_initial_weights,
    set_adapters,
    set_weights,
)
from runtime.checkpoint.position import TrainingPosition
from runtime.checkpoint.reader import DamagedError
from runtime.checkpoint.weight_files import is_huggingface_folder
from runtime.checkpoint.weight_sources import check_functions, find_checkpoint
from runtime.cluster.process_group import ProcessGroup
from runtime.mesh.devices import choose_devices
from runtime.mesh.multi_process import place_process
from runtime.mesh.placement import Placement, place
from runtime.mesh.tpu_discovery import find_tpu
from runtime.mesh.tpu_replicate import place_on_tpu
from runtime.planning.auto_layout import dimension_sizes
from runtime.run import directory as run_directory


@dataclasses.dataclass(frozen=True)
class Run:
    """What the parts of a command share.

    Attributes:
        config: the resolved config.
        options: the command-line flags that are not config keys.
        group: the processes of the run.
        placement: the mesh of devices and the variables on it.
        tokenizer: None if the datasets name none.
    """

    config: RunConfig
    options: Options
    group: ProcessGroup
    placement: Placement
    tokenizer: Tokenizer | None

    @property
    def tokenizer_json(self) -> str | None:
        """The tokenizer as its file's text."""
        return self.tokenizer and self.tokenizer.to_json()

    @property
    def backend(self) -> Backend:
        """What depends on the kind of devices."""
        return backend_of(self.placement)


def set_up_with_data(
    config: RunConfig, options: Options, group: ProcessGroup, placement: Placement
) -> tuple[Run, RunData]:
    """Sets up a run that reads its datasets; prepares them where needed."""
    data = group.first_process_first(lambda: RunData.of(config))
    tokenizer = data.tokenizer()
    return Run(config, options, group, placement, tokenizer), data.with_eos_of(tokenizer)


def set_up_for_generation(config: RunConfig, options: Options, group: ProcessGroup) -> Run:
    """Sets up a run that generates text, which needs no data: a trained run keeps its tokenizer.

    Raises:
        ConfigError: there is no tokenizer.
        CheckpointError: there are no weights, or they cannot be read.
    """
    if config.data.datasets:
        check_trained(config, options)
    placement = place_run(config, options, group)
    tokenizer = group.first_process_first(lambda: trained_tokenizer(config, options.init_from))
    group.check_same("the tokenizer", (tokenizer and tokenizer.to_json()) or "")
    if tokenizer is None:
        raise ConfigError(
            "datasets = []: prediction and evaluation tasks need a tokenizer; name a dataset with a tokenizer_path in "
            "the model config, or put tokenizer.json beside the weights"
        )
    return Run(config, options, group, placement, tokenizer)


def place_run(config: RunConfig, options: Options, group: ProcessGroup) -> Placement:
    """Lays the config's mesh over the devices given on the command line, or over all there are."""
    if options.tpu is not None:
        placement = place_on_tpu(config.mesh, find_tpu(options.tpu))
    elif group.device is None:
        placement = place(config.mesh, choose_devices(options.gpu_ids, options.cpu_devices))
    else:
        placement = place_process(config.mesh, group.index, group.size, group.device)
    if config.mesh.elastic_mesh:
        _check_resized(config, placement)
    say(f"mesh: {placement.describe()}")
    return placement


def _check_resized(config: RunConfig, placement: Placement) -> None:
    """Says that the mesh is another than the config's, if it is, and checks that it can split the model.

    Raises:
        ConfigError: it cannot.
    """
    given, found = config.mesh.mesh_shape, tuple((dim.name, dim.size) for dim in placement.shape.dims)
    if given is None or found in (given, ()):
        return
    change = f"mesh_shape = {format_pairs(given)}: is {format_pairs(found)} on what is there (elastic_mesh)"
    for issue in find_layout_issues(found, config.mesh.layout, dimension_sizes(config)):
        raise ConfigError(f"{change}: layout: {issue.problem}; {issue.remedy}")
    say(change)


def check_trained(config: RunConfig, options: Options) -> None:
    """Checks that the weights of `load_trained` can be read, before any text is tokenized for them.

    Raises:
        CheckpointError: there are none, or they cannot be read.
    """
    if options.init_from is not None:
        check_given(config, options)
    else:
        check_base(_check_trained(config), init_from=None)


def check_given(config: RunConfig, options: Options) -> None:
    """Checks the weights of `--init_from`, and the adapters of `--adapter`.

    Raises:
        ConfigError: a file beside them is not understood.
        CheckpointError: there are none, they cannot be read, or they do not fit.
    """
    check_initial_weights(options.init_from, config.model)
    if options.adapter is not None:
        find_adapters(options.adapter, config.model, find_weights(options.init_from))


def resumes(config: RunConfig, options: Options) -> bool:
    """Returns whether training resumes from a checkpoint in `model_path`."""
    return not options.new and reader.latest_checkpoint(config.model_path) is not None


def newest_checkpoint(config: RunConfig) -> str:
    """Returns the path of the newest checkpoint in `model_path`.

    Raises:
        CheckpointError: there is none.
    """
    return _checkpoints(config)[0]


def _check_trained(config: RunConfig) -> str:
    """Checks that there is a checkpoint in `model_path`, and returns the path of the newest."""
    newest = reader.latest_checkpoint(config.model_path)
    if newest is None:
        raise CheckpointError(
            f"model_path = {config.model_path}: holds no checkpoint; train first, or give the model_path of "
            f"a trained model{looked_from(config.model_path)}"
        )
    return newest


def _checkpoints(config: RunConfig) -> list[str]:
    """Returns the checkpoints in `model_path`, the newest first, and says what is damaged there."""
    newest, state = _check_trained(config), reader.read_state(config.model_path)
    problems = [f"{state.problem}; using the newest checkpoint there, {newest}"] if state.problem else []
    for line in [*problems, *run_directory.damaged_settings(config.model_path)]:
        say(line)
    return reader.checkpoints_to_try(config.model_path)


def load_trained(run: Run) -> TrainingPosition:
    """Loads the weights of `--init_from`, or else of the newest checkpoint, with `--ema` their averages."""
    if run.options.init_from is not None:
        check_no_averages_wanted(run.options)
        return load_init_from(run)
    run_directory.check_settings(run.config, run.tokenizer_json)
    return restore_latest(run)


def check_no_averages_wanted(options: Options) -> None:
    """Checks that `--ema` does not ask for averages of weights that belong to no run.

    Raises:
        ConfigError: it does.
    """
    if options.ema:
        raise ConfigError(
            f"--ema: {options.init_from} is no run, whose checkpoints have averages; leave it out, or give the config "
            "or the folder of a run as --model, without --init_from"
        )


def checked_weights(path: str, config: RunConfig, notes: Sequence[str]) -> str:
    """Says what the model computes otherwise than the program that wrote its weights, unless `notes` say so already.

    Returns:
        The path, or that of the checkpoint that a folder stands for.

    Raises:
        CheckpointError: the weights were trained with functions that are others now.
    """
    checkpoint = None if is_huggingface_folder(weights_at(path)) else find_checkpoint(weights_at(path))
    for line in [] if checkpoint is None else check_functions(checkpoint, config.model):
        if not any(note.endswith(line.removeprefix(checkpoint)) for note in notes):
            say(line)
    return checkpoint or path


def load_init_from(run: Run, head_id: int | None = None) -> TrainingPosition:
    """Loads the weights of `--init_from`; training starts from step 0. `head_id`: see `load_initial_weights`."""
    given, store = run.options.init_from, run.placement.store
    path = checked_weights(given, run.config, run.options.notes)
    load_initial_weights(path, store, head_id)
    say(f"loaded weights from {given}")
    if run.config.model.lora_rank:
        _begin_adapters(run, path)
    return TrainingPosition(0, 0)


def _begin_adapters(run: Run, base: str) -> None:
    """Notes what the adapters belong to, and loads those of `--adapter`."""
    weights, model, given, store = find_weights(base), run.config.model, run.options.adapter, run.placement.store
    store.base = Base.of(base, weights, model).to_json()
    if given is not None:
        set_adapters(find_adapters(given, model, weights), store, given)
        say(f"loaded adapters from {given}")


def check_base(checkpoint: str, init_from: str | None) -> None:
    """Checks that the base of a checkpoint of adapters can be read, before any text is tokenized for it.

    Args:
        checkpoint: its path; nothing is checked if it holds whole weights.
        init_from: where the base is now; None: where it was.

    Raises:
        CheckpointError: it cannot be read, or has changed.
    """
    base = _base_of(checkpoint, init_from)
    if base is not None:
        find_base(base, checkpoint)


def _base_of(checkpoint: str, init_from: str | None) -> Base | None:
    base = read_base(checkpoint)
    return base if base is None or init_from is None else base.moved_to(init_from)


def _load_base(run: Run, checkpoint: str) -> None:
    """Loads the weights that the adapters of a checkpoint belong to, if it holds adapters alone."""
    base = _base_of(checkpoint, run.options.init_from)
    if base is not None:
        set_weights(find_base(base, checkpoint), run.placement.store, base.path)
        run.placement.store.base = base.to_json()
        say(f"loaded the base of the adapters from {base.path}")


def restore_latest(run: Run) -> TrainingPosition:
    """Restores the newest checkpoint whose files are whole.

    Raises:
        CheckpointError: none is, or it does not fit the config.
    """
    paths = _checkpoints(run.config)
    for path in paths:
        position, damage = _try_to_restore(run, path)
        if position is not None:
            checked_weights(path, run.config, run.options.notes)
            _load_base(run, path)
            say(f"restored {path}")
            return position
        say(damage.problem if path == paths[-1] else f"{damage.problem}; trying the checkpoint before it")
    raise CheckpointError(
        f"model_path = {run.config.model_path}: holds no checkpoint that can be read; restore the files from a copy, "
        "or give another model_path"
    )


def _try_to_restore(run: Run, path: str) -> tuple[TrainingPosition | None, DamagedError]:
    """Returns the position; None in every process if the files are damaged for one of them."""
    position, damage = None, DamagedError(f"{path}: is damaged for another process")
    try:
        suffix = reader.EMA_SUFFIX if run.options.ema else ""
        position = reader.restore(path, run.placement.store, run.config.training.train_batch_size, suffix)
    except DamagedError as error:
        damage = error
        if not run.group.is_first:  # which cannot know what it is
            print(error.problem, file=sys.stderr, flush=True)
    return None if run.group.all_reduce_max(int(position is None)) else position, damage
