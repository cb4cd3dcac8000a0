"""Files of tasks: finding one, and reading its rows."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from typing import Any

from configs.errors import DataError, ValueIssue, looked_from
from configs.reader import shown
from data.text.files import cannot_read, open_source
from storage.files import exists, is_local
from tasks.rows import Row

JSON_SUFFIXES = (".jsonl", ".ndjson", ".json")
TABLE_SUFFIXES = (".parquet", ".arrow")
TEXT_SUFFIXES = (".txt", ".raw", ".tokens")
ROW_SUFFIXES = JSON_SUFFIXES + TABLE_SUFFIXES


def find_file(folder: str, file: str, remedy: str) -> str:
    """Returns the path of a task's file: below the folder of tasks, or else as it is given.

    The same file in another format, such as piqa.parquet for piqa.jsonl, is found as well.

    Raises:
        DataError: there is none; the message ends with the remedy.
    """
    below = os.path.join(folder, file) if is_local(file) else file
    paths = dict.fromkeys([below, file])
    stems = [(path, *os.path.splitext(path)) for path in paths]
    others = [stem + other for _, stem, suffix in stems for other in ROW_SUFFIXES if suffix in ROW_SUFFIXES]
    if found := next((path for path in [*paths, *others] if exists(path)), None):
        return found
    raise DataError(f"{below}: is not there, nor as {', '.join(ROW_SUFFIXES)}{looked_from(below)}; {remedy}")


def read_rows(path: str) -> Iterator[Row]:
    """Yields the rows of a file: JSON lines, a table of Arrow or Parquet, or plain text, which is one row.

    Raises:
        DataError: it cannot be read.
    """
    suffix = os.path.splitext(path)[1].lower()
    if suffix in JSON_SUFFIXES:
        yield from _json_rows(path)
    elif suffix in TABLE_SUFFIXES:
        yield from _table_rows(path, suffix)
    elif suffix in TEXT_SUFFIXES:
        text = "".join(line for _, line in _lines(path))
        yield Row(path, 1, {"text": text})
    elif os.path.isdir(path):
        raise DataError(f"{path}: is a folder; give a file in it")
    else:
        known = ", ".join(ROW_SUFFIXES + TEXT_SUFFIXES)
        raise DataError(f"{path}: its suffix does not say what it holds; unpack it, or rename it to one of {known}")


def _lines(path: str) -> Iterator[tuple[int, str]]:
    """Yields the number and the text of each line, with its end."""
    number = 0
    try:
        with open_source(path) as file:
            for number, line in enumerate(file, start=1):
                text = line.decode("utf-8")
                yield number, text.removeprefix("\ufeff") if number == 1 else text
    except UnicodeDecodeError as error:
        found = f"byte {error.start + 1} is {error.object[error.start]:#04x}"
        raise DataError(f"{path}: line {number}: is not UTF-8 ({found}); convert the file to UTF-8") from None
    except OSError as error:
        raise cannot_read(path, error) from error


def _json_rows(path: str) -> Iterator[Row]:
    for number, line in _lines(path):
        if not line.strip():
            continue
        try:
            values = json.loads(line.rstrip(), object_pairs_hook=_unique_keys)
        except json.JSONDecodeError as error:
            problem = f"line {number}, column {error.colno}: is not JSON ({error.msg})"
            raise DataError(f"{path}: {problem}; write one object a line") from None
        except ValueIssue as issue:
            raise DataError(f"{path}: line {number}: {issue}") from None
        except (ValueError, RecursionError):  # of more digits, or brackets, than Python reads
            problem = f"line {number}: has a number that is too long, or too many brackets"
            raise DataError(f"{path}: {problem}; write one object a line") from None
        if not isinstance(values, dict):
            kind = "a list" if isinstance(values, list) else shown(values)
            raise DataError(f"{path}: line {number}: is {kind}, no object; write one object a line")
        yield Row(path, number, values)


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueIssue(f"{shown(twice)} is given twice", "keep one of the two")
    return values


def _table_rows(path: str, suffix: str) -> Iterator[Row]:
    number = 0
    for batch in _batches(path, suffix):
        for values in _values_of(batch, path, number):
            number += 1
            yield Row(path, number, values)


def _values_of(batch: Any, path: str, n_before: int) -> list[dict[str, Any]]:
    place = f"{path}: lines {n_before + 1:,} to {n_before + batch.num_rows:,}"
    try:
        _unique_keys([(name, None) for name in batch.schema.names])
        return batch.to_pylist()
    except ValueIssue as issue:
        raise DataError(f"{place}: {issue}") from None
    except (ValueError, OverflowError) as error:  # bytes that are not UTF-8, a time that Python has not
        raise DataError(f"{place}: hold a value that cannot be read ({error}); replace the file") from None


def _batches(path: str, suffix: str) -> Iterator[Any]:
    try:
        import pyarrow
        from pyarrow import ipc, parquet
    except ImportError:
        raise DataError(
            f"{path}: needs pyarrow, which is not installed; pip install -r requirements-tasks.txt, "
            "or give the same rows as JSON lines"
        ) from None
    try:
        with open_source(path) as file:
            if suffix == ".parquet":
                yield from parquet.ParquetFile(file).iter_batches()
            else:
                yield from _arrow_batches(file, ipc)
    except (OSError, pyarrow.ArrowException) as error:
        raise cannot_read(path, error) from None


def _arrow_batches(file: Any, ipc: Any) -> Iterator[Any]:
    """Yields the batches of Arrow's file format, or of its stream format, which the library datasets writes."""
    is_file = file.read(6) == b"ARROW1"
    file.seek(0)
    if not is_file:
        yield from ipc.open_stream(file)
        return
    reader = ipc.open_file(file)
    yield from (reader.get_batch(number) for number in range(reader.num_record_batches))
