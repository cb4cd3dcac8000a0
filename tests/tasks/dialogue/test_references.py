"""The files that people have: one reference a line, all on a line, and DSTC-7's keys."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from configs.errors import DataError
from tasks.dialogue.references import (
    Pairs,
    choose_references,
    clean_pairs,
    read_lines,
    read_pairs,
    read_references,
)
from tests.tasks.dialogue.demo import write

KEYED = ["k1\t0.5|one\t12|uno|ein", "k2\ttwo", "k3\t-1|three\t\t|drei"]


def test_lines_may_end_as_on_windows_and_begin_with_a_mark(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes("\ufeffa\r\nb\u2028c\n\nlast".encode())
    assert list(read_lines(str(tmp_path / "a.txt"))) == ["a", "b\u2028c", "", "last"]


def test_a_file_that_is_not_text_is_named_with_its_line(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_bytes(b"a\n" + gzip.compress(b"b"))
    with pytest.raises(DataError, match=r"a.txt, line 2: is not UTF-8; convert the file to UTF-8"):
        list(read_lines(str(tmp_path / "a.txt")))
    with pytest.raises(DataError, match=r"nowhere.txt: cannot be read \(No such file or directory\)"):
        list(read_lines(str(tmp_path / "nowhere.txt")))


def test_a_file_for_each_reference(tmp_path: Path) -> None:
    hypotheses, *paths = write(tmp_path, hyp=["h", "i"], a=["one", "two"], b=["uno", ""])
    references = read_references(paths)
    assert (references.texts, references.keys) == ([["one", "uno"], ["two", ""]], None)
    assert read_pairs(hypotheses, references, None, None) == Pairs(["h", "i"], references.texts)


def test_all_references_on_a_line_with_or_without_scores(tmp_path: Path) -> None:
    references = read_references(write(tmp_path, refs=KEYED))
    assert references.texts == [["one", "uno|ein"], ["two"], ["three", "|drei"]]
    assert references.keys == ["k1", "k2", "k3"]


def test_pairs_by_line_by_own_keys_and_by_a_file_of_keys(tmp_path: Path) -> None:
    path, in_order, with_keys = write(tmp_path, refs=KEYED, in_order=["a", "b", "c"], keyed=["k3\tx\tc", "k1\t\ta"])
    references = read_references([path])
    assert read_pairs(in_order, references, None, None).references == references.texts
    by_own = read_pairs(with_keys, references, None, None)
    assert (by_own.hypotheses, by_own.references) == (["a", "c"], [["one", "uno|ein"], ["three", "|drei"]])
    by_file = read_pairs(in_order, references, ["k3", "k2", "k1"], None)
    assert by_file.hypotheses == ["c", "b", "a"] and by_file.references == references.texts
    selected = read_pairs(in_order, references, ["k3", "k2", "k1"], ["k3", "k2"])
    assert selected.hypotheses == ["b", "a"] and selected.notes == []


def test_keys_that_occur_twice_are_said(tmp_path: Path) -> None:
    path, answers = write(tmp_path, refs=[*KEYED, "k1\tuno"], answers=["k2\ta", "k1\tb", "k2\tc"])
    found = read_pairs(answers, read_references([path]), None, None)
    assert (found.hypotheses, found.references) == (["b", "c"], [["uno"], ["two"]])
    assert [note.partition(": ")[2] for note in found.notes][1:] == [
        "of 1 of its keys there are several lines, and the last one counts; the first is k2",
        "of 1 of its keys there are several lines, and the last one counts; the first is k1",
    ]


def test_keys_that_one_side_lacks_are_said(tmp_path: Path) -> None:
    path, answers = write(tmp_path, refs=KEYED, answers=["k1\ta", "k9\tb"])
    found = read_pairs(answers, read_references([path]), None, ["k1", "k2", "k9"])
    assert found.hypotheses == ["a"]
    assert [note.partition(": ")[2] for note in found.notes] == [
        "has lines with tabs; the answer is what follows the last one",
        "lacks 1 of 3 keys, which are left out; the first is k2",
        "lacks 1 of 3 keys, which are left out; the first is k9",
    ]


@pytest.mark.parametrize(
    ("files", "line_keys", "selected", "message"),
    [
        (
            {"refs": KEYED, "hyp": ["a", "b"]},
            None,
            None,
            r"hyp.txt = 2 lines: .*refs.txt has 3; give files with a",
        ),
        ({"refs": ["a", "b"], "hyp": ["a"]}, None, None, r"hyp.txt = 1 lines: .*refs.txt has 2; give files"),
        ({"refs": ["a"], "hyp": ["a"]}, ["k"], None, r"refs.txt: has no keys; give one file whose lines are a key and"),
        ({"refs": KEYED, "hyp": ["a"]}, ["k1", "k2"], None, r"--keys = 2 keys: .*hyp.txt has 1 lines; give a key"),
        ({"refs": KEYED, "hyp": ["a"]}, None, ["k1"], r"hyp.txt: its lines have no keys to select by; give .* --keys"),
        (
            {"refs": KEYED, "hyp": ["k7\ta"]},
            None,
            None,
            r"hyp.txt: none of its keys is in .*refs.txt; give the keys",
        ),
    ],
)
def test_files_that_do_not_fit_are_refused(
    tmp_path: Path, files: dict[str, list[str]], line_keys: list[str] | None, selected: list[str] | None, message: str
) -> None:
    references, hypotheses = write(tmp_path, **files)
    with pytest.raises(DataError, match=message):
        read_pairs(hypotheses, read_references([references]), line_keys, selected)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ({"a": ["x", "y"], "b": ["x"]}, r"b.txt = 1 lines: .*a.txt has 2; give files with a line for each context"),
        ({"a": ["", ""], "b": [" ", ""]}, r"a.txt, .*b.txt: without a word; give references"),
        ({"a": ["k\tx", "l\t"]}, r"a.txt, line 2: has no reference after its key; add one, or leave the line out"),
        ({"a": ["k\tx", "l\ty", ""]}, r"a.txt, line 3: has no reference after its key"),
    ],
)
def test_references_that_are_none_are_refused(tmp_path: Path, files: dict[str, list[str]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_references(write(tmp_path, **files))


def test_references_are_left_out_and_repeated_as_in_the_challenge() -> None:
    pairs = Pairs(["h"], [["r0", "r1", "r2"]])
    assert choose_references(pairs, None, 1) == Pairs(["h"], [["r0", "r2"]], ["r1"])
    assert choose_references(pairs, 2, None).references == [["r0", "r1"]]
    assert choose_references(pairs, 5, None).references == [["r0", "r1", "r2", "r0", "r1"]]
    assert choose_references(pairs, 6, 1) == Pairs(["h"], [["r0", "r2", "r2", "r0", "r2", "r2"]], ["r1"])


@pytest.mark.parametrize("human", [0, 1, 5])
def test_the_only_reference_cannot_be_left_out(human: int) -> None:
    message = rf"--human_reference {human + 1}: context 2 has 1 reference\(s\); give the number of a reference that"
    with pytest.raises(DataError, match=message):
        choose_references(Pairs(["h", "i"], [["a"] * 9, ["b"]]), None, human)


def test_all_texts_are_cleaned() -> None:
    pairs = Pairs(["A"], [["B", "C"]], ["D"])
    assert clean_pairs(pairs, str.lower) == Pairs(["a"], [["b", "c"]], ["d"])
