"""Keeps the copy of a run in MongoDB up to date while it runs, in a thread that nothing waits for.

There is no queue that could fill up: what has to be sent lies in the run's folder, and stays there.
"""

from __future__ import annotations

import re
import threading
from collections.abc import Callable
from pathlib import Path

from bson.errors import BSONError
from pymongo.errors import PyMongoError

from configs.errors import UserError
from tracking.mongodb.upload import MongoCopy, connect, describe_url

PUSH_SECONDS = 3.0
RETRY_SECONDS = 2.0  # after the first failure; twice as long after each further one, until the run is over
MAX_RETRY_SECONDS = 15.0
TROUBLES = (PyMongoError, BSONError, OSError, UserError)


class Mirror:
    """A thread that copies a run's folder to a database, again and again until it is over.

    Attributes:
        mongo_id: the run's number in the database; None: it is not there yet.
    """

    def __init__(self, url: str, store: Path, run_id: str, say: Callable[[str], None]) -> None:
        """Starts it."""
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
        """To be called when the folder will not change any more; whether all of it is in the database."""
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
                    copy.forget()  # so that the last one looks at everything, whatever happened before
                self.mongo_id = copy.push()
            except TROUBLES as error:
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
            self._say(f"MongoDB at {describe_url(self._url)}: {reason_of(error)}; the run goes on without it")
        self._n_failures += 1

    def _note_success(self) -> None:
        if self._n_failures > 0:
            self._say(f"MongoDB at {describe_url(self._url)} is back: what it missed is filled in")
        self._n_failures = 0


def reason_of(error: BaseException) -> str:
    """What is wrong with a database, in one line."""
    said = re.split(r", Timeout:|, full error:| \(configured timeouts:|\n", str(error))[0]
    return said or type(error).__name__
