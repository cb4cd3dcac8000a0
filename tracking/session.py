"""Runs one experiment from start to end: records it, supervises it, copies it to MongoDB."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import UserError
from storage.files import is_local
from storage.locks import is_locked
from tracking.mongodb.mirror import Mirror
from tracking.mongodb.upload import describe_url
from tracking.record.provenance import Provenance
from tracking.record.recorder import Recorder, RunSpec
from tracking.record.run_files import list_files
from tracking.record.store import DEFAULT_FOLDER
from tracking.supervise.supervisor import Job, Outcome, StopSignals, supervise

CHECKPOINT_STATE, LOCK_FILE = "checkpoint", "lock"
LAST_COPY_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Experiment:
    """What to run and where to record it.

    Attributes:
        program: the command line without arguments: the interpreter and main.py.
        spec: the run.
        job: builds the job from its command, once the run has its number.
        store: the folder of runs.
        mongo_url: the database to copy to; None: no copy.
    """

    program: tuple[str, ...]
    spec: RunSpec
    job: Callable[[Callable[[], Sequence[str]]], Job]
    store: Path
    mongo_url: str | None


class _CommandLine:
    """The command line of each start: the user's at first; a restart drops --new, to resume from the checkpoint."""

    def __init__(self, experiment: Experiment, run_id: str) -> None:
        self._words = (*experiment.program, *experiment.spec.arguments, "--sacred_id", run_id)
        self._model_path = experiment.spec.model_path
        self._checkpoint_before = self._checkpoint()
        self._is_first = True

    def __call__(self) -> list[str]:
        words, is_first = list(self._words), self._is_first
        self._is_first = False
        if is_first or "--new" not in words:
            return words
        if self._checkpoint() in (None, self._checkpoint_before):  # this run has no checkpoint to lose
            return words if "--yes" in words else [*words, "--yes"]
        return [word for word in words if word != "--new"]

    def _checkpoint(self) -> tuple[int, int] | None:
        return {entry.name: entry.version for entry in list_files(self._model_path)}.get(CHECKPOINT_STATE)


def _check_free(model_path: str) -> None:
    """Checks that no other process trains at the model path, before its metrics are recorded as those of this run.

    Raises:
        UserError: another process of this machine does; in a bucket only main.py can tell.
    """
    if is_local(model_path) and is_locked(os.path.join(model_path, LOCK_FILE)):
        raise UserError(
            f"model_path = {model_path}: another process trains here; wait for it, or give another model_path"
        )


def record_and_supervise(experiment: Experiment, provenance: Provenance, say: Callable[[str], None]) -> int:
    """Runs an experiment; returns the exit status.

    Raises:
        UserError: the run cannot be recorded, or another one trains at its model path; nothing was started.
    """
    if experiment.spec.command == "train":
        _check_free(experiment.spec.model_path)
    recorder = Recorder(experiment.store, experiment.spec, provenance, say)
    say(f"run {recorder.id}: recorded in {recorder.folder}")
    mirror = experiment.mongo_url and Mirror(experiment.mongo_url, experiment.store, recorder.id, say)
    is_whole = False
    outcome = Outcome("FAILED", "run_experiment.py itself has failed", 0, 1)
    with StopSignals() as stop:  # also while the end is recorded
        try:
            outcome = supervise(experiment.job(_CommandLine(experiment, recorder.id)), recorder, say, stop)
        finally:
            is_whole = recorder.finish(outcome)
    restarts = f" after {outcome.n_restarts} restart{'s' * (outcome.n_restarts > 1)}" if outcome.n_restarts else ""
    say(f"run {recorder.id}: {outcome.status}{restarts}: {outcome.reason}")
    if not is_whole:
        say(
            f"run {recorder.id}: its record in {recorder.folder} is incomplete, as reported; the metrics are also "
            f"in {experiment.spec.model_path}"
        )
    if mirror:
        _finish_copy(mirror, experiment, recorder.id, say)
    return outcome.exit_status


def _finish_copy(mirror: Mirror, experiment: Experiment, run_id: str, say: Callable[[str], None]) -> None:
    place = describe_url(experiment.mongo_url or "")
    if mirror.finish(LAST_COPY_SECONDS):
        say(f"run {run_id}: copied to MongoDB at {place} as run {mirror.mongo_id}")
        return
    store = "" if experiment.store == Path(DEFAULT_FOLDER) else f" --store {experiment.store}"
    say(
        f"run {run_id}: the copy in MongoDB at {place} is incomplete; complete it with "
        f"run_experiment.py --sync {run_id}{store}"
    )
