from __future__ import annotations

import json
import math
import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tracking.record.metrics_tail import Line, MetricsTail, NewLines, parse_line


def text_of(step: int, attempt: int = 0) -> bytes:
    return json.dumps({"step": step, "split": "train", "time": 1000 * attempt + step, "loss": 1.0}).encode()


def write(path: Path, *lines: bytes, end: bytes = b"\n") -> None:
    path.write_bytes(b"\n".join(lines) + end)


def append(path: Path, data: bytes) -> None:
    with path.open("ab") as file:
        file.write(data)


def replace(path: Path, *lines: bytes) -> None:
    beside = path.with_name("beside")
    beside.write_bytes(b"".join(line + b"\n" for line in lines))
    os.replace(beside, path)


def test_a_line_is_read_as_it_was_measured() -> None:
    line = parse_line(b'{"step": 3, "split": "eval", "time": 5.5, "loss": "nan", "acc": "-inf", "n": 2}')
    assert (line.split, line.step, line.time_seconds) == ("eval", 3, 5.5)
    assert math.isnan(line.values["loss"]) and line.values["acc"] == -math.inf and line.values["n"] == 2.0
    assert parse_line(b'{"step": 3, "split": "a", "time": 1}') == Line("a", 3, 1.0, {})


def test_metrics_of_earlier_versions_have_their_present_names() -> None:
    line = parse_line(
        b'{"step": 1, "split": "train", "data/skipped_share": 0.25, "moe/h3/dropped": 0.5, "moe/h3/load/0": 1}'
    )
    assert line.values == {"data/skipped_fraction": 0.25, "moe/h3/dropped_fraction": 0.5, "moe/h3/load/0": 1.0}
    assert parse_line(json.dumps({"step": 1, "split": "train", **line.values}).encode()).values == line.values


@pytest.mark.parametrize(
    "text",
    [
        b"",
        b"{",
        b"[]",
        b"3",
        b"\0\0",
        b'{"step": 3}',
        b'{"step": 1, "split": "a", "b": "c"}',
        b'{"step": Infinity, "split": "a"}',
        b'{"step": 1, "split": "a", "time": 1e99}',
    ],
)
def test_invalid_lines_are_skipped(text: bytes) -> None:
    assert parse_line(text) is None


def test_lines_are_returned_once_and_only_when_complete(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    tail = MetricsTail(str(path), skips_existing=False)
    assert not tail.read_new()
    write(path, text_of(1), text_of(2), end=b"")
    assert tail.read_new() == NewLines((text_of(1),), False)
    assert not tail.read_new()
    append(path, b"\n" + text_of(3) + b"\n")
    assert tail.read_new() == NewLines((text_of(2), text_of(3)), False)
    assert not tail.read_new()


def test_a_resumed_run_replaces_all_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *map(text_of, range(1, 9)))
    tail = MetricsTail(str(path), skips_existing=False)
    assert len(tail.read_new().lines) == 8
    replace(path, *map(text_of, range(1, 6)))
    append(path, text_of(6, attempt=1) + b"\n")
    assert tail.read_new() == NewLines((*map(text_of, range(1, 6)), text_of(6, attempt=1)), True)
    assert not tail.read_new()


def test_the_new_file_may_be_longer_than_the_old_one(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *map(text_of, range(1, 9)))
    tail = MetricsTail(str(path), skips_existing=False)
    tail.read_new()
    new = [*map(text_of, range(1, 6)), *(text_of(step, attempt=1) for step in range(6, 30))]
    replace(path, *new)
    assert tail.read_new() == NewLines(tuple(new), True)


def test_lines_of_an_earlier_run_are_skipped_also_in_a_replaced_file(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    write(path, *map(text_of, range(1, 9)))
    tail = MetricsTail(str(path), skips_existing=True)
    assert not tail.read_new()
    new = [text_of(step, attempt=1) for step in (6, 7)]
    replace(path, *map(text_of, range(1, 6)), *new)
    assert tail.read_new() == NewLines(tuple(new), True)
    path.unlink()
    assert tail.read_new() == NewLines((), True)
    write(path, text_of(1, attempt=2))
    assert tail.read_new() == NewLines((text_of(1, attempt=2),), False)


ACTIONS = st.lists(
    st.one_of(st.tuples(st.just("add"), st.integers(1, 5)), st.tuples(st.just("redo"), st.integers(0, 30)))
)


@given(actions=ACTIONS, reads=st.lists(st.booleans(), min_size=40, max_size=40))
def test_returned_lines_are_those_of_the_file(
    tmp_path_factory: pytest.TempPathFactory, actions: list, reads: list
) -> None:
    path = tmp_path_factory.mktemp("tail") / "metrics.jsonl"
    tail, returned, lines = MetricsTail(str(path), skips_existing=False), [], []
    for number, ((what, n), is_read) in enumerate(zip(actions, reads, strict=False), start=1):
        if what == "add":
            lines += [text_of(len(lines) + 1 + i, attempt=number) for i in range(n)]
            replace(path, *lines) if not path.exists() else append(path, b"\n".join(lines[-n:]) + b"\n")
        else:
            lines = lines[:n]
            replace(path, *lines)
        if is_read or number == len(actions):
            new = tail.read_new()
            returned = [*([] if new.replaces_all else returned), *new.lines]
            assert returned == lines
