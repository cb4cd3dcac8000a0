"""One experiment from beginning to end: recorded, supervised, copied."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from pathlib import Path

from configs.errors import UserError
from storage.locks import is_locked
from tracking.mongodb.mirror import Mirror
from tracking.mongodb.upload import describe_url
from tracking.record.provenance import Provenance
from tracking.record.recorder import About, Recorder
from tracking.record.run_files import is_local, list_files
from tracking.record.store import DEFAULT_FOLDER
from tracking.supervise.supervisor import Orders, Outcome, StopOrders, supervise

CHECKPOINT_STATE, LOCK_FILE = "checkpoint", "lock"
LAST_COPY_SECONDS = 60.0


@dataclasses.dataclass(frozen=True)
class Plan:
    """What to run and where to record it.

    Attributes:
        program: the words before the arguments, as the interpreter and main.py.
        about: the run.
        orders: gives what is to be run once the run has its number.
        store: the folder of runs.
        mongo_url: where they are copied to; None: nowhere.
    """

    program: tuple[str, ...]
    about: About
    orders: Callable[[Callable[[], Sequence[str]]], Orders]
    store: Path
    mongo_url: str | None


class _Command:
    """The command of each start: that of the user and, after the first, what makes it go on from the checkpoint."""

    def __init__(self, plan: Plan, run_id: str) -> None:
        self._words = (*plan.program, *plan.about.arguments, "--sacred_id", run_id)
        self._model_path = plan.about.model_path
        self._checkpoint_before = self._checkpoint()
        self._is_first = True

    def __call__(self) -> list[str]:
        words, is_first = list(self._words), self._is_first
        self._is_first = False
        if is_first or "--new" not in words:
            return words
        if self._checkpoint() in (None, self._checkpoint_before):  # nothing of this run is there to lose
            return words if "--yes" in words else [*words, "--yes"]
        return [word for word in words if word != "--new"]

    def _checkpoint(self) -> tuple[int, int] | None:
        return {entry.name: entry.version for entry in list_files(self._model_path)}.get(CHECKPOINT_STATE)


def _check_free(model_path: str) -> None:
    """Finds another training at the model path before anything is recorded: what that one measures would be, too.

    Raises:
        UserError: there is one, on this machine; in a bucket only main.py can find it.
    """
    if is_local(model_path) and is_locked(os.path.join(model_path, LOCK_FILE)):
        raise UserError(
            f"model_path = {model_path}: another process trains here; wait for it, or give another model_path"
        )


def record_and_supervise(plan: Plan, provenance: Provenance, say: Callable[[str], None]) -> int:
    """Runs an experiment; returns the exit status.

    Raises:
        UserError: the run cannot be recorded, or another one trains at its model path; nothing was started.
    """
    if plan.about.command == "train":
        _check_free(plan.about.model_path)
    recorder = Recorder(plan.store, plan.about, provenance, say)
    say(f"run {recorder.id}: recorded in {recorder.folder}")
    mirror = plan.mongo_url and Mirror(plan.mongo_url, plan.store, recorder.id, say)
    is_whole = False
    outcome = Outcome("FAILED", "run_experiment.py itself has failed", 0, 1)
    with StopOrders() as stop:  # also while the end is written down
        try:
            outcome = supervise(plan.orders(_Command(plan, recorder.id)), recorder, say, stop)
        finally:
            is_whole = recorder.finish(outcome)
    restarts = f" after {outcome.n_restarts} restart{'s' * (outcome.n_restarts > 1)}" if outcome.n_restarts else ""
    say(f"run {recorder.id}: {outcome.status}{restarts}: {outcome.reason}")
    if not is_whole:
        say(
            f"run {recorder.id}: its record in {recorder.folder} is not whole, as was said; what was measured lies "
            f"in {plan.about.model_path} too"
        )
    if mirror:
        _finish_copy(mirror, plan, recorder.id, say)
    return outcome.exit_status


def _finish_copy(mirror: Mirror, plan: Plan, run_id: str, say: Callable[[str], None]) -> None:
    place = describe_url(plan.mongo_url or "")
    if mirror.finish(LAST_COPY_SECONDS):
        say(f"run {run_id}: copied to MongoDB at {place} as run {mirror.mongo_id}")
        return
    store = "" if plan.store == Path(DEFAULT_FOLDER) else f" --store {plan.store}"
    say(f"run {run_id}: not all of it is in MongoDB at {place}; run_experiment.py --sync {run_id}{store} fills it in")
