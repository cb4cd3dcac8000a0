"""Finding source files on a disk."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from configs.errors import DataError
from data.text.files import ReadingNotes, SourceFile, find_files

REPOSITORY = Path(__file__).resolve().parents[3]


def make_tree(root: Path) -> None:
    names = ["b2.txt", "b10.txt", "a/z.py", "a/test/t.py", "a/notes.xyz", ".hidden.txt", ".git/x.txt", "test/u.py"]
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(name)


def found(sources: list[str], **settings: object) -> list[str]:
    return [file.relative for file in find_files(sources, **settings)]


def test_a_directory_is_read_with_all_below_it_in_natural_order(tmp_path):
    make_tree(tmp_path)
    assert found([str(tmp_path)]) == ["a/test/t.py", "a/z.py", "b2.txt", "b10.txt", "test/u.py"]
    assert found([str(tmp_path)], suffixes=(".txt",)) == ["b2.txt", "b10.txt"]


def test_patterns_leave_files_out(tmp_path):
    make_tree(tmp_path)
    assert found([str(tmp_path)], exclude=["test/*"]) == ["a/test/t.py", "a/z.py", "b2.txt", "b10.txt"]
    assert found([str(tmp_path)], exclude=["*/test/*", "*2.txt"]) == ["a/z.py", "b10.txt", "test/u.py"]


def test_a_glob_takes_any_suffix_and_keeps_the_path_below_its_fixed_part(tmp_path):
    make_tree(tmp_path)
    assert found([f"{tmp_path}/a/*"]) == ["notes.xyz", "z.py"]
    assert found([f"{tmp_path}/**/*.py"]) == ["a/test/t.py", "a/z.py", "test/u.py"]
    assert found([f"{tmp_path}/b2.txt"]) == ["b2.txt"]


def test_a_file_named_twice_is_read_once(tmp_path):
    make_tree(tmp_path)
    assert found([f"{tmp_path}/b2.txt", f"{tmp_path}/*.txt"]) == ["b2.txt", "b10.txt"]


def test_a_source_without_files_is_named(tmp_path):
    os.mkdir(tmp_path / "empty")
    with pytest.raises(DataError) as error:
        find_files([f"{tmp_path}/empty"], suffixes=(".txt", ".py"))
    assert str(error.value) == (
        f"{tmp_path}/empty: no file ending in .txt .py found; name a directory, a glob or a file that has text"
    )
    with pytest.raises(DataError) as error:
        find_files([f"{tmp_path}/*.txt"], exclude=["a/*"])
    assert str(error.value) == (
        f"{tmp_path}/*.txt: no file found outside a/*; name a directory, a glob or a file that has text"
    )


BAD_FILES = {
    "broken.txt": (lambda path: path.symlink_to("none"), "a link to nothing"),
    "lost_folder": (lambda path: path.symlink_to("none"), "a link to nothing"),
    "pipe.jsonl": (os.mkfifo, "a pipe, a socket or a device; write its text to a file"),
}


@pytest.mark.parametrize("name", BAD_FILES)
@pytest.mark.parametrize("source", ["{tmp}", "{tmp}/*", "{tmp}/**/*", "{tmp}/{name}"])
def test_a_file_that_cannot_be_read_is_an_error_or_counted(tmp_path, name, source):
    make, problem = BAD_FILES[name]
    (tmp_path / "a.txt").write_text("text")
    (tmp_path / "link.txt").symlink_to(tmp_path / "a.txt")
    make(tmp_path / name)
    sources = [str(tmp_path / "a.txt"), source.format(tmp=tmp_path, name=name)]
    with pytest.raises(DataError) as error:
        find_files(sources)
    assert str(error.value) == (
        f"{tmp_path}/{name}: cannot be read ({problem}); replace the file, or leave it out; on_bad_file = skip counts "
        "such files"
    )
    if source != "{tmp}/{name}":
        notes = ReadingNotes()
        found = find_files(sources, on_bad_file="skip", notes=notes)
        assert [file.relative for file in found] == ["a.txt", "link.txt"]
        assert notes.lines() == [f"left out 1 file(s) that cannot be read: {name} ({problem})"]
    else:
        with pytest.raises(DataError) as error:
            find_files(sources, on_bad_file="skip")
        assert str(error.value) == (
            f"{tmp_path}/{name}: no file there can be read, such as {name} ({problem}); replace the files"
        )


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("**/*", ["a.txt"]),
        ("**", ["a.txt"]),
        ("*", ["a.txt"]),
        ("**/*.txt", ["a.txt"]),
        ("**/.git/*", ["sub/.git/c"]),
        ("**/__MACOSX/*", ["__MACOSX/b.txt"]),
        ("__MACOSX/*", ["b.txt"]),
    ],
)
def test_a_glob_matches_what_is_hidden_only_where_it_says_so(tmp_path, source, expected):
    for name in ("a.txt", "__MACOSX/b.txt", "sub/.git/c", ".hidden.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [file.relative for file in find_files([f"{tmp_path}/{source}"])] == expected


def test_what_a_folder_has_besides_texts_is_counted_by_suffix(tmp_path):
    make_tree(tmp_path)
    for name in ("a.PDF", "b.pdf", "README", "__MACOSX/._b.txt", "broken.pdf", "A.TXT", "b.JsonL", "c.Json"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    with open(os.fsencode(tmp_path) + b"/x.caf\xe9", "wb"):
        notes = ReadingNotes()
    files = find_files([str(tmp_path)], notes=notes)
    assert {"A.TXT", "b.JsonL", "c.Json"} < {file.relative for file in files}
    assert notes.lines() == [
        "passed over: 3 hidden, 3 .pdf, 1 without suffix, 1 .caf\\udce9, 1 .xyz; a glob reads files of any suffix"
    ]


@pytest.mark.parametrize("source", ["/", "//", "/**/*", "/**", "/./**/*.txt", "/proc", "/proc/**/*", "/sys/**", "/dev"])
def test_a_search_without_end_is_refused(source):
    with pytest.raises(DataError, match=r"^\S+: searches all of /\w*; name the folder that holds the texts$"):
        find_files([source])


def test_a_link_to_the_whole_machine_is_refused(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "root").symlink_to("/")
    for source in (str(tmp_path), f"{tmp_path}/**/*.py"):
        with pytest.raises(DataError, match="searches all of /; name the folder"):
            find_files([source])


def test_a_glob_ends_where_links_lead_in_circles(tmp_path):
    make_tree(tmp_path)
    for name in ("up", "a/up", "test/up"):
        (tmp_path / name).symlink_to(tmp_path)
    assert found([f"{tmp_path}/**/*.py"]) == ["a/test/t.py", "a/z.py", "test/u.py"]
    assert found([f"{tmp_path}/**/test/*"]) == ["a/test/t.py", "test/u.py"]
    assert found([f"{tmp_path}/**"]) == ["a/notes.xyz", "a/test/t.py", "a/z.py", "b2.txt", "b10.txt", "test/u.py"]
    assert found([f"{tmp_path}/**/.git/*"]) == [".git/x.txt"]


def test_links_to_folders_are_followed_and_no_folder_is_read_twice(tmp_path):
    make_tree(tmp_path / "texts")
    (tmp_path / "elsewhere" / "deeper").mkdir(parents=True)
    (tmp_path / "elsewhere" / "deeper" / "e.txt").write_text("e")
    (tmp_path / "texts" / "link").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "texts" / "a" / "up").symlink_to("..")
    (tmp_path / "texts" / "a" / "again").symlink_to("../test")
    expected = ["a/test/t.py", "a/z.py", "b2.txt", "b10.txt", "link/deeper/e.txt", "test/u.py"]
    assert found([f"{tmp_path}/texts"]) == expected


WITHOUT_RIGHTS = """
import sys
from configs.errors import DataError
from data.text.files import find_files

try:
    find_files(sys.argv[1:])
except DataError as error:
    print(error)
"""


@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="this user may read everything")
def test_an_unreadable_folder_is_an_error(tmp_path):
    make_tree(tmp_path)
    (tmp_path / "a").chmod(0)
    command = [sys.executable, "-c", WITHOUT_RIGHTS, str(tmp_path)]
    if os.getuid() == 0:
        taken = "-dac_override,-dac_read_search"
        command = ["setpriv", f"--bounding-set={taken}", f"--inh-caps={taken}", *command]
    try:
        result = subprocess.run(command, cwd=REPOSITORY, capture_output=True, text=True)
    finally:
        (tmp_path / "a").chmod(0o755)
    assert result.stdout.startswith(f"{tmp_path}/a: cannot be read ("), result.stderr


def test_a_file_named_outright_may_have_the_characters_of_a_glob(tmp_path):
    for name in ("a[1].txt", "a1.txt"):
        (tmp_path / name).write_text(name)
    assert found([f"{tmp_path}/a[1].txt"]) == ["a[1].txt"]
    assert found([f"{tmp_path}/a?.txt"]) == ["a1.txt"]


def test_a_deleted_file_is_named(tmp_path):
    with pytest.raises(DataError, match=f"{tmp_path}/a.txt: cannot be read .*; replace the file, or leave it out"):
        SourceFile(f"{tmp_path}/a.txt", "a.txt").state()
