"""The command line: trains, evaluates, or lets a model write. `python3 main.py --help` lists what can be said."""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
from collections.abc import Sequence

from configs.errors import ConfigError, DeviceError, UserError
from configs.load import load_config
from configs.schema import PREDICTION_FLAGS
from serving.settings import ServingSettings, check_packages, key_from_environment
from storage.remote_configs import on_disk

LOOPBACK = "127.0.0.1"

EXPORT_FORMATS = ("saved_model", "hf")
# Flags that ask for something else than training.
VERBS = ("eval", "predict", "interactive", "serve", "check_dataset", "export", "plan")
# Flags that set a key of the config for one call: those with a value, and switches.
SAMPLING_FLAGS = {
    "temperature": ("T", "0: always the likeliest token"),
    "top_k": ("K", "sample among the K likeliest tokens"),
    "top_p": ("P", "sample among the likeliest tokens that hold this share"),
    "min_p": ("P", "sample among tokens with at least this share of the likeliest one's probability"),
    "typical_p": ("P", "sample among the most typical tokens that hold this share"),
    "repetition_penalty": ("X", "above 1: write again what stands there already less often"),
    "presence_penalty": ("X", "taken from the logit of a token that was written"),
    "frequency_penalty": ("X", "taken from the logit of a token as often as it was written"),
    "no_repeat_ngram": ("N", "no run of N tokens comes twice"),
    "num_beams": ("N", "search for the likeliest text with so many beams, in place of sampling"),
    "length_penalty": ("X", "of the search: above 0 favours longer texts"),
    "seed": ("N", "the same number gives the same text"),
    "n_samples": ("N", "samples of one prompt"),
    "max_new_tokens": ("N", "most new tokens of a sample"),
    "prompt_overflow": ("WHAT", "of a prompt that fills the context: left keeps its end, refuse ends the program"),
    "cache_dtype": ("TYPE", "in which keys and values are kept: float32 or bfloat16"),
}
# Of these, what a server asks too: how much memory it takes.
FLAGS_OF_A_SERVER = {"cache_dtype"}
LONGEST_SACRED_ID = 100  # a file's name holds some more
SAMPLING_SWITCHES = {
    "entmax_sampling": "sample from the entmax of the logits",
    "never_end": "never write the end of the text",
    "remove_partial_sequences": "leave the prompt out of the written text",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="main.py", description="Train a GPT-like model over a mesh of devices, evaluate it, or let it write."
    )
    parser.add_argument("--model", required=True, help="a name (configs/NAME.json) or the path of a .json file")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", help="override a key of the config; may be repeated"
    )
    verbs = parser.add_mutually_exclusive_group()
    verbs.add_argument("--eval", action="store_true", help="measure the loss on held-out data")
    verbs.add_argument("--predict", action="store_true", help="continue prompts")
    verbs.add_argument("--interactive", action="store_true", help="continue what is typed, line after line")
    verbs.add_argument("--serve", type=int, metavar="PORT", help="answer requests over HTTP; 0: at any free port")
    verbs.add_argument(
        "--check_dataset", action="store_true", help="read every record of the datasets and show what is in them"
    )
    verbs.add_argument("--plan", action="store_true", help="tell what a step costs in memory, operations and traffic")
    verbs.add_argument("--export", action="store_true", help="write the model for other programs")
    _add_running_flags(parser.add_argument_group("running"))
    _add_export_flags(parser.add_argument_group("with --export"))
    _add_prompt_flags(parser.add_argument_group("with --predict"))
    _add_sampling_flags(parser.add_argument_group("with --predict and --interactive"))
    return parser


def _add_running_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--gpu_ids", nargs="+", metavar="DEVICE", help="as device:GPU:0; left out: every GPU, or the CPU"
    )
    group.add_argument("--cpu_devices", type=int, metavar="N", help="make N virtual CPU devices, to try a mesh")
    group.add_argument(
        "--tpu", metavar="NAME", help="a TPU of Google Cloud, its address as grpc://10.0.0.2:8470, colab, or local"
    )
    group.add_argument(
        "--hosts", metavar="A:PORT,B:PORT", help="every process of a run of many; each is started by this same command"
    )
    group.add_argument("--host_index", type=int, metavar="N", help="which of --hosts this process is, from 0")
    choices = group.add_mutually_exclusive_group()
    choices.add_argument("--auto_layout", action="store_true", help="choose a layout for the config's mesh_shape")
    choices.add_argument(
        "--auto_layout_and_mesh_shape", action="store_true", help="choose mesh_shape and layout for as many devices"
    )
    group.add_argument("--apply", action="store_true", help="go on with what was chosen, not only show it")
    group.add_argument(
        "--steps_per_checkpoint", type=int, default=5000, help="steps between checkpoints (default 5000)"
    )
    group.add_argument(
        "--init_from",
        metavar="PATH",
        help="weights to begin with: a checkpoint of a run or of GPT-Neo, or a folder of Hugging Face's",
    )
    group.add_argument("--new", action="store_true", help="delete the run at model_path first, after asking")
    group.add_argument("--yes", action="store_true", help="answer yes to what --new asks")
    group.add_argument("--sacred_id", default="nosacred", help="stands in the names of output files")


def _add_export_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--export_format",
        choices=EXPORT_FORMATS,
        default="saved_model",
        help="saved_model: TensorFlow's; hf: a folder for Hugging Face's transformers (default saved_model)",
    )
    group.add_argument("--export_dir", default="export", metavar="DIR", help="a new or empty folder (default export)")


def _add_prompt_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument(
        "--prompt",
        default="",
        metavar="FILE",
        help="text file to continue, or FILE.jsonl with a prompt and its settings on each line; -: standard input",
    )
    group.add_argument(
        "--output", metavar="FILE", help="file for the answers as lines of JSON; -: standard output, for them alone"
    )
    group.add_argument("--rows", type=int, metavar="N", help="texts that are written at once; with --serve too")
    group.add_argument("--host", default=None, help=f"with --serve: where it listens (default {LOOPBACK})")


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    for flag, (metavar, meaning) in SAMPLING_FLAGS.items():
        group.add_argument(f"--{flag}", metavar=metavar, help=meaning)
    for switch, meaning in SAMPLING_SWITCHES.items():
        group.add_argument(f"--{switch}", action="store_true", help=meaning)
    group.add_argument("--stop", nargs="+", metavar="TEXT", help="end a sample before the first of these")


def _chooses(arguments: argparse.Namespace) -> bool:
    return arguments.auto_layout or arguments.auto_layout_and_mesh_shape


def _check(arguments: argparse.Namespace) -> None:
    if arguments.tpu is not None and (arguments.gpu_ids or arguments.cpu_devices is not None or arguments.hosts):
        raise DeviceError("--tpu: one process speaks to the whole TPU; leave out --gpu_ids, --cpu_devices and --hosts")
    if arguments.apply and not _chooses(arguments):
        raise ConfigError("--apply: has nothing to apply; give --auto_layout or --auto_layout_and_mesh_shape too")
    if arguments.steps_per_checkpoint < 1:
        raise ConfigError(
            f"--steps_per_checkpoint {arguments.steps_per_checkpoint}: must be at least 1; give a number of steps"
        )
    if "/" in arguments.sacred_id:
        raise ConfigError(f"--sacred_id {arguments.sacred_id}: holds a slash; give a part of a file name")
    if len(arguments.sacred_id.encode(errors="replace")) > LONGEST_SACRED_ID:
        raise ConfigError(
            f"--sacred_id {arguments.sacred_id}: is too long for a part of a file name; give at most "
            f"{LONGEST_SACRED_ID} characters"
        )
    if arguments.gpu_ids and arguments.cpu_devices is not None:
        raise DeviceError("--gpu_ids and --cpu_devices: exclude each other; give one of them")
    verb = verb_of(arguments)
    if arguments.new and verb != "train":
        raise ConfigError(f"--new: starts training from the beginning; leave out --{verb}")
    if arguments.init_from is not None and arguments.check_dataset:
        raise ConfigError("--init_from: --check_dataset reads no weights; leave out one of them")
    _check_writing(arguments, verb)


def _check_writing(arguments: argparse.Namespace, verb: str) -> None:
    """Checks the flags that only verbs that write text have."""
    if verb == "serve":
        _check_serving(arguments)
    if arguments.prompt and verb in ("interactive", "serve"):
        raise ConfigError(f"--prompt {arguments.prompt}: --{verb} is given its prompts later; leave --prompt out")
    if arguments.prompt == "-" and verb != "predict":
        raise ConfigError("--prompt -: only --predict reads standard input; give a file, or --predict")
    if arguments.output is not None and verb != "predict":
        raise ConfigError(f"--output {arguments.output}: acts with --predict only; leave it out, or give --predict")
    if arguments.host is not None and verb != "serve":
        raise ConfigError(f"--host {arguments.host}: acts with --serve only; leave it out, or give --serve PORT")
    if arguments.rows is not None and (arguments.rows < 1 or not (verb in ("predict", "serve") or arguments.prompt)):
        raise ConfigError(
            f"--rows {arguments.rows}: must be at least 1, and where texts are written: with --predict, --serve "
            "or --prompt; give such a number, or leave it out"
        )


def _check_serving(arguments: argparse.Namespace) -> None:
    """Refuses what a server cannot be told."""
    if arguments.tpu is not None:
        raise DeviceError("--serve: a TPU writes whole texts and cannot serve; leave out --tpu")
    for flag in ("stop", *SAMPLING_FLAGS, *SAMPLING_SWITCHES):
        if getattr(arguments, flag) and flag not in FLAGS_OF_A_SERVER:
            raise ConfigError(f"--{flag}: each request says how it is answered; leave it out with --serve")


def verb_of(arguments: argparse.Namespace) -> str:
    """What a command line asks for."""
    asked = (verb for verb in VERBS if getattr(arguments, verb) is not None and getattr(arguments, verb) is not False)
    return next(asked, "train")  # a port may be 0


def parse_arguments(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line.

    Raises:
        UserError: flags that this version lacks, or that do not go together.
    """
    parsed = _parser().parse_args(arguments)
    _check(parsed)
    return parsed


def config_overrides(arguments: argparse.Namespace) -> list[str]:
    """The keys of the config that a command line sets, as `load_config` takes them."""
    given = {PREDICTION_FLAGS.get(flag, flag): getattr(arguments, flag) for flag in SAMPLING_FLAGS}
    given |= {switch: "true" for switch in SAMPLING_SWITCHES if getattr(arguments, switch)}
    given["stop"] = arguments.stop and json.dumps(arguments.stop)
    return [*arguments.set, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def _confirm(arguments: argparse.Namespace, question: str) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"--new: {question}: nobody is there to answer; give --yes too")
    return input(f"{question} [y/n] ").strip().lower() in ("y", "yes")


def _serving(arguments: argparse.Namespace) -> ServingSettings | None:
    if arguments.serve is None:
        return None
    check_packages()
    return ServingSettings(arguments.serve, arguments.host or LOOPBACK, key_from_environment())


def _run(arguments: argparse.Namespace) -> int:
    serving = _serving(arguments)
    with on_disk(arguments.model) as model:
        config = load_config(model, config_overrides(arguments), arguments.init_from)
    # Here, since TensorFlow takes seconds to load: a mistyped key is answered at once.
    from commands.dispatch import confirm_delete, run
    from commands.options import Choice, Export, Options

    options = Options(
        hosts=arguments.hosts,
        host_index=arguments.host_index,
        tpu=arguments.tpu,
        gpu_ids=tuple(arguments.gpu_ids) if arguments.gpu_ids else None,
        n_cpu_devices=arguments.cpu_devices,
        steps_per_checkpoint=arguments.steps_per_checkpoint,
        sacred_id=arguments.sacred_id,
        prompt_path=arguments.prompt or None,
        output_path=arguments.output,
        n_rows=arguments.rows,
        is_new=arguments.new,
        init_from=arguments.init_from,
        export=Export(arguments.export_format, arguments.export_dir),
        serving=serving,
        choice=Choice(arguments.auto_layout_and_mesh_shape, arguments.apply) if _chooses(arguments) else None,
    )
    if arguments.new and not confirm_delete(config, lambda question: _confirm(arguments, question)):
        return 0
    return run(verb_of(arguments), config, options)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns its exit status: 2 for what the user can mend, 3 where another process is lost."""
    try:
        return _run(parse_arguments(arguments))
    except UserError as error:
        print(error, file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # or the interpreter complains when it ends
        return 128 + signal.SIGPIPE
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
