"""Runs `main.py` as a recorded experiment, restarts it when it crashes or hangs, and shows recorded runs.

`python3 run_experiment.py --help` lists its flags; all other flags go to `main.py`.
"""

from __future__ import annotations

import argparse
import functools
import json
import math
import os
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from configs.command_line import CommandLine, integer, unescape
from configs.errors import ConfigError
from configs.kinds import clean_path_flags
from configs.load import given_keys, load_config, resolved_json
from configs.prompts import DEFAULT_PROMPT
from main import config_overrides
from main import parse_arguments as parse_main_arguments
from storage.files import is_stream
from storage.streams import run_program
from tracking.record.store import DEFAULT_FOLDER, describe_damage, find_run
from tracking.supervise.exit_policy import RestartPolicy

OTHER_PROCESSES = "other_processes"
MAX_PROMPT_CHARACTERS = 1 << 16
MAIN = Path(__file__).resolve().with_name("main.py")
# Flags that do something other than run main.py.
NON_RUNNING_FLAGS = ("sync", "list", "compare", "report", "tensorboard")
# Commands of main.py that run until they are stopped.
ENDLESS_COMMANDS = ("interactive", "chat", "serve")
# GPT-Neo's flags that have no effect here, and why.
NO_EFFECT_FLAGS = {
    "autostack": "variables keep their names",
    "test": "give --eval to evaluate",
    "no_delete_tpu": "a TPU is never deleted",
}


def _parser() -> argparse.ArgumentParser:
    parser = CommandLine(
        prog="run_experiment.py",
        description="Run main.py as a recorded and supervised experiment.",
        epilog="All other flags go to main.py: see python3 main.py --help.",
        allow_abbrev=False,
    )
    _add_recording_flags(parser.add_argument_group("recording").add_argument)
    _add_viewing_flags(parser.add_argument_group("viewing runs").add_argument)
    _add_supervision_flags(parser.add_argument_group("supervision").add_argument)
    for flag in NO_EFFECT_FLAGS:
        parser.add_argument(f"--{flag}", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_recording_flags(add: Callable[..., object]) -> None:
    add("--experiment_name", metavar="NAME", help="default: the name of the config")
    store = Path(DEFAULT_FOLDER)
    add("--store", type=Path, default=store, metavar="DIR", help=f"folder of runs (default {store})")
    add("--mongo", metavar="URL", help="copy the run to this MongoDB (default: MONGO_URL of the environment or .env)")
    add("--sync", nargs="+", metavar="RUN", help="only complete the copies of these runs in MongoDB")


def _add_viewing_flags(add: Callable[..., object]) -> None:
    add("--list", action="store_true", help="list all runs of the store, or of MongoDB if --mongo is given")
    add("--compare", nargs="+", metavar="RUN", help="compare the results, the items of tasks and the configs of runs")
    add("--report", metavar="RUN", help="write an HTML page with curves, samples, config and environment")
    text = "start TensorBoard on a free port of this machine, for these runs"
    add("--tensorboard", nargs="+", metavar="RUN", help=text)


def _add_supervision_flags(add: Callable[..., object]) -> None:
    policy = RestartPolicy()
    for flag, seconds, text in (
        (
            "initial_heartbeat_timeout",
            policy.first_step_seconds,
            "timeout of the first step, including data preparation and compilation",
        ),
        ("heartbeat_timeout", policy.step_seconds, "restart main.py after this long without a new step"),
        ("grace", policy.grace_seconds, "time to write a checkpoint when asked to stop"),
        ("backoff", policy.backoff_seconds, "pause before a restart; doubles while there is no progress"),
    ):
        add(f"--{flag}", type=float, metavar="SECONDS", default=seconds, help=f"{text} (default {seconds:.0f})")
    limit = policy.max_restarts
    add("--max_restarts", type=integer, default=limit, help=f"maximum number of restarts (default {limit})")
    add("--recreate_command", metavar="COMMAND", help="with --tpu: run this before a restart, to recreate the TPU")


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Splits the command line into the flags of this program and those of main.py.

    Raises:
        UserError: flags are invalid or cannot be combined.
    """
    own, others = _parser().parse_known_args(arguments)
    for name in ("initial_heartbeat_timeout", "heartbeat_timeout", "grace", "backoff", "max_restarts"):
        value = getattr(own, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--{name} {value}: is not a number of at least 0; give one")
    own.store = Path(clean_path_flags({"store": str(own.store)}, ["store"])["store"])
    _check_alone(own, others)
    if any(word.split("=")[0] in ("--sacred_id", "--sacred-id") for word in others):
        raise ConfigError("--sacred_id: is set to the number of the run; leave it out")
    return own, tuple(others)


def _check_alone(own: argparse.Namespace, others: Sequence[str]) -> None:
    given = [f"--{name}" for name in NON_RUNNING_FLAGS if getattr(own, name)]
    if len(given) > 1:
        raise ConfigError(f"{given[0]}: cannot be combined with {given[1]}; give one of them")
    if given and others:
        raise ConfigError(f"{given[0]}: cannot be combined with flags of main.py; leave out {others[0]}")
    if own.mongo and given in (["--report"], ["--tensorboard"]):
        raise ConfigError(f"--mongo: {given[0]} reads the folder of the run, not MongoDB; leave it out")


def _recreate_command(own: argparse.Namespace, tpu: str | None) -> tuple[str, ...]:
    """Returns the words of --recreate_command, after checking that the program exists."""
    text = own.recreate_command
    if text is None:
        return ()
    if tpu is None:
        raise ConfigError("--recreate_command: is for TPUs; give --tpu too, or leave it out")
    try:
        words = tuple(shlex.split(text))
    except ValueError as error:
        raise ConfigError(f"--recreate_command {text}: {error}; quote it as in a shell") from error
    if not words or shutil.which(words[0]) is None:
        raise ConfigError(f"--recreate_command {text}: there is no such program; install it, or give its path")
    return words


def is_first_process(host_index: int | None, environment: Mapping[str, str]) -> bool:
    """Returns whether main.py will be the first or only process of its run: the one that writes metrics."""
    if host_index is not None:
        return host_index == 0
    if environment.get("TF_CONFIG"):
        try:
            described = json.loads(environment["TF_CONFIG"])
            first_job = "chief" if described["cluster"].get("chief") else "worker"
            return described["task"]["type"] == first_job and int(described["task"]["index"]) == 0
        except (ValueError, KeyError, TypeError, AttributeError):
            return True  # main.py will say what is wrong with it
    return environment.get("SLURM_PROCID", "0") == "0"


def _check_recordable(parsed: argparse.Namespace) -> None:
    """Refuses commands that depend on outside input, which a restart cannot repeat."""
    if parsed.command in ENDLESS_COMMANDS:
        raise ConfigError(f"--{parsed.command}: runs until it is stopped, and cannot be recorded; use main.py")
    if parsed.prompt == "-" or (parsed.prompt and is_stream(parsed.prompt)):
        raise ConfigError(f"--prompt {parsed.prompt}: would be empty after a restart; give a file")


def say(text: str) -> None:
    """Prints to standard error, separate from main.py's output."""
    print(text, file=sys.stderr, flush=True)


def _run(own: argparse.Namespace, arguments: tuple[str, ...], words: Sequence[str]) -> int:
    parsed = parse_main_arguments(arguments)
    _check_recordable(parsed)
    config = load_config(parsed.model, config_overrides(parsed), parsed.init_from)
    only_chooses = (parsed.auto_layout or parsed.auto_layout_and_mesh_shape) and not parsed.apply
    recreate_command = _recreate_command(own, parsed.tpu)

    from tracking import session
    from tracking.mongodb import upload
    from tracking.record import provenance, recorder
    from tracking.supervise import supervisor  # imported here, as Sacred takes a second to load

    is_first = is_first_process(parsed.host_index, os.environ)
    job = functools.partial(
        supervisor.Job,
        policy=RestartPolicy(
            own.initial_heartbeat_timeout, own.heartbeat_timeout, own.grace, own.backoff, own.max_restarts
        ),
        watches_steps=parsed.command == "train" and not only_chooses and is_first,
        recreate_command=recreate_command,
    )
    start = recorder.Start(
        words=tuple(map(provenance.without_password, words)),
        directory=os.getcwd(),
        keys=given_keys(parsed.model, config_overrides(parsed)),
        prompt=_prompt_text(parsed),
    )
    spec = recorder.RunSpec(parsed.command, arguments, json.loads(resolved_json(config)), config.model_path, start)
    mongo_url = upload.find_url(own.mongo, Path(upload.ENV_FILE))
    # A run of many processes is listed once; the records of the others are kept apart.
    where = (own.store, mongo_url) if is_first else (own.store / OTHER_PROCESSES, None)
    experiment = session.Experiment((sys.executable, str(MAIN)), spec, job, *where)
    own_config = [parsed.model] if parsed.model.endswith(".json") else []
    found = provenance.find_provenance(own.experiment_name or config.name, own_config)
    if line := provenance.unknown_state(found.experiment):
        say(line)
    return session.record_and_supervise(experiment, found, say)


def _prompt_text(parsed: argparse.Namespace) -> str:
    """Returns the text of a prompt file that holds a single prompt; empty if main.py gets its prompts otherwise."""
    if parsed.prompt_text is not None:
        return unescape(parsed.prompt_text)
    if not parsed.prompt:
        return DEFAULT_PROMPT
    if parsed.prompt.endswith(".jsonl") or not os.path.isfile(parsed.prompt):
        return ""
    with open(parsed.prompt, encoding="utf-8-sig", errors="replace") as file:
        return file.read(MAX_PROMPT_CHARACTERS)


def _sync_or_view(own: argparse.Namespace) -> int:
    if own.sync:
        from tracking.mongodb.sync import sync  # imported on demand, as these take a second to load

        sync(own.sync, own.store, own.mongo, say)
    elif own.report:
        from tracking.view.report import write_report

        run = find_run(own.store, own.report)
        for line in describe_damage(run):
            say(line)
        print(str(write_report(run)))
    elif own.tensorboard:
        from tracking.view import tensorboard

        tensorboard.show(own.store, own.tensorboard, say)
    else:
        _show_table(own)
    return 0


def _show_table(own: argparse.Namespace) -> None:
    from tracking.mongodb import upload
    from tracking.view import queries

    url = upload.find_url(own.mongo, Path(upload.ENV_FILE)) if own.mongo else None  # the URL in .env is only for copies
    print(queries.compared(own.compare, own.store, url) if own.compare else queries.all_runs(own.store, url))
    if own.compare and url is not None:
        print("items of tasks are not in MongoDB; leave out --mongo to compare those of the store")
    elif own.compare:
        from commands.compare_items import compared_items

        for line in compared_items([find_run(own.store, run_id) for run_id in dict.fromkeys(own.compare)]):
            print(line)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns main.py's exit status, or 2 for an error that the user can fix."""

    def run() -> int:
        own, others = parse_arguments(arguments)
        for flag, why in NO_EFFECT_FLAGS.items():
            if getattr(own, flag):
                say(f"--{flag} has no effect: {why}")
        is_run = not any(getattr(own, name) for name in NON_RUNNING_FLAGS)
        words = sys.argv[1:] if arguments is None else arguments
        return _run(own, others, words) if is_run else _sync_or_view(own)

    return run_program(run)


if __name__ == "__main__":
    sys.exit(main())
