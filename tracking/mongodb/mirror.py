"""Keeps the copy of a run in MongoDB up to date while it runs, in a background thread.

There is no queue that could fill up: whatever is still to be sent stays in the run's folder.
"""

from __future__ import annotations

import contextlib
import re
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from configs.errors import UserError
from tracking.mongodb.upload import MongoCopy, connect, describe_url

PUSH_SECONDS = 3.0
RETRY_SECONDS = 2.0  # after the first failure; doubles with each further one while the run lasts
MAX_RETRY_SECONDS = 15.0
MONGO_ERRORS = (PyMongoError, BSONError, OSError, UserError)


@contextlib.contextmanager
def reaching(url: str, errors: tuple[type[Exception], ...]) -> Iterator[None]:
    """Turns the errors of a database into one for the user.

    Raises:
        UserError: names the database and the reason.
    """
    try:
        yield
    except errors as error:
        raise UserError(
            f"MongoDB at {describe_url(url)}: {error_reason(error)}; start it, or check its permissions"
        ) from error


class Mirror:
    """Copies a run's folder to a database periodically until the run is over.

    Attributes:
        mongo_id: the run's number in the database; None before the first copy.
    """

    def __init__(self, url: str, store: Path, run_id: str, say: Callable[[str], None]) -> None:
        """Starts the thread."""
        self.mongo_id: int | None = None
        self._url = url
        self._copied = store, run_id
        self._say = say
        self._is_over = threading.Event()
        self._is_abandoned = threading.Event()
        self._is_complete = False
        self._n_failures = 0
        self._thread = threading.Thread(target=self._run, name="copy to MongoDB", daemon=True)
        self._thread.start()

    def finish(self, wait_seconds: float) -> bool:
        """Makes the last copy, once the folder no longer changes; returns whether the copy is complete."""
        self._is_over.set()
        try:
            self._thread.join(wait_seconds)
        except KeyboardInterrupt:
            pass
        finally:
            self._is_abandoned.set()
        return self._is_complete

    def _run(self) -> None:
        copy: MongoCopy | None = None
        while not self._is_complete and not self._is_abandoned.is_set():
            is_last = self._is_over.is_set()
            try:
                copy = copy or MongoCopy(connect(self._url), *self._copied)
                if is_last:
                    copy.reset()  # so that the last push checks everything
                self.mongo_id = copy.push()
            except MONGO_ERRORS as error:
                self._note_failure(error)
                self._wait_after_failure(is_last)
            else:
                self._note_success()
                self._is_complete = is_last
                self._is_over.wait(PUSH_SECONDS)

    def _wait_after_failure(self, is_last: bool) -> None:
        if is_last:
            self._is_abandoned.wait(RETRY_SECONDS)
        else:
            self._is_over.wait(min(RETRY_SECONDS * 2 ** min(self._n_failures - 1, 10), MAX_RETRY_SECONDS))

    def _note_failure(self, error: BaseException) -> None:
        if self._n_failures == 0:
            self._say(f"MongoDB at {describe_url(self._url)}: {error_reason(error)}; the run continues without it")
        self._n_failures += 1

    def _note_success(self) -> None:
        if self._n_failures > 0:
            self._say(f"MongoDB at {describe_url(self._url)} is back; the copy is completed")
        self._n_failures = 0


def error_reason(error: BaseException) -> str:
    """Returns the reason of a database error, in one line."""
    reason = re.split(r", Timeout:|, full error:| \(configured timeouts:|\n", str(error))[0]
    return reason or type(error).__name__
