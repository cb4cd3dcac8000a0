"""The command line: trains, evaluates, or lets a model write. `python3 main.py --help` lists what can be said."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Sequence

from configs.errors import ConfigError, DeviceError, UserError
from configs.load import load_config
from runtime.bucket_configs import on_disk

# Flags that set a key of the config for one call.
SAMPLING_FLAGS = {
    "temperature": "temperature",
    "top_k": "top_k",
    "top_p": "top_p",
    "seed": "predict_seed",
    "n_samples": "predict_batch_size",
    "max_new_tokens": "predict_max_steps",
}
EXPORT_FORMATS = ("saved_model", "hf")
# Flags that ask for something else than training.
VERBS = ("eval", "predict", "check_dataset", "export", "plan")


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
    verbs.add_argument("--predict", action="store_true", help="continue a prompt")
    verbs.add_argument(
        "--check_dataset", action="store_true", help="read every record of the datasets and show what is in them"
    )
    verbs.add_argument("--plan", action="store_true", help="tell what a step costs in memory, operations and traffic")
    verbs.add_argument("--export", action="store_true", help="write the model for other programs")
    _add_running_flags(parser.add_argument_group("running"))
    _add_export_flags(parser.add_argument_group("with --export"))
    _add_sampling_flags(parser.add_argument_group("with --predict"))
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


def _add_sampling_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--prompt", default="", metavar="FILE", help="text file to continue")
    group.add_argument("--temperature", metavar="T", help="0: always the likeliest token")
    group.add_argument("--top_k", metavar="K", help="sample among the K likeliest tokens")
    group.add_argument("--top_p", metavar="P", help="sample among the likeliest tokens that hold this share")
    group.add_argument("--entmax_sampling", action="store_true", help="sample from the entmax of the logits")
    group.add_argument("--seed", metavar="N", help="the same number gives the same text")
    group.add_argument("--n_samples", metavar="N", help="samples of one prompt")
    group.add_argument("--max_new_tokens", metavar="N", help="most new tokens of a sample")


def _chooses(arguments: argparse.Namespace) -> bool:
    return arguments.auto_layout or arguments.auto_layout_and_mesh_shape


def _check(arguments: argparse.Namespace) -> None:
    if arguments.tpu is not None and (arguments.gpu_ids or arguments.cpu_devices is not None or arguments.hosts):
        raise DeviceError(
            "--tpu -- one process speaks to the whole TPU -- leave out --gpu_ids, --cpu_devices and --hosts"
        )
    if arguments.apply and not _chooses(arguments):
        raise ConfigError("--apply -- has nothing to apply -- give --auto_layout or --auto_layout_and_mesh_shape too")
    if arguments.steps_per_checkpoint < 1:
        raise ConfigError(
            f"--steps_per_checkpoint {arguments.steps_per_checkpoint} -- must be at least 1 -- give a number of steps"
        )
    if "/" in arguments.sacred_id:
        raise ConfigError(f"--sacred_id {arguments.sacred_id} -- holds a slash -- give a part of a file name")
    if arguments.gpu_ids and arguments.cpu_devices is not None:
        raise DeviceError("--gpu_ids and --cpu_devices -- exclude each other -- give one of them")
    other = next((verb for verb in VERBS if getattr(arguments, verb)), None)
    if arguments.new and other:
        raise ConfigError(f"--new -- starts training from the beginning -- leave out --{other}")
    if arguments.init_from is not None and arguments.check_dataset:
        raise ConfigError("--init_from -- --check_dataset reads no weights -- leave out one of them")


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
    given = {key: getattr(arguments, flag) for flag, key in SAMPLING_FLAGS.items()}
    switches = ["entmax_sampling=true"] if arguments.entmax_sampling else []
    return [*arguments.set, *switches, *(f"{key}={value}" for key, value in given.items() if value is not None)]


def _confirm(arguments: argparse.Namespace, question: str) -> bool:
    if arguments.yes:
        return True
    if not sys.stdin.isatty():
        raise ConfigError(f"--new: {question} -- nobody is there to answer -- give --yes too")
    return input(f"{question} [y/n] ").strip().lower() in ("y", "yes")


def _run(arguments: argparse.Namespace) -> int:
    with on_disk(arguments.model) as model:
        config = load_config(model, config_overrides(arguments), arguments.init_from)
    import verbs  # here, since TensorFlow takes seconds to load: a mistyped key is answered at once

    options = verbs.Options(
        hosts=arguments.hosts,
        host_index=arguments.host_index,
        tpu=arguments.tpu,
        gpu_ids=tuple(arguments.gpu_ids) if arguments.gpu_ids else None,
        n_cpu_devices=arguments.cpu_devices,
        steps_per_checkpoint=arguments.steps_per_checkpoint,
        sacred_id=arguments.sacred_id,
        prompt_path=arguments.prompt or None,
        is_new=arguments.new,
        init_from=arguments.init_from,
        export=verbs.Export(arguments.export_format, arguments.export_dir),
        choice=verbs.Choice(arguments.auto_layout_and_mesh_shape, arguments.apply) if _chooses(arguments) else None,
    )
    if arguments.new and not verbs.may_forget(config, lambda question: _confirm(arguments, question)):
        return 0
    verb = next((name for name in VERBS if getattr(arguments, name)), "train")
    return verbs.run(verb, config, options)


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
