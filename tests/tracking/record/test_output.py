from __future__ import annotations

import threading
from pathlib import Path

from tracking.record.output import KEPT_BYTES, LIMIT_BYTES, CapturedOutput, shortened


def test_output_is_kept(tmp_path: Path) -> None:
    output = CapturedOutput(tmp_path / "cout.txt")
    output.append(b"one\ntwo\n")
    output.append("d\N{EURO SIGN}i\n\n".encode())
    assert output.path.read_text() == "one\ntwo\nd\N{EURO SIGN}i\n\n"
    assert output.last_lines(2) == ["two", "d\N{EURO SIGN}i"]


def test_long_output_keeps_its_beginning_and_end(tmp_path: Path) -> None:
    output = CapturedOutput(tmp_path / "cout.txt")
    lines = [f"line {number:010}\n".encode() for number in range(2_000_000)]
    for start in range(0, len(lines), 5000):
        output.append(b"".join(lines[start : start + 5000]))
    content = output.path.read_bytes()
    assert 2 * KEPT_BYTES < len(content) <= LIMIT_BYTES
    assert content.startswith(b"".join(lines[:1000])) and content.endswith(b"".join(lines[-1000:]))
    note = content.splitlines()[KEPT_BYTES // 16 + 1].split()
    n_left_out = int(note[1])
    assert len(content) + n_left_out == 16 * len(lines) + len(output._note())


def test_several_threads_may_append_at_once(tmp_path: Path) -> None:
    output = CapturedOutput(tmp_path / "cout.txt")
    threads = [threading.Thread(target=lambda: [output.append(b"abc\n") for _ in range(200)]) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert output.path.read_bytes() == b"abc\n" * 1600


def test_a_full_disk_raises_no_error(tmp_path: Path) -> None:
    output = CapturedOutput(tmp_path / "cout.txt")
    output.path.unlink()
    output.path.mkdir()
    output.append(b"lost")
    assert output.last_lines(3) == []


def test_a_text_is_shown_whole_or_without_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "text"
    assert shortened(path, 10) == ""
    path.write_text("0123456789")
    assert shortened(path, 10) == "0123456789"
    path.write_text("0123456789" * 3)
    assert shortened(path, 10) == "01234\n[... 20 bytes are left out here ...]\n56789"
