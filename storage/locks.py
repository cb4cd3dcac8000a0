"""A lock in a bucket: an object that its holder renews, and that falls to others when it no longer does.

The object's generation is the holder's: renewing changes only the notes that hang on the object. Whoever finds a holder
waits to see it renew the lock; of one that was killed on this machine it is known at once that it will not.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
import time
import uuid
from collections.abc import Iterator

from configs.errors import UserError
from storage import buckets
from storage.buckets import NOTHING, BucketError, OvertakenError, State

RENEWAL_SECONDS = 20.0
LEASE_SECONDS = 120.0  # longer than a network may fail
LOOK_SECONDS = 2.0
LONG_AGO_SECONDS = 900.0  # more than clocks differ by: nobody needs to wait for a lock that has not changed for so long


@contextlib.contextmanager
def held(path: str, refusal: str, remedy: str) -> Iterator[None]:
    """Holds the lock at a path.

    Args:
        path: where the lock lies.
        refusal: what to say of a place that another process holds.
        remedy: and what to do then.

    Raises:
        UserError: another process holds it.
    """
    generation = _take(path, refusal, remedy)
    stop = threading.Event()
    renewing = threading.Thread(target=_renew, args=(path, generation, stop), daemon=True)
    renewing.start()
    try:
        yield
    finally:
        stop.set()
        renewing.join()
        buckets.delete(path, generation)


def _take(path: str, refusal: str, remedy: str) -> int:
    mine = json.dumps({**_this_process(), "lock": uuid.uuid4().hex}).encode()
    while True:
        found = _abandoned(path, refusal, remedy)
        with contextlib.suppress(OvertakenError):  # somebody was faster: look again
            return buckets.replace(path, mine, found.generation)


def _abandoned(path: str, refusal: str, remedy: str) -> State:
    """The lock that nobody holds, once that is sure.

    Raises:
        UserError: somebody holds it.
    """
    found = buckets.look(path)
    if found == NOTHING:
        return found
    holder = _holder(path)
    lives = _lives(holder)
    if lives is None and time.time() - found.updated_seconds < LONG_AGO_SECONDS:
        print(
            f"{path} is held by {_named(holder)}; waiting up to {LEASE_SECONDS:.0f} s to see whether it is still there",
            file=sys.stderr,
            flush=True,
        )
        lives = _is_renewed(path, found)
    if lives:
        raise UserError(f"{refusal}, {_named(holder)}; {remedy}")
    return found


def _is_renewed(path: str, found: State) -> bool:
    """Waits for the holder to renew the lock, or to give it back: then there may be more than this process has read."""
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(LOOK_SECONDS)
        if buckets.look(path) != found:
            return True
    return False


def _renew(path: str, generation: int, stop: threading.Event) -> None:
    while not stop.wait(RENEWAL_SECONDS):
        try:
            is_ours = buckets.note(path, {"renewed": str(time.time_ns())}, generation)
        except BucketError:
            continue  # the lease outlives a network that fails for a while
        if not is_ours:
            print(f"{path}: another process has taken its place; this one ends", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _this_process() -> dict[str, object]:
    number = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "process": number, "started": _started(number)}


def _machine() -> str | None:
    """Where process numbers mean the same: this start of the system, and this container; None: it does not say."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(number: object) -> str | None:
    """When a process of this machine was started; None: there is none of this number, or it has ended."""
    try:
        with open(f"/proc/{number}/stat") as file:
            fields = file.read().rpartition(")")[2].split()
    except OSError:
        return None
    return fields[19] if fields[0] not in "XZ" else None


def _holder(path: str) -> dict[str, object]:
    try:
        holder = json.loads(buckets.read(path))
    except ValueError:
        return {}
    return holder if isinstance(holder, dict) else {}


def _lives(holder: dict[str, object]) -> bool | None:
    """Whether the holder is there; None: it is on another machine."""
    if _machine() is None or holder.get("machine") != _machine():
        return None
    return holder.get("started") is not None and holder["started"] == _started(holder.get("process"))


def _named(holder: dict[str, object]) -> str:
    return f"process {holder.get('process', '?')} of {holder.get('host', 'a machine unknown')}"
