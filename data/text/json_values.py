"""JSON values in a file: one a line, the elements of an array, or written over several lines."""

from __future__ import annotations

import codecs
import itertools
import json
import re
from collections.abc import Iterator
from typing import BinaryIO

MAX_JSON_BYTES = 1 << 27  # of a value, which is held in memory some three times
_PART_BYTES = 1 << 16
_BETWEEN_VALUES = re.compile(r"[\s,]*")


def lines_of(stream: BinaryIO) -> Iterator[tuple[int, bytes | None]]:
    """Yields each line that is not blank with its number, from 1; None for a line of more than `MAX_JSON_BYTES`.

    A byte order mark before the first line is left out.
    """
    for number in itertools.count(1):
        line = stream.readline(MAX_JSON_BYTES + 1)
        if not line:
            return
        line = line.removeprefix(codecs.BOM_UTF8) if number == 1 else line
        if len(line) > MAX_JSON_BYTES:
            _skip_line(stream, line)
            yield number, None
        elif line.strip():
            yield number, line


def _skip_line(stream: BinaryIO, part: bytes) -> None:
    while part and not part.endswith(b"\n"):
        part = stream.readline(1 << 20)


def begins_value(line: bytes) -> bool:
    """Returns whether a line begins a JSON value that goes on in the next one, as pretty-printed JSON does."""
    try:
        json.loads(line.rstrip())
    except json.JSONDecodeError as error:
        return error.pos >= len(error.doc)
    except (ValueError, RecursionError):
        pass
    return False


def values_of(head: bytes, stream: BinaryIO) -> Iterator[object]:
    """Yields the elements of a JSON array, or values that follow one another, holding little more than one in memory.

    Args:
        head: what has been read of the stream already.
        stream: the rest.

    Raises:
        ValueError: a value is damaged or longer than `MAX_JSON_BYTES`, or the array does not end the file.
    """
    parts = _decoded(head, stream)
    buffer = next((part for part in parts if part.strip()), "").lstrip()
    is_array = buffer.startswith("[")
    at, decoder = int(is_array), json.JSONDecoder()
    while True:
        at = _BETWEEN_VALUES.match(buffer, at).end()
        if is_array and buffer.startswith("]", at):
            _check_end(buffer[at + 1 :], parts)
            return
        value, end = _next_value(decoder, buffer, at)
        if end < len(buffer):  # else the value may continue
            yield value
            at = end
            continue
        more = _take(parts, max(_PART_BYTES, len(buffer) - at))
        if not more and not is_array and (at == end or value is not _DAMAGED):
            if at < end:
                yield value
            return
        if not more or len(buffer) - at > MAX_JSON_BYTES:
            raise ValueError(
                f"not JSON, truncated, or longer than {MAX_JSON_BYTES:,} characters, in the value that begins with "
                f"{buffer[at : at + 40]!r}"
            )
        buffer, at = buffer[at:] + more, 0


_DAMAGED = object()


def _next_value(decoder: json.JSONDecoder, buffer: str, at: int) -> tuple[object, int]:
    try:
        return decoder.raw_decode(buffer, at)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except ValueError:
        return _DAMAGED, len(buffer)


def _check_end(rest: str, parts: Iterator[str]) -> None:
    for part in itertools.chain([rest], parts):
        if part.strip():
            raise ValueError(f"there is more after the end of the array: {part.strip()[:40]!r}")


def _decoded(head: bytes, stream: BinaryIO) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    yield decoder.decode(head)
    while part := stream.read(_PART_BYTES):
        yield decoder.decode(part)
    decoder.decode(b"", final=True)


def _take(parts: Iterator[str], n_characters: int) -> str:
    taken, length = [], 0
    for part in parts:
        taken.append(part)
        length += len(part)
        if length >= n_characters:
            break
    return "".join(taken)
