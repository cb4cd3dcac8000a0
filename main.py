"""The command line: trains, evaluates, serves or exports a model, or generates text with it (`main.py --help`)."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

from commands.local_processes import run_local_processes
from commands.options import (
    LayoutSearch,
    Options,
    RerankingSettings,
    idle_by_other_keys,
    idle_in_command,
    keys_by_name,
)
from commands.unknown_flags import describe_unknown
from configs.command_line import CommandLine, find_rereadings, integer, number, unescape
from configs.errors import ConfigError, DeviceError, UserError
from configs.kinds import clean_path_flags
from configs.load import find_model_config, load_config
from configs.schema import EVALUATION_KEYS, FLAGS, GENERATION_FLAGS, PREDICTION_KEYS, VALIDATION, RunConfig
from configs.weights import (
    CONFIG_FILE,
    config_beside,
    config_notes,
    is_huggingface_folder,
    names_weights,
    weights_at,
)
from runtime.planning.machines import DEVICE_KINDS
from serving.settings import ServingSettings, check_packages, key_from_environment
from storage.remote_configs import on_disk
from storage.streams import run_program

LOOPBACK = "127.0.0.1"
EXPORT_FORMATS = ("saved_model", "hf", "weights", "peft")
COMMANDS = (
    *("train", "eval", "predict", "interactive", "chat", "serve"),
    *("check_dataset", "fetch_tasks", "plan", "export"),
)
SERVER_FLAGS = ("cache_dtype",)  # settings of generation that hold for a whole server
PATH_FLAGS = ("model", "init_from", "adapter", "mmi_model", "prompt", "output", "export_dir", "chat_template")
RERANKING_FLAGS = ("mmi_model", "mmi_normalize", "forward_weight", "rank_model", "candidates", "show_candidates")
DEFAULT_CANDIDATES = 16  # DialoGPT's
MAX_CPU_DEVICES = 1 << 12
MAX_PROCESSES = 256  # of one machine
MAX_SACRED_ID_BYTES = 100  # leaves room for the rest of a file name

PROGRAM = "python3 main.py --model quickstart"
USAGE = "main.py --model NAME [COMMAND] [FLAG ...]"
DESCRIPTION = """Trains a GPT-like model on a mesh of devices, evaluates it, or generates text
with it. docs/configuration.md lists the keys of a config."""


class CommandAction(argparse.Action):
    """Chooses what the program does; two different commands are an error."""

    def __call__(
        self, parser: argparse.ArgumentParser, namespace: argparse.Namespace, values: Any, option_string: str = ""
    ) -> None:
        """Sets `command`, which is that of `const` if the flag has one, and the value of the flag if it takes one."""
        command = self.const or self.dest
        if namespace.command not in ("train", command):
            raise argparse.ArgumentError(self, f"not allowed with argument --{namespace.command}")
        namespace.command = command
        if self.nargs != 0:
            setattr(namespace, self.dest, values)


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        "main.py", USAGE, DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter, add_help=False
    )
    parser.set_defaults(command="train")
    _add_general_flags(parser.add_argument_group("general"))
    _add_train_flags(parser.add_argument_group("train (no command)", f"{PROGRAM} --steps_per_checkpoint 300"))
    _add_eval_flags(parser.add_argument_group("evaluate", f"{PROGRAM} --eval --eval_tasks lambada_openai,piqa"))
    _add_predict_flags(parser.add_argument_group("predict", f"{PROGRAM} --predict --prompt prompt.txt --top_p 0.9"))
    interactive = parser.add_argument_group("interactive", f"{PROGRAM} --interactive --temperature 0.7")
    _add_command(interactive, "interactive", "Continues prompts that are typed at the terminal.")
    _add_chat_flags(parser.add_argument_group("chat", f"{PROGRAM} --chat --top_k 10"))
    _add_serve_flags(parser.add_argument_group("serve", f"{PROGRAM} --serve 8000 --rows 16"))
    check = parser.add_argument_group("check dataset", f"{PROGRAM} --check_dataset")
    _add_command(check, "check_dataset", "Reads every record of the datasets, and shows what they hold.")
    _add_fetch_flags(parser.add_argument_group("fetch tasks", f"{PROGRAM} --fetch_tasks lambada_openai,piqa"))
    _add_plan_flags(parser.add_argument_group("plan", f"{PROGRAM} --plan --set mesh_shape=x:4,y:2"))
    _add_export_flags(parser.add_argument_group("export", f"{PROGRAM} --export --export_format hf"))
    _add_generation_flags(
        parser.add_argument_group("text generation (predict, interactive, chat, samples while training)")
    )
    best = parser.add_argument_group("reranking (predict, chat, serve): gives the best of several responses")
    _add_reranking_flags(best)
    _add_device_flags(parser.add_argument_group("devices"))
    return parser


def _add_command(group: argparse._ArgumentGroup, name: str, meaning: str) -> None:
    group.add_argument(f"--{name}", action=CommandAction, nargs=0, default=argparse.SUPPRESS, help=meaning)


def _add_general_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("-h", "--help", action="help", help="Shows this text.")
    add("--model", metavar="NAME", help="A config of configs/, a .json file, or the folder of a run or of weights.")
    add("--set", action="append", default=[], metavar="KEY=VALUE", help="Overrides a config key; may be repeated.")
    add(
        "--init_from",
        metavar="PATH",
        help="Initial weights: a checkpoint of this program, of GPT-Neo or OpenAI's GPT-2, a Hugging Face folder, or a "
        ".pkl, .pth or .pt file of PyTorch.",
    )
    add(
        "--adapter",
        metavar="PATH",
        help="Adapters for the weights of --init_from: a folder of PEFT, or a run of this program with lora_rank.",
    )
    add(
        "--ema",
        action="store_true",
        help="Uses the averages of the weights, which ema_decay keeps, to evaluate, generate, serve or export.",
    )
    add("--sacred_id", default="nosacred", metavar="ID", help="Part of the names of output files.")


def _add_train_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--steps_per_checkpoint",
        type=integer,
        default=5000,
        metavar="N",
        help="Steps between checkpoints (default: 5000).",
    )
    add(
        "--profile",
        type=integer,
        metavar="STEPS",
        help="Traces this many steps for TensorBoard, and prints the operations that take the most time.",
    )
    add("--new", action="store_true", help="Deletes the run at model_path first, after asking.")
    add("--yes", action="store_true", help="Answers yes when --new asks.")


def _add_eval_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    _add_command(group, "eval", "Measures the newest checkpoint on held-out data, and by tasks.")
    metadata = EVALUATION_KEYS["eval_tasks"].metadata
    add("--eval_tasks", metavar="A,B", help=f"{metadata['doc']} Without --eval: while training.")
    add("--log_samples", action="store_true", help="Writes what each item of a task got to a file in model_path.")


def _add_predict_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    _add_command(group, "predict", "Continues prompts.")
    add(
        "--prompt",
        metavar="FILE",
        help="A text file, or FILE.jsonl with a prompt and its settings on each line; -: standard input.",
    )
    add("--prompt_text", metavar="TEXT", help="The prompt itself; \\n is a line break, \\t a tab, \\\\ a backslash.")
    add("--output", metavar="FILE", help="Writes the answers as JSON lines; -: to standard output, and nothing else.")


def _add_chat_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    _add_command(group, "chat", "Talks with the model at the terminal.")
    add(
        "--self_play",
        action=CommandAction,
        const="chat",
        type=integer,
        metavar="N",
        help="Lets the model talk to itself for N turns, after a first line: --prompt_text or --prompt.",
    )
    add("--system", metavar="TEXT", help="What the system line says, where the chat template has one.")
    add(
        "--chat_template",
        metavar="NAME",
        help="How turns become tokens, with --chat or --serve: dialogpt (joined by the end of text), chatml, tokenizer "
        "(that of its folder) or a Jinja file (default: the dataset's, else the tokenizer's, else dialogpt).",
    )


def _add_serve_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--serve",
        action=CommandAction,
        type=integer,
        metavar="PORT",
        help="Answers requests over HTTP, in OpenAI's format; port 0: any free port.",
    )
    add("--host", help=f"Address to listen on (default: {LOOPBACK}).")
    add(
        "--cors_origins",
        type=lambda text: tuple(text.split(",")),
        metavar="A,B",
        help="Origins such as http://localhost:3000 whose pages a browser lets use the server; *: all (default: none).",
    )


def _add_fetch_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--fetch_tasks",
        action=CommandAction,
        nargs="?",
        type=lambda text: tuple(name.strip() for name in text.split(",")),
        metavar="A,B",
        help="Downloads the files of evaluation tasks, or of all that are published, into eval_tasks_dir.",
    )


def _add_plan_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    _add_command(group, "plan", "Estimates the memory, operations and traffic of a training step.")
    layouts = group.add_mutually_exclusive_group()
    layouts.add_argument("--auto_layout", action="store_true", help="Chooses a layout for the config's mesh_shape.")
    layouts.add_argument("--auto_layout_and_mesh_shape", action="store_true", help="Chooses the mesh_shape too.")
    add(
        "--device_kind",
        choices=list(DEVICE_KINDS),
        help="Plans for devices of this kind: from 1 to 4,096 of them, and the layout that is fastest on them.",
    )
    add("--apply", action="store_true", help="Runs the command with the chosen layout instead of only showing it.")


def _add_export_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    _add_command(group, "export", "Writes the model for other programs, or its weights alone.")
    add(
        "--export_format",
        choices=EXPORT_FORMATS,
        default="saved_model",
        help="saved_model: TensorFlow's; hf: a folder for Hugging Face's transformers; weights: a run with one "
        "checkpoint, without optimiser state; peft: adapters alone, for its library PEFT (default: saved_model).",
    )
    add("--export_dir", default="export", metavar="DIR", help="A new or empty folder (default: export).")


def _add_generation_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--rows", type=integer, metavar="N", help="Samples generated at once; with --predict or --serve.")
    for flag, key in GENERATION_FLAGS.items():
        metadata = PREDICTION_KEYS[key].metadata
        metavar = metadata["flag"].partition(" ")[2]
        if not metavar:
            add(f"--{flag}", nargs="?", const="true", metavar="BOOL", help=metadata["doc"])
        else:
            n_values = "+" if isinstance(PREDICTION_KEYS[key].default, tuple) else None
            add(f"--{flag}", nargs=n_values, metavar=metavar, help=metadata["doc"])


def _add_reranking_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add(
        "--mmi_model",
        metavar="CONFIG",
        help="A model trained on reversed conversations, as --model: the response that tells best what it answers is "
        "given.",
    )
    add("--mmi_normalize", action="store_true", help="Divides each log-probability by its number of tokens.")
    add(
        "--forward_weight",
        type=number,
        metavar="W",
        help="Adds W times the log-probability of the response under --model (default: 0).",
    )
    add(
        "--rank_model",
        nargs="+",
        metavar="MODEL",
        help="A ranking model, as --model: the response with the highest score is given. Several of DialogRPT's: "
        "updown=PATH human_vs_rand=PATH ...",
    )
    add(
        "--candidates",
        type=integer,
        metavar="N",
        help=f"Responses that are drawn for each prompt, to choose from (default: {DEFAULT_CANDIDATES}).",
    )
    add("--show_candidates", action="store_true", help="Writes all candidates with their scores.")


def _add_device_flags(group: argparse._ArgumentGroup) -> None:
    add = group.add_argument
    add("--gpu_ids", nargs="+", metavar="DEVICE", help="Such as device:GPU:0, or 0; default: all GPUs, or the CPU.")
    add("--cpu_devices", type=integer, metavar="N", help="Makes N virtual CPU devices, to try out a mesh.")
    add("--tpu", metavar="NAME", help="A Cloud TPU, its address such as grpc://10.0.0.2:8470, colab, or local.")
    add(
        "--processes",
        type=integer,
        default=1,
        metavar="N",
        help="Runs the command in N processes of this machine, each with a GPU of its own, or on the CPU.",
    )
    add("--hosts", metavar="A:PORT,B:PORT", help="All processes of a run; each is started with the same command.")
    add("--host_index", type=integer, metavar="N", help="Index of this process in --hosts, from 0.")
    add(
        "--wait_seconds",
        type=integer,
        default=1800,
        metavar="N",
        help="How long to wait for the other processes to start (default: 1800).",
    )


def _chooses_layout(arguments: argparse.Namespace) -> bool:
    return arguments.auto_layout or arguments.auto_layout_and_mesh_shape


def _reranks(arguments: argparse.Namespace) -> bool:
    return bool(arguments.mmi_model or arguments.rank_model)


@dataclasses.dataclass(frozen=True)
class Rule:
    """A combination of flags that is rejected.

    Attributes:
        applies: whether a command line holds it.
        message: the error message, with the flags as format fields.
        error: the class of the error.
    """

    applies: Callable[[argparse.Namespace], bool]
    message: str
    error: type[UserError] = ConfigError


def _not_with(flag: str, commands: Collection[str], message: str, error: type[UserError] = ConfigError) -> Rule:
    def applies(arguments: argparse.Namespace) -> bool:
        return getattr(arguments, flag) not in (None, False) and arguments.command in commands

    return Rule(applies, message, error)


def _only_with(flag: str, command: str, message: str) -> Rule:
    return _not_with(flag, [other for other in COMMANDS if other != command], message)


def _gets_prompts_later(arguments: argparse.Namespace) -> bool:
    return arguments.command in ("interactive", "chat", "serve") and arguments.self_play is None


RULES = (
    Rule(
        lambda a: a.tpu is not None and bool(a.gpu_ids or a.cpu_devices is not None or a.hosts),
        "--tpu: a single process uses the whole TPU; leave out --gpu_ids, --cpu_devices and --hosts",
        DeviceError,
    ),
    Rule(
        lambda a: a.apply and not _chooses_layout(a),
        "--apply: has nothing to apply; give --auto_layout or --auto_layout_and_mesh_shape too",
    ),
    Rule(
        lambda a: a.device_kind is not None and a.command != "plan" and not _chooses_layout(a),
        "--device_kind {device_kind}: plans for such devices; give --plan, --auto_layout or "
        "--auto_layout_and_mesh_shape too",
    ),
    Rule(
        lambda a: a.steps_per_checkpoint < 1,
        "--steps_per_checkpoint {steps_per_checkpoint}: must be at least 1; give a number of steps",
    ),
    Rule(
        lambda a: a.profile is not None and a.profile < 1,
        "--profile {profile}: must be at least 1; give a number of steps",
    ),
    Rule(
        lambda a: a.profile is not None and a.tpu is not None,
        "--profile: traces this machine, not a TPU; leave it out, or trace the TPU from TensorBoard",
        DeviceError,
    ),
    Rule(
        lambda a: a.wait_seconds < 0,
        "--wait_seconds {wait_seconds}: is negative; give 0 or a number of seconds",
    ),
    Rule(
        lambda a: not 1 <= a.processes <= MAX_PROCESSES,
        f"--processes {{processes}}: is out of range; give a number from 1 to {MAX_PROCESSES}",
        DeviceError,
    ),
    Rule(
        lambda a: a.processes > 1 and a.command not in ("train", "eval", "predict"),
        "--processes {processes}: --{command} runs in a single process; leave out --processes",
        DeviceError,
    ),
    Rule(
        lambda a: a.processes > 1 and bool(a.hosts or a.gpu_ids or a.cpu_devices is not None or a.tpu is not None),
        "--processes {processes}: each process finds the others and its device itself; leave out --hosts, --gpu_ids, "
        "--cpu_devices and --tpu",
        DeviceError,
    ),
    Rule(
        lambda a: a.processes > 1 and a.new and not a.yes,
        "--new: would ask in each of the {processes} processes; give --yes too",
    ),
    Rule(
        lambda a: (a.cpu_devices or 0) > MAX_CPU_DEVICES,
        f"--cpu_devices {{cpu_devices}}: is out of range; give a number from 1 to {MAX_CPU_DEVICES}",
        DeviceError,
    ),
    Rule(lambda a: "/" in a.sacred_id, "--sacred_id {sacred_id}: contains a slash; give a part of a file name"),
    Rule(
        lambda a: len(a.sacred_id.encode(errors="replace")) > MAX_SACRED_ID_BYTES,
        "--sacred_id {sacred_id}: is too long for a part of a file name; give at most "
        f"{MAX_SACRED_ID_BYTES} characters",
    ),
    Rule(
        lambda a: bool(a.gpu_ids) and a.cpu_devices is not None,
        "--gpu_ids and --cpu_devices: cannot be combined; give one of them",
        DeviceError,
    ),
    _only_with("new", "train", "--new: starts training from the beginning; leave out --{command}"),
    _not_with("init_from", ["check_dataset"], "--init_from: --check_dataset reads no weights; leave out one of them"),
    _not_with(
        "adapter",
        ["check_dataset", "fetch_tasks", "plan"],
        "--adapter: --{command} reads no weights; leave out one of them",
    ),
    _not_with(
        "ema",
        ["train", "check_dataset", "fetch_tasks", "plan"],
        "--ema: works with --eval, --predict, --interactive, --chat, --serve and --export only; leave it out, or give "
        "one of them",
    ),
    _not_with(
        "tpu", ["serve"], "--serve: a TPU generates whole texts only and cannot serve; leave out --tpu", DeviceError
    ),
    *(
        _not_with(flag, ["serve"], f"--{flag}: each request has its own settings; leave it out with --serve")
        for flag in GENERATION_FLAGS
        if flag not in SERVER_FLAGS
    ),
    Rule(
        lambda a: bool(a.prompt) and _gets_prompts_later(a),
        "--prompt {prompt}: --{command} gets its prompts later; leave --prompt out",
    ),
    Rule(
        lambda a: a.prompt_text is not None and _gets_prompts_later(a),
        "--prompt_text: --{command} gets its prompts later; leave --prompt_text out",
    ),
    Rule(
        lambda a: a.prompt_text is not None and bool(a.prompt),
        "--prompt_text and --prompt: cannot be combined; give one of them",
    ),
    Rule(
        lambda a: a.prompt == "-" and a.command != "predict",
        "--prompt -: only --predict reads standard input; give a file, or --predict",
    ),
    *(
        _not_with(
            flag,
            [command for command in COMMANDS if command not in ("predict", "chat", "serve")],
            f"--{flag}: works with --predict, --chat and --serve only; leave it out, or give one of them",
        )
        for flag in RERANKING_FLAGS
    ),
    _not_with(
        "show_candidates", ["serve"], "--show_candidates: each request asks for them itself; leave it out with --serve"
    ),
    Rule(
        lambda a: not _reranks(a) and any(getattr(a, flag) not in (None, False) for flag in RERANKING_FLAGS),
        "--candidates, --show_candidates, --mmi_normalize, --forward_weight: there is nothing to rank by; give "
        "--mmi_model or --rank_model, or leave them out",
    ),
    Rule(
        lambda a: bool(a.rank_model) and (a.mmi_model is not None or a.mmi_normalize or a.forward_weight is not None),
        "--rank_model: ranks alone; leave out --mmi_model, --mmi_normalize and --forward_weight",
    ),
    Rule(
        lambda a: a.candidates is not None and a.candidates < 1,
        "--candidates {candidates}: must be at least 1; give a number of responses",
    ),
    _only_with("output", "predict", "--output {output}: works with --predict only; leave it out, or give --predict"),
    Rule(
        lambda a: a.self_play is not None and not a.prompt and not a.prompt_text,
        "--self_play {self_play}: needs a first line; give --prompt_text or --prompt",
    ),
    Rule(
        lambda a: a.self_play is not None and a.self_play < 1,
        "--self_play {self_play}: must be at least 1; give a number of turns",
    ),
    _only_with("system", "chat", "--system: works with --chat only; leave it out, or give --chat"),
    Rule(
        lambda a: a.chat_template is not None and a.command not in ("chat", "serve"),
        "--chat_template {chat_template}: works with --chat and --serve only; leave it out, or give one of them",
    ),
    _only_with("host", "serve", "--host {host}: works with --serve only; leave it out, or give --serve PORT"),
    _only_with("cors_origins", "serve", "--cors_origins: works with --serve only; leave it out, or give --serve PORT"),
    Rule(
        lambda a: (
            a.rows is not None
            and (
                a.rows < 1
                or a.command == "chat"
                or not (a.command in ("predict", "serve") or a.prompt or a.prompt_text)
            )
        ),
        "--rows {rows}: must be at least 1, and needs --predict, --serve or --prompt; give such a number, or leave it "
        "out",
    ),
)


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Parses the command line; `command` of the result is one of `COMMANDS`.

    Raises:
        UserError: flags cannot be used, or do not go together.
    """
    parsed = _parse_known(arguments)
    if parsed.model is None and parsed.init_from is None:
        raise ConfigError("--model: is missing; give a config, or the folder of a run or of weights")
    for rule in RULES:
        if rule.applies(parsed):
            raise rule.error(rule.message.format_map(vars(parsed)))
    vars(parsed).update(clean_path_flags(vars(parsed), PATH_FLAGS))
    _complete_model(parsed)
    if parsed.adapter is not None and parsed.init_from is None:
        raise ConfigError(f"--adapter {parsed.adapter}: belongs to weights; give them as --init_from")
    return parsed


def _parse_known(arguments: Sequence[str] | None) -> argparse.Namespace:
    """Parses flags, and says of those that there are not what to give in place of them."""
    parser = _parser()
    parsed, unknown = parser.parse_known_args(arguments)
    if lines := list(describe_unknown(unknown)):
        raise ConfigError("\n".join(lines))
    if unknown:
        parser.error(f"unrecognized arguments: {' '.join(unknown)}")
    return parsed


def _complete_model(parsed: argparse.Namespace) -> None:
    """Lets --model and --init_from stand for each other where one folder is all that is needed."""
    typed = "--init_from" if parsed.model is None else "--model"
    if parsed.model is None:
        file = config_beside(weights_at(parsed.init_from))
        parsed.model = os.path.dirname(file) or os.curdir if os.path.exists(file) else parsed.init_from
    elif names_weights(parsed.model):
        raise ConfigError(
            f"--model {parsed.model}: names weights; give --init_from {parsed.model} instead, or the folder as --model"
        )
    elif os.path.basename(parsed.model) == CONFIG_FILE and is_huggingface_folder(os.path.dirname(parsed.model)):
        parsed.model = os.path.dirname(parsed.model) or os.curdir
    if typed == "--model" and is_huggingface_folder(parsed.model):
        parsed.init_from = parsed.init_from or parsed.model
    if is_huggingface_folder(parsed.model) and parsed.command == "train":
        raise ConfigError(
            f"{typed} {parsed.model}: holds weights, and no settings of training; give a model config, and --init_from "
            f"{parsed.model}"
        )


def config_overrides(arguments: argparse.Namespace) -> list[str]:
    """Returns the keys of the config that a command line sets, as `load_config` takes them."""
    given = {flag: getattr(arguments, flag) for flag in FLAGS}
    return [
        *arguments.set,
        *(f"--{flag}={_override(value)}" for flag, value in given.items() if value is not None),
    ]


def _override(value: str | list[str]) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _confirm(arguments: argparse.Namespace, question: str) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"--new: {question}: standard input is not a terminal; give --yes too")
    return input(f"{question} [y/n] ").strip().lower() in ("y", "yes")


def _serving(arguments: argparse.Namespace) -> ServingSettings | None:
    if arguments.serve is None:
        return None
    check_packages()
    return ServingSettings(
        arguments.serve, arguments.host or LOOPBACK, key_from_environment(), arguments.cors_origins or ()
    )


def _reranking(arguments: argparse.Namespace) -> RerankingSettings | None:
    if not _reranks(arguments):
        return None
    return RerankingSettings(
        DEFAULT_CANDIDATES if arguments.candidates is None else arguments.candidates,
        arguments.show_candidates,
        arguments.mmi_model,
        _rank_models(arguments.rank_model or ()),
        arguments.mmi_normalize,
        arguments.forward_weight or 0.0,
    )


def _rank_models(given: Sequence[str]) -> dict[str, str]:
    """Returns the paths of rankers by name, from PATH or NAME=PATH."""
    models: dict[str, str] = {}
    for text in given:
        name, path = text.split("=", 1) if "=" in text else ("ranker", text)
        if name in models or not path:
            raise ConfigError(f"--rank_model {text}: names a ranker twice, or no path; give each once, as NAME=PATH")
        models |= {name: clean_path_flags({"rank_model": path}, ("rank_model",))["rank_model"]}
    return models


def _find_notes(arguments: argparse.Namespace, config: RunConfig) -> Iterator[str]:
    """Yields a line for each setting that was read in a way of its own, or has no effect."""
    yield from find_rereadings(arguments.set)
    command = "plan" if _chooses_layout(arguments) and not arguments.apply else arguments.command
    defaults = vars(_parser().parse_args(["--model", ""]))
    typed = [name for name, value in vars(arguments).items() if value != defaults.get(name)]
    if line := idle_in_command(command, typed, config_overrides(arguments), config):
        yield line
    if arguments.log_samples and not any(entry.name != VALIDATION for entry in config.evaluation.eval_tasks):
        yield "--log_samples: no effect without an evaluation task; leave it out, or give --eval_tasks"
    if command == "train":
        yield from idle_by_other_keys(config)


def _run(words: Sequence[str]) -> int:
    arguments = parse_arguments(words)
    serving = _serving(arguments)
    with on_disk(arguments.model) as model:
        config = load_config(model, config_overrides(arguments), arguments.init_from, arguments.adapter)
        file = find_model_config(model)
        notes = config_notes(file, config.model) if file.is_file() else []  # a pipe is read once
    if arguments.processes > 1:
        return run_local_processes(arguments.processes, words)
    if arguments.host_index in (None, 0):
        for line in [*notes, *_find_notes(arguments, config)]:
            print(line, file=sys.stderr)
    given = {
        field.name: getattr(arguments, field.name) for field in dataclasses.fields(Options) if field.name in arguments
    }
    for flag in ("prompt_text", "system"):
        if given[flag] is not None:
            given[flag] = unescape(given[flag])
    search = LayoutSearch(arguments.auto_layout_and_mesh_shape, arguments.apply) if _chooses_layout(arguments) else None
    options = Options(
        **given,
        serving=serving,
        reranking=_reranking(arguments),
        layout_search=search,
        typed_keys=tuple(keys_by_name(config_overrides(arguments)).values()),
        notes=notes,
    )
    # TensorFlow takes seconds to load, so errors of the command line and the config come first.
    from commands.dispatch import confirm_delete, run

    if arguments.new and not confirm_delete(config, lambda question: _confirm(arguments, question)):
        return 0
    return run(arguments.command, config, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status: 2 for a mistake of the user, 3 if another process is lost."""
    return run_program(lambda: _run(sys.argv[1:] if arguments is None else arguments))


if __name__ == "__main__":
    sys.exit(main())
