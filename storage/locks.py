"""Locks that processes hold while they write to a place: on a disk a lock of the system, in a bucket an object.

The object's generation identifies the holder; renewing the lock changes only the object's metadata. A process that
finds a lock waits to see whether the holder still renews it. If the holder ran on this machine and was killed, the
lock is free at once.
"""

from __future__ import annotations

import contextlib
import fcntl
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
from storage.buckets import NO_OBJECT, BucketError, ConflictError, ObjectState
from storage.files import is_at, is_local, writing_to

RENEWAL_SECONDS = 20.0
LEASE_SECONDS = 120.0  # longer than a short network failure
RECHECK_SECONDS = 2.0
STALE_SECONDS = 900.0  # more than clocks differ by: a lock that has not changed for this long is free
POLL_SECONDS = 0.1


@contextlib.contextmanager
def locked(path: str, refusal: str, remedy: str, wait_seconds: float = 0.0) -> Iterator[None]:
    """Holds the lock at a path. It is released when the process ends, however it ends.

    Where the file system has no locks, a line says so, and nothing is locked.

    Args:
        path: the file or object that is the lock. A file stays; its holder may delete it.
        refusal: the first half of the error message: what another process does there.
        remedy: the second half: what to do then.
        wait_seconds: how long to wait for a lock on a disk that another process holds.

    Raises:
        UserError: another process holds it, or it cannot be written.
    """
    if is_local(path):
        with _locked_file(path, f"{refusal}; {remedy}", wait_seconds):
            yield
    else:
        with _locked_object(path, refusal, remedy):
            yield


def is_locked(path: str) -> bool:
    """Returns whether a process of this machine holds the lock at a local path."""
    try:
        with open(path) as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


@contextlib.contextmanager
def _locked_file(path: str, refusal: str, wait_seconds: float) -> Iterator[None]:
    with writing_to(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        descriptor = _lock_file(path, refusal, wait_seconds)
    try:
        yield
    finally:
        os.close(descriptor)


def _lock_file(path: str, refusal: str, wait_seconds: float) -> int:
    deadline = time.monotonic() + wait_seconds
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if is_at(path, descriptor):
                return descriptor
        except BlockingIOError:
            if time.monotonic() >= deadline:
                raise UserError(refusal) from None
            time.sleep(POLL_SECONDS)
        except OSError as error:  # as on NFS without its lock service, Lustre without `-o flock`, some of FUSE
            remedy = "going on without a lock, so start no second process there"
            print(f"{path}: cannot be locked: {error.strerror}; {remedy}", file=sys.stderr, flush=True)
            return descriptor
        os.close(descriptor)


@contextlib.contextmanager
def _locked_object(path: str, refusal: str, remedy: str) -> Iterator[None]:
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
        found = _await_free(path, refusal, remedy)
        with contextlib.suppress(ConflictError):  # another process was faster: check again
            return buckets.replace(path, mine, found.generation)


def _await_free(path: str, refusal: str, remedy: str) -> ObjectState:
    """Returns the state of the lock once it is certain that no process holds it.

    Raises:
        UserError: another process holds it.
    """
    found = buckets.stat(path)
    if found == NO_OBJECT:
        return found
    holder = _holder(path)
    is_alive = _is_alive(holder)
    if is_alive is None and time.time() - found.updated_seconds < STALE_SECONDS:
        print(
            f"{path} is held by {_describe(holder)}; waiting up to {LEASE_SECONDS:.0f} s for a sign of life",
            file=sys.stderr,
            flush=True,
        )
        is_alive = _is_renewed(path, found)
    if is_alive:
        raise UserError(f"{refusal}, {_describe(holder)}; {remedy}")
    return found


def _is_renewed(path: str, found: ObjectState) -> bool:
    """Returns whether the lock changes: a release counts too, because the holder may have changed files before it."""
    deadline = time.monotonic() + LEASE_SECONDS
    while time.monotonic() < deadline:
        time.sleep(RECHECK_SECONDS)
        if buckets.stat(path) != found:
            return True
    return False


def _renew(path: str, generation: int, stop: threading.Event) -> None:
    while not stop.wait(RENEWAL_SECONDS):
        try:
            is_ours = buckets.set_metadata(path, {"renewed": str(time.time_ns())}, generation)
        except BucketError:
            continue  # the lease outlasts a short network failure
        if not is_ours:
            print(f"{path}: another process has taken the lock; this one stops", file=sys.stderr, flush=True)
            os.kill(os.getpid(), signal.SIGTERM)
            return


def _this_process() -> dict[str, object]:
    number = os.getpid()
    return {"host": socket.gethostname(), "machine": _machine(), "process": number, "started": _started(number)}


def _machine() -> str | None:
    """Identifies the boot and the container, within which process ids are comparable; None: unknown."""
    try:
        with open("/proc/sys/kernel/random/boot_id") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/pid')}"
    except OSError:
        return None


def _started(number: object) -> str | None:
    """Returns the start time of a process of this machine; None: it has ended, or never existed."""
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


def _is_alive(holder: dict[str, object]) -> bool | None:
    """Returns whether the holder is running; None: it is on another machine."""
    if _machine() is None or holder.get("machine") != _machine():
        return None
    return holder.get("started") is not None and holder["started"] == _started(holder.get("process"))


def _describe(holder: dict[str, object]) -> str:
    return f"process {holder.get('process', '?')} of {holder.get('host', 'an unknown machine')}"
