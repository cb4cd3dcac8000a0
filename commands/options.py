"""The settings of the command line that are not keys of the config, and the settings that have no effect."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence

from configs.command_line import FLAG_MARK, SET
from configs.reader import shown
from configs.schema import ALIASES, DIALOGUE, FLAGS, GROUPS, RUN_FIELDS, RunConfig, keys_of
from serving.settings import ServingSettings

GENERATING = ("predict", "interactive", "chat", "serve")
COMPUTING = ("train", "eval", "plan", *GENERATING)
ANSWERS = "answers of evaluation tasks"
READING = ("train", "eval", "check_dataset")
ENDLESS_DECAYS = (None, "noam", "noamwd")  # of lr_decay
# The commands in which flags have an effect; all others have one in every command, or are refused.
FLAG_COMMANDS = {
    "steps_per_checkpoint": ("train",),
    "profile": ("train",),
    "log_samples": ("train", "eval"),
    "prompt": ("predict", "chat"),
    "prompt_text": ("predict", "chat"),
    "export_format": ("export",),
    "export_dir": ("export",),
    "gpu_ids": COMPUTING,
    "cpu_devices": COMPUTING,
    "tpu": COMPUTING,
}
# The commands in which the keys of a group have an effect, and the exceptions.
GROUP_COMMANDS = {"training": ("train", "plan"), "evaluation": ("train", "eval"), "mesh": COMPUTING}
GROUP_COMMANDS |= {"prediction": (*GENERATING, ANSWERS)}
KEY_COMMANDS = {
    **dict.fromkeys(("seed", "train_batch_size"), ("eval", *GROUP_COMMANDS["training"])),
    **dict.fromkeys(("input_fn", "shuffle_input_filenames", "on_bad_record", "max_bad_share"), ("train",)),
    "eval_tasks_dir": (*GROUP_COMMANDS["evaluation"], "fetch_tasks"),
    **dict.fromkeys(("predict_steps", "eval_every_steps"), ("train",)),
    "predict_batch_size": ("predict",),
    "remove_partial_sequences": ("predict",),
    **dict.fromkeys(("prompt_overflow", "prompt_special_tokens"), ("predict", "interactive")),
}


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
class RerankingSettings:
    """How responses are chosen among candidates.

    Attributes:
        candidates: the number of responses that are drawn for each prompt.
        shows_candidates: the output holds all of them with their scores.
        mmi_model: the config or the folder of the backward model; None: rankers are used.
        rank_models: the configs or folders of rankers, by name.
        mmi_normalize: log-probabilities are divided by the number of their tokens.
        forward_weight: of log P(response | source).
    """

    candidates: int
    shows_candidates: bool
    mmi_model: str | None
    rank_models: Mapping[str, str]
    mmi_normalize: bool
    forward_weight: float


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
        device_kind: the kind of devices to plan for; None: those of the run.
        steps_per_checkpoint: the steps between checkpoints.
        profile: how many steps to trace; None: none.
        sacred_id: a part of the names of output files.
        log_samples: write what each item of an evaluation task got.
        prompt: the file of prompts, "-" for standard input; None or empty: a default prompt.
        prompt_text: the prompt itself; None: not given.
        output: the file for the answers as lines of JSON, "-" for standard output; None: none.
        self_play: how many turns the model writes of a conversation with itself; None: it talks with a person.
        system: what the system line of a conversation says; None: there is none.
        chat_template: as `load_template` takes it; None: the run's own.
        rows: the number of samples generated at once; None: as many as are needed, up to a limit.
        new: delete the run at model_path before training, once everything else has been checked.
        ema: use the averages of the weights that `ema_decay` keeps.
        init_from: the initial weights, or those to use instead of the newest checkpoint; None: none.
        adapter: adapters for those weights; None: none.
        fetch_tasks: the names of the tasks whose files are fetched; None: all that are published.
        export_format: "saved_model", "hf", "weights" or "peft".
        export_dir: the folder of an export.
        serving: the settings of the command serve; None for other commands.
        reranking: how to choose among candidate responses; None: the first one drawn is the answer.
        layout_search: how to choose a layout; None: the config's layout is used.
        typed_keys: the keys of the config that the command line sets.
        notes: what has been said of the model config.
    """

    hosts: str | None
    host_index: int | None
    wait_seconds: int
    tpu: str | None
    gpu_ids: Sequence[str] | None
    cpu_devices: int | None
    device_kind: str | None
    steps_per_checkpoint: int
    profile: int | None
    sacred_id: str
    log_samples: bool
    prompt: str | None
    prompt_text: str | None
    output: str | None
    self_play: int | None
    system: str | None
    chat_template: str | None
    rows: int | None
    new: bool
    ema: bool
    init_from: str | None
    adapter: str | None
    fetch_tasks: Sequence[str] | None
    export_format: str
    export_dir: str
    serving: ServingSettings | None
    reranking: RerankingSettings | None
    layout_search: LayoutSearch | None
    typed_keys: Collection[str]
    notes: Sequence[str]


def idle_in_command(command: str, typed: Collection[str], overrides: Collection[str], config: RunConfig) -> str | None:
    """Returns a line that names what was typed and has no effect in a command; None: everything has one.

    Args:
        command: the command.
        typed: the flags that are no keys, without dashes.
        overrides: the keys that were set, as `load_config` takes them.
        config: the run.
    """
    keys, acting = keys_by_name(overrides), {command, *_generates_as(command, config)}
    idle = [f"--{flag}" for flag in typed if not _acts(FLAG_COMMANDS.get(flag), acting)]
    for name, key in keys.items():
        if not _acts(_commands_of(key), acting):
            idle.append(name if name.startswith(FLAG_MARK) else f"{SET} {name}")
    if not idle:
        return None
    where = "in training without predict_steps" if command == "train" else f"with --{command}"
    return f"{', '.join(idle)}: no effect {where}; leave out what has none"


def keys_by_name(overrides: Collection[str]) -> dict[str, str]:
    """Returns the keys that overrides set, as `load_config` takes them, by the names that were typed for them."""
    names = [override.partition("=")[0].strip() for override in overrides]
    return {name: FLAGS.get(name.removeprefix(FLAG_MARK), ALIASES.get(name, name)) for name in names}


def _generates_as(command: str, config: RunConfig) -> Iterator[str]:
    """Yields the commands whose texts a command generates too, in samples and in answers of tasks."""
    if command == "train" and config.prediction.predict_steps > 0 and config.model.writes_text:
        yield "predict"
    answers = any(entry.kind == DIALOGUE for entry in config.evaluation.eval_tasks)
    if command in GROUP_COMMANDS["evaluation"] and answers:
        yield ANSWERS


def _acts(commands: Collection[str] | None, acting: Collection[str]) -> bool:
    return commands is None or not set(commands).isdisjoint(acting)


def _commands_of(key: str) -> Collection[str] | None:
    if key in KEY_COMMANDS:
        return KEY_COMMANDS[key]
    (group,) = [name for name, group in GROUPS.items() if key in keys_of(group)] or [""]
    return GROUP_COMMANDS.get(group)


# What switches keys off: whether it does so, its description, and the keys.
Switch = tuple[Callable[[RunConfig], bool], str, Collection[str]]
SWITCHES: tuple[Switch, ...] = (
    (lambda run: run.training.opt_name == "adafactor", "opt_name is adafactor", ("beta2", "epsilon")),
    (
        lambda run: run.training.opt_name != "adafactor",
        "opt_name is not adafactor",
        ("ada_epsilon1", "ada_epsilon2", "ada_decay_rate"),
    ),
    (lambda run: run.training.opt_name == "lion", "opt_name is lion", ("epsilon",)),
    (lambda run: run.training.opt_name != "muon", "opt_name is not muon", ("muon_momentum",)),
    (lambda run: run.training.lr_decay != "wsd", "lr_decay is not wsd", ("lr_decay_steps",)),
    (lambda run: "local" not in run.model.attention_types, "no layer is local", ("local_attention_radius",)),
    (lambda run: not run.model.moe_layers, "moe_layers is empty", ("moe_params", "moe_activation")),
    (
        lambda run: not run.model.mlm_training,
        "mlm_training is false",
        tuple(key for key in RUN_FIELDS if key.startswith("mlm_") and key != "mlm_training"),
    ),
    (lambda run: run.model.mlm_training, "mlm_training is true: masked models generate no text", ("predict_steps",)),
    (lambda run: run.model.ranks, "objective is ranking", ("predict_steps", "z_loss")),
    (lambda run: run.model.entmax_loss, "entmax_loss is true", ("z_loss",)),
    (lambda run: run.data.on_bad_record == "stop", "on_bad_record is stop", ("max_bad_share",)),
    (
        lambda run: run.evaluation.eval_steps == 0 and not run.evaluation.eval_tasks,
        "eval_steps is 0 and eval_tasks is empty",
        ("eval_every_steps",),
    ),
    (lambda run: run.prediction.num_beams == 1, "num_beams is 1", ("length_penalty",)),
)


def idle_by_other_keys(config: RunConfig) -> Iterator[str]:
    """Yields a line for each key whose value is not its default and has no effect on training."""
    values = {key: getattr(getattr(config, name), key) for name, group in GROUPS.items() for key in keys_of(group)}
    for is_off, reason, keys in SWITCHES:
        given = [key for key in keys if values[key] != RUN_FIELDS[key].default]
        if given and is_off(config):
            yield f"{config.name}: {', '.join(given)}: no effect, since {reason}"
    training = config.training
    if training.lr_decay in ENDLESS_DECAYS and training.lr_decay_end != training.train_steps:
        yield f"{config.name}: lr_decay_end: no effect, since lr_decay is {shown(training.lr_decay)}"
    parted = [use.dataset.id for use in config.data.datasets if use.datatype != "chunks" or use.stitch is not None]
    if parted and config.data.input_fn == "sequential_input":
        yield (
            f"{config.name}: stitch and datatype of {', '.join(parted)}: no effect, since input_fn is "
            "sequential_input; generic_text uses them"
        )
