"""Downloads of published files over HTTP: resumed, verified, and whole at their path or not there."""

from __future__ import annotations

import hashlib
import http.client
import os
import re
import urllib.error
import urllib.request
from collections.abc import Callable

from configs.errors import DataError, UserError
from storage.files import flush_to_disk, writing_to

PART = ".part"
CHUNK_BYTES = 1 << 18
TIMEOUT_SECONDS = 60.0  # without a byte
ATTEMPTS = 3  # of a connection that ends early
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-\d+/(\d{1,18})", re.ASCII)
LENGTH = re.compile(r"\d{1,18}", re.ASCII)

# Is told how many bytes of a file are there, and of how many; 0: unknown.
Show = Callable[[int, int], None]


class UnreachableError(UserError):
    """A server cannot be reached."""


def checksum_of(path: str, kind: str) -> str:
    """Returns the checksum of a file, as `sha256:...` or `git:...`.

    Args:
        path: a local file.
        kind: "sha256", or "git": the name that git gives to a file of this content.
    """
    if kind == "git":
        digest = hashlib.sha1(b"blob %d\0" % os.path.getsize(path), usedforsecurity=False)
    else:
        digest = hashlib.sha256()
    with open(path, "rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            digest.update(chunk)
    return f"{kind}:{digest.hexdigest()}"


def has_checksum(path: str, checksum: str) -> bool:
    """Returns whether a local file has a checksum of `checksum_of`."""
    return checksum_of(path, checksum.partition(":")[0]) == checksum


def download(url: str, path: str, checksum: str, show: Show) -> None:
    """Downloads a file, which is at its path whole or not at all; makes its folder.

    What has arrived of it lies beside it until it is whole, and the next call asks the server for the rest.

    Args:
        url: where it is published.
        path: a local path.
        checksum: what `checksum_of` must return for it.
        show: is told of the progress.

    Raises:
        UnreachableError: there is no connection to the server.
        DataError: the server does not have the file, or has another one.
        UserError: the connection ended early, or the file cannot be written.
    """
    part = f"{path}{PART}"
    with writing_to(path):
        os.makedirs(os.path.dirname(path) or ".", exist_ok=True)
        was_begun = os.path.exists(part)
        _fill(part, url, show)
        if was_begun and not has_checksum(part, checksum):  # it was begun with another file's bytes
            os.remove(part)
            _fill(part, url, show)
        if not has_checksum(part, checksum):
            os.remove(part)
            raise DataError(f"{url}: is not the published file, whose checksum is {checksum}; get it from elsewhere")
        flush_to_disk(part)
        os.replace(part, path)
        flush_to_disk(os.path.dirname(path) or ".")


def _fill(part: str, url: str, show: Show) -> None:
    """Appends to a file what the server has more of it."""
    for _ in range(ATTEMPTS):
        n_bytes = _fill_once(part, url, show)
        if (n_there := os.path.getsize(part)) >= n_bytes:
            return
    raise UserError(
        f"{url}: the connection ended after {n_there:,} of {n_bytes:,} bytes; run the same command again to go on"
    )


def _fill_once(part: str, url: str, show: Show) -> int:
    """Appends until the connection ends; returns the bytes of the whole file, 0 if the server does not say."""
    n_there = os.path.getsize(part) if os.path.exists(part) else 0
    with _request(url, n_there) as response, open(part, "r+b" if n_there else "wb") as file:
        begin, n_bytes = _range_of(response)
        if begin not in (0, n_there):
            raise DataError(f"{url}: the server answers with another part than was asked for; get it from elsewhere")
        file.seek(begin)
        file.truncate()
        try:
            while chunk := response.read1(CHUNK_BYTES):
                file.write(chunk)
                show(file.tell(), n_bytes)
        except (http.client.HTTPException, ConnectionError, TimeoutError):
            n_bytes = n_bytes or file.tell() + 1  # there is more
    return n_bytes


def _range_of(response: http.client.HTTPResponse) -> tuple[int, int]:
    """Returns where an answer begins in the file, and the bytes of the whole file, 0 if unknown."""
    if found := CONTENT_RANGE.fullmatch(response.headers.get("Content-Range", "")):
        return int(found[1]), int(found[2])
    length = response.headers.get("Content-Length", "")
    return 0, int(length) if LENGTH.fullmatch(length) else 0


def _request(url: str, n_there: int) -> http.client.HTTPResponse:
    """Requests a file from byte `n_there` on; all of it if the server has no more than that."""
    headers = {"Range": f"bytes={n_there}-"} if n_there else {}
    try:
        return urllib.request.urlopen(urllib.request.Request(url, headers=headers), timeout=TIMEOUT_SECONDS)
    except urllib.error.HTTPError as error:
        if n_there and error.code == http.HTTPStatus.REQUESTED_RANGE_NOT_SATISFIABLE:
            return _request(url, 0)
        raise DataError(f"{url}: the server answers {error.code} {_first_line(error.reason)}; try later") from None
    except (OSError, http.client.HTTPException) as error:
        reason = getattr(error, "reason", error)
        raise UnreachableError(f"{url}: cannot be reached: {_first_line(reason)}") from None


def _first_line(reason: object) -> str:
    return str(reason).strip().partition("\n")[0]
