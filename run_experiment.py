"""Starts `main.py`, records what it does, and starts it again when it crashes or hangs; and shows what was recorded.
`python3 run_experiment.py --help` lists what can be said; whatever it does not know goes to `main.py`.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import json
import math
import os
import shlex
import shutil
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from configs.errors import ConfigError, UserError
from configs.load import load_config, resolved_json
from main import config_overrides
from main import parse_arguments as parse_main_arguments
from tracking.record.store import DEFAULT_FOLDER, find_run
from tracking.supervise.exit_policy import Patience

OTHER_PROCESSES = "other_processes"
MAIN = Path(__file__).resolve().with_name("main.py")
# What is done instead of running main.py.
WITHOUT_MAIN = ("sync", "list", "compare", "report", "tensorboard")
# What main.py does until somebody ends it.
WITHOUT_END = ("interactive", "serve")
# GPT-Neo's flags that ask for nothing here, and why.
WITHOUT_EFFECT = {
    "autostack": "variables keep their names",
    "test": "give --eval to evaluate",
    "no_delete_tpu": "a TPU is never deleted",
}


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="run_experiment.py",
        description="Run main.py as a recorded and supervised experiment.",
        epilog="All other flags go to main.py: see python3 main.py --help.",
        allow_abbrev=False,
    )
    _add_recording_flags(parser.add_argument_group("recording"))
    _add_looking_flags(parser.add_argument_group("looking at runs, instead of running"))
    _add_supervision_flags(parser.add_argument_group("supervision"))
    for flag in WITHOUT_EFFECT:
        parser.add_argument(f"--{flag}", action="store_true", help=argparse.SUPPRESS)
    return parser


def _add_recording_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--experiment_name", metavar="NAME", help="left out: the name of the config")
    group.add_argument(
        "--store", type=Path, default=Path(DEFAULT_FOLDER), metavar="DIR", help=f"of runs (default {DEFAULT_FOLDER})"
    )
    group.add_argument(
        "--mongo", metavar="URL", help="copy the run to this MongoDB; left out: MONGO_URL of the environment or .env"
    )
    group.add_argument("--sync", nargs="+", metavar="RUN", help="only copy to MongoDB what it has missed of these runs")


def _add_looking_flags(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--list", action="store_true", help="all runs of the store, or of MongoDB if --mongo is given")
    group.add_argument("--compare", nargs="+", metavar="RUN", help="how runs went, and where their configs differ")
    group.add_argument("--report", metavar="RUN", help="write a page with curves, samples, config and environment")
    group.add_argument(
        "--tensorboard", nargs="+", metavar="RUN", help="start TensorBoard on a free port of this machine"
    )


def _add_supervision_flags(group: argparse._ArgumentGroup) -> None:
    patience = Patience()
    timed = functools.partial(group.add_argument, type=float, metavar="SECONDS")
    timed(
        "--initial_heartbeat_timeout",
        default=patience.first_step_seconds,
        help=f"for the first step, with data and compiling (default {patience.first_step_seconds:.0f})",
    )
    timed(
        "--heartbeat_timeout",
        default=patience.step_seconds,
        help=f"without a new step before main.py is restarted (default {patience.step_seconds:.0f})",
    )
    timed(
        "--grace",
        default=patience.grace_seconds,
        help=f"to write a checkpoint when asked to stop (default {patience.grace_seconds:.0f})",
    )
    timed(
        "--backoff",
        default=patience.pause_seconds,
        help=f"before a restart; doubled while there is no progress (default {patience.pause_seconds:.0f})",
    )
    group.add_argument(
        "--max_restarts", type=int, default=patience.max_restarts, help=f"(default {patience.max_restarts})"
    )
    group.add_argument(
        "--recreate_command", metavar="COMMAND", help="with --tpu: what to run before a restart, to make the TPU anew"
    )


def parse_arguments(arguments: Sequence[str] | None = None) -> tuple[argparse.Namespace, tuple[str, ...]]:
    """Reads the command line: what is for this program, and what is for main.py.

    Raises:
        UserError: flags that do not go together, or cannot be used.
    """
    own, others = _parser().parse_known_args(arguments)
    for name in ("initial_heartbeat_timeout", "heartbeat_timeout", "grace", "backoff", "max_restarts"):
        value = getattr(own, name)
        if not (math.isfinite(value) and value >= 0):
            raise ConfigError(f"--{name} {value}: is no number from 0 on; give one")
    _check_alone(own, others)
    if any(word.split("=")[0] == "--sacred_id" for word in others):
        raise ConfigError("--sacred_id: is the number of the run here; leave it out")
    return own, tuple(others)


def _check_alone(own: argparse.Namespace, others: Sequence[str]) -> None:
    given = [f"--{name}" for name in WITHOUT_MAIN if getattr(own, name)]
    if len(given) > 1:
        raise ConfigError(f"{given[0]}: does not go together with {given[1]}; give one of them")
    if given and others:
        raise ConfigError(f"{given[0]}: takes no other flags of main.py; leave out {others[0]}")
    if own.mongo and given in (["--report"], ["--tensorboard"]):
        raise ConfigError(f"--mongo: has no use here: {given[0]} reads the folder of the run; leave it out")


def _recreate_command(own: argparse.Namespace, tpu: str | None) -> tuple[str, ...]:
    """The words of --recreate_command, once it is known that they can be run."""
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
    """Whether main.py will be the only process of its run, or the first of many, which is the one that measures."""
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
    """Refuses what goes on as somebody outside says, which no restart can ask again."""
    if parsed.command in WITHOUT_END:
        raise ConfigError(f"--{parsed.command}: runs until it is stopped, and is no run to record; give it to main.py")
    if parsed.prompt == "-":
        raise ConfigError("--prompt -: after a restart standard input would be empty; give a file")


def say(text: str) -> None:
    """Tells the person at the screen; main.py's own output stays as it is."""
    with contextlib.suppress(OSError):  # nobody reads it any more: that must not end a run
        print(text, file=sys.stderr, flush=True)


def _run(own: argparse.Namespace, arguments: tuple[str, ...]) -> int:
    parsed = parse_main_arguments(arguments)
    _check_recordable(parsed)
    config = load_config(parsed.model, config_overrides(parsed), parsed.init_from)
    only_chooses = (parsed.auto_layout or parsed.auto_layout_and_mesh_shape) and not parsed.apply
    recreate_command = _recreate_command(own, parsed.tpu)

    from tracking import session
    from tracking.mongodb import upload
    from tracking.record import provenance, recorder
    from tracking.supervise import supervisor  # here, for Sacred takes a second to load

    is_first = is_first_process(parsed.host_index, os.environ)
    orders = functools.partial(
        supervisor.Orders,
        patience=_patience(own),
        watches_steps=parsed.command == "train" and not only_chooses and is_first,
        recreate_command=recreate_command,
    )
    about = recorder.About(parsed.command, arguments, json.loads(resolved_json(config)), config.model_path)
    mongo_url = upload.find_url(own.mongo, Path(upload.ENV_FILE))
    # A run of many processes is listed once; what the others said is kept aside.
    where = (own.store, mongo_url) if is_first else (own.store / OTHER_PROCESSES, None)
    plan = session.Plan((sys.executable, str(MAIN)), about, orders, *where)
    own_config = [parsed.model] if parsed.model.endswith(".json") else []
    found = provenance.find_provenance(own.experiment_name or config.name, own_config)
    return session.record_and_supervise(plan, found, say)


def _patience(own: argparse.Namespace) -> Patience:
    return Patience(own.initial_heartbeat_timeout, own.heartbeat_timeout, own.grace, own.backoff, own.max_restarts)


def _sync(own: argparse.Namespace) -> int:
    from tracking.mongodb.sync import sync

    sync(own.sync, own.store, own.mongo, say)
    return 0


def _look(own: argparse.Namespace) -> int:
    if own.report:
        from tracking.view.report import write_report  # each only when it is asked for: they take a second to load

        _print(str(write_report(find_run(own.store, own.report))))
    elif own.tensorboard:
        from tracking.view import tensorboard

        tensorboard.show(own.store, own.tensorboard, say)
    else:
        _show_table(own)
    return 0


def _show_table(own: argparse.Namespace) -> None:
    from tracking.mongodb import upload
    from tracking.view import queries

    url = upload.find_url(own.mongo, Path(upload.ENV_FILE)) if own.mongo else None  # that of .env is for copies
    _print(queries.compared(own.compare, own.store, url) if own.compare else queries.all_runs(own.store, url))


def _print(text: str) -> None:
    with contextlib.suppress(BrokenPipeError):  # whoever reads has seen enough
        print(text, flush=True)


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the program; returns main.py's exit status, or 2 for what the user can mend."""
    try:
        own, others = parse_arguments(arguments)
        for flag, why in WITHOUT_EFFECT.items():
            if getattr(own, flag):
                say(f"--{flag} has no effect: {why}")
        if own.sync:
            return _sync(own)
        return _look(own) if any(getattr(own, name) for name in WITHOUT_MAIN) else _run(own, others)
    except UserError as error:
        say(str(error))
        return 2
    except KeyboardInterrupt:
        say("interrupted")
        return 128 + signal.SIGINT
    finally:
        _flush()


def _flush() -> None:
    """Empties what is left for a reader who is gone, or the interpreter complains when it ends."""
    for stream in (sys.stdout, sys.stderr):
        try:
            stream.flush()
        except OSError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


if __name__ == "__main__":
    sys.exit(main())
