"""Loading tasks: the forms of files, few-shot examples, and what is said of files that are wrong."""

from __future__ import annotations

import io
import json
import os
import re
import threading
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from configs.errors import ConfigError, DataError
from configs.schema import EVAL_TASKS
from tasks.load import load_task
from tasks.table import TASKS, make_task
from tasks.task import CONTINUATION, DIALOGUE, MULTIPLE_CHOICE, ROLLING, Exchange, Question, Task, Text
from tests.tasks.published_rows import ROWS

QUERY = {"query": "Q", "choices": ["a", "b"], "gold": 1}
ARC = ROWS["arc_easy"][0]


def write(folder: Path, *rows: Mapping[str, Any], name: str = "mine.jsonl") -> Path:
    (folder / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def load(folder: Path, kind: str = MULTIPLE_CHOICE, **settings: Any) -> list[Any]:
    return list(load_task(Task("mine", kind, "mine.jsonl", **settings), str(folder)).items)


@pytest.mark.parametrize(
    ("row", "pairs"),
    [
        (QUERY, [("Q", " a"), ("Q", " b")]),
        (QUERY | {"query": "Q "}, [("Q ", "a"), ("Q ", "b")]),
        (QUERY | {"query": "Q\n"}, [("Q\n", " a"), ("Q\n", " b")]),
        (QUERY | {"choices": [" a", " b"]}, [("Q", " a"), ("Q", " b")]),
        ({"context_options": ["A", "B"], "continuation": "c", "gold": 0}, [("A", " c"), ("B", " c")]),
        ({"context_options": ["A ", "B "], "continuation": "c", "gold": 0}, [("A ", "c"), ("B ", "c")]),
    ],
)
def test_fields_stand_as_they_are_with_a_blank_between(tmp_path: Path, row: dict[str, Any], pairs: Any) -> None:
    (item,) = load(write(tmp_path, row))
    assert (item.pairs, item.gold) == (pairs, row["gold"])


def test_answers_to_boolq_are_labels_or_true_and_false(tmp_path: Path) -> None:
    rows = [{"passage": "P", "question": "q", "answer": answer} for answer in (False, True)]
    assert [(item.choices, item.gold) for item in load(write(tmp_path, *rows))] == [
        (("no", "yes"), 0),
        (("no", "yes"), 1),
    ]


def test_the_cue_of_a_task_follows_the_query(tmp_path: Path) -> None:
    (item,) = load_task(
        replace(TASKS["piqa"], file="mine.jsonl"), str(write(tmp_path, QUERY | {"query": "Q: x\n"}))
    ).items
    assert item.pairs == [("Q: x\nAnswer:", " a"), ("Q: x\nAnswer:", " b")]


def test_the_cue_of_a_config_stands_as_it_is_and_may_be_none(tmp_path: Path) -> None:
    folder = str(write(tmp_path, QUERY | {"query": "Q\n"}, name="piqa.jsonl"))
    for cue, context in (("\nA:", "Q\nA:"), (" =>", "Q =>"), ("", "Q\n")):
        (entry,) = EVAL_TASKS.parse([{"name": "piqa", "cue": cue}])
        (item,) = load_task(make_task({"name": entry.name, "cue": entry.cue}), folder).items
        assert item.contexts == (context,)


@pytest.mark.parametrize(
    ("context", "word"), [("Once upon a", "time"), ("Once upon a ", "time"), ("Once upon a", " time")]
)
def test_a_context_and_its_continuation(tmp_path: Path, context: str, word: str) -> None:
    (item,) = load(write(tmp_path, {"context": context, "continuation": word}), CONTINUATION)
    ((before, after),) = item.pairs
    assert (before, before + after) == (context, "Once upon a time")


def test_texts_and_files_of_text(tmp_path: Path) -> None:
    (tmp_path / "book.txt").write_bytes("\ufeffOne\r\n\n two\n".encode())
    (item,) = load_task(Task("book", ROLLING, "book.txt"), str(tmp_path)).items
    assert item == Text("One\r\n\n two\n", "One\r\n\n two\n")
    assert load(write(tmp_path, {"text": "a"}, {"text": "b"}), ROLLING) == [Text("a", "a"), Text("b", "b")]


def test_exchanges_as_json_and_as_lines_with_tabs(tmp_path: Path) -> None:
    expected = [Exchange(("hi", "how are you ?"), ("fine", "well")), Exchange(("bye",), ("see you",))]
    rows = [{"context": item.turns, "references": item.references} for item in expected]
    assert load(write(tmp_path, rows[0], {"context": "bye", "references": ["see you"]}), DIALOGUE) == expected
    for name in ("test.tsv", "TEST.TSV"):
        (tmp_path / name).write_text("hi EOS how are you ?\tfine\twell\nbye\tsee you\n")
        assert list(load_task(Task("d", DIALOGUE, name), str(tmp_path)).items) == expected


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("\tfine", "context: is empty; give a text"),
        ("hi EOS  EOS well\tfine", "context[1]: is empty; give a text"),
    ],
)
def test_a_line_without_a_turn_is_named(tmp_path: Path, line: str, message: str) -> None:
    (tmp_path / "test.tsv").write_text(f"hi\tfine\n{line}\n")
    with pytest.raises(DataError, match=re.escape(f"test.tsv: line 2: {message}")):
        load_task(Task("d", DIALOGUE, "test.tsv"), str(tmp_path))


def test_examples_are_the_first_other_items_of_the_file(tmp_path: Path) -> None:
    rows = [QUERY | {"query": f"Q{number}", "gold": number % 2} for number in range(4)]
    first, *_, last = load(write(tmp_path, *rows), n_shot=2, description="Choose.\n\n")
    assert last.contexts == ("Choose.\n\nQ0 a\n\nQ1 b\n\nQ3",)
    assert first.contexts == ("Choose.\n\nQ1 b\n\nQ2 a\n\nQ0",)


def test_examples_of_a_file_and_of_the_subject(tmp_path: Path) -> None:
    rows = [{"question": f"q{n}", "choices": [*"wxyz"], "answer": n, "subject": "ab"[n % 2] + "_c"} for n in range(4)]
    write(tmp_path, *rows, name="dev.jsonl")
    items = load(
        write(tmp_path, rows[1] | {"question": "new"}), n_shot=2, fewshot_file="dev.jsonl", description="{subject}: "
    )
    options = "\nA. w\nB. x\nC. y\nD. z\nAnswer:"
    assert items[0].contexts == (f"b c: q1{options} B\n\nq3{options} D\n\nnew{options}",)


def test_contexts_that_compete_have_the_right_one_in_examples(tmp_path: Path) -> None:
    rows = [{"context_options": [f"A{n}", f"B{n}"], "continuation": "c", "gold": 1} for n in range(2)]
    assert load(write(tmp_path, *rows), n_shot=1)[1].contexts == ("B0 c\n\nA1", "B0 c\n\nB1")


def test_the_first_items_up_to_the_limit(tmp_path: Path) -> None:
    folder = write(tmp_path, *(QUERY | {"query": f"Q{number}"} for number in range(5)), {"broken": 1})
    assert [item.contexts[0] for item in load(folder, limit=3)] == ["Q0", "Q1", "Q2"]


def test_a_file_is_found_below_the_folder_or_where_it_is_or_in_another_format(tmp_path: Path) -> None:
    path = str(write(tmp_path, QUERY) / "mine.jsonl")
    assert load_task(Task("mine", MULTIPLE_CHOICE, path), "elsewhere").path == path
    assert load_task(Task("mine", MULTIPLE_CHOICE, "mine.parquet"), str(tmp_path)).path == path
    with pytest.raises(
        DataError, match=r"nowhere/piqa.jsonl: is not there, nor as .jsonl, .*fetch it with --fetch_tasks piqa"
    ):
        load_task(TASKS["piqa"], "/nowhere")
    with pytest.raises(DataError, match=r"nowhere/own.jsonl: is not there, nor as .jsonl, .*or give its path$"):
        load_task(replace(TASKS["piqa"], file="own.jsonl"), "/nowhere")


def test_a_file_in_a_bucket_is_found_beside_a_local_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = "gs://bucket/mine.jsonl"
    monkeypatch.setattr("tasks.files.exists", lambda asked: asked == path)
    monkeypatch.setattr("tasks.files.open_source", lambda asked: io.BytesIO(json.dumps(QUERY).encode()))
    assert load_task(Task("mine", MULTIPLE_CHOICE, path), str(tmp_path)).path == path
    monkeypatch.setattr("tasks.files.exists", lambda asked: False)
    with pytest.raises(DataError, match=rf"^{path}: is not there, nor as"):
        load_task(Task("mine", MULTIPLE_CHOICE, path), str(tmp_path))


@pytest.mark.parametrize("suffix", ["parquet", "arrow", "stream.arrow"])
def test_tables_hold_the_same_items(tmp_path: Path, suffix: str) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install -r requirements-tasks.txt")
    from pyarrow import parquet

    rows = ROWS["arc_easy"]
    table, path = pyarrow.Table.from_pylist(rows), tmp_path / f"arc.{suffix}"
    if suffix == "parquet":
        parquet.write_table(table, path, row_group_size=2)
    else:
        new = pyarrow.ipc.new_stream if suffix.startswith("stream") else pyarrow.ipc.new_file
        with new(path, table.schema) as writer:
            writer.write_table(table, max_chunksize=2)
    items = load_task(Task("arc", MULTIPLE_CHOICE, path.name), str(tmp_path)).items
    assert items == tuple(load(write(tmp_path, *rows)))
    assert [item.line for item in items] == [1, 2, 3]


def test_without_pyarrow_one_line_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(__import__("sys").modules, "pyarrow", None)
    (tmp_path / "mine.parquet").write_bytes(b"PAR1")
    with pytest.raises(DataError, match=r"mine.parquet: needs pyarrow, which is not installed; pip install -r require"):
        load(tmp_path)


@pytest.mark.parametrize("suffix", ["parquet", "arrow"])
def test_a_broken_table_is_named(tmp_path: Path, suffix: str) -> None:
    pytest.importorskip("pyarrow", reason="pip install -r requirements-tasks.txt")
    (tmp_path / f"mine.{suffix}").write_bytes(b"ARROW1 or not")
    with pytest.raises(DataError, match=rf"mine.{suffix}: cannot be read \(.*\); replace the file"):
        load(tmp_path)


def test_tables_with_values_that_cannot_be_read(tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow", reason="pip install -r requirements-tasks.txt")
    from pyarrow import parquet

    ends, content = (pyarrow.py_buffer(each) for each in (bytes([0, 0, 0, 0, 1, 0, 0, 0]), b"\xff"))
    no_utf8 = pyarrow.Array.from_buffers(pyarrow.string(), 1, [None, ends, content])
    parquet.write_table(pyarrow.table({"query": no_utf8}), tmp_path / "mine.parquet")
    with pytest.raises(
        DataError, match=r"mine.parquet: lines 1 to 1: hold a value that cannot be read \('utf-8' codec"
    ):
        load(tmp_path)
    twice = pyarrow.table([pyarrow.array(["Q"]), pyarrow.array(["R"])], names=["query", "query"])
    parquet.write_table(twice, tmp_path / "mine.parquet")
    with pytest.raises(DataError, match=r'mine.parquet: lines 1 to 1: "query" is given twice; keep one of the two'):
        load(tmp_path)
    parquet.write_table(pyarrow.table({"query": ["Q"], "choices": [["a", "b"]]}), tmp_path / "mine.parquet")
    content = bytearray((tmp_path / "mine.parquet").read_bytes())
    content[30:60] = b"\xff" * 30
    (tmp_path / "mine.parquet").write_bytes(content)
    with pytest.raises(DataError, match=r"mine.parquet: cannot be read \([^\n]*\); replace the file, or leave it out$"):
        load(tmp_path)


MALFORMED: dict[str, tuple[str, Any, str]] = {
    "no JSON": (MULTIPLE_CHOICE, b'{"query": "Q", ', "line 2, column 15: is not JSON (Expecting property name"),
    "no object": (MULTIPLE_CHOICE, ["Q"], "line 2: is a list, no object; write one object a line"),
    "a number": (MULTIPLE_CHOICE, 5, "line 2: is 5, no object; write one object a line"),
    "no UTF-8": (MULTIPLE_CHOICE, b'{"query": "\xff"}', "line 2: is not UTF-8 (byte 12 is 0xff); convert the file"),
    "half a character": (
        MULTIPLE_CHOICE,
        b'{"query": "\\ud83d", "choices": ["a", "b"], "gold": 0}',
        "line 2: query: has half",
    ),
    "unknown fields": (
        MULTIPLE_CHOICE,
        {"a": 1, "b": 2},
        'line 2: fields: are ["a", "b"]; give query, choices, gold or',
    ),
    "fields of another kind": (
        MULTIPLE_CHOICE,
        {"context": "a", "continuation": "b"},
        'line 2: fields: are ["context", "continuation"]; give query, choices, gold or',
    ),
    "too many fields to show": (
        MULTIPLE_CHOICE,
        {f"a{number}": 1 for number in range(99)},
        'line 2: fields: are ["a0", "a1", "a2", "a3", "a4", "a5", "a6", "a7", "a8", "a9", "a10", "a11", "a...',
    ),
    "a field twice": (
        MULTIPLE_CHOICE,
        b'{"query": "Q", "choices": ["a", "b"], "gold": 0, "gold": 1}',
        'line 2: "gold" is given twice; keep one of the two',
    ),
    "a field within a field twice": (
        MULTIPLE_CHOICE,
        json.dumps(ARC).replace('{"text"', '{"label": [], "text"').encode(),
        'line 2: "label" is given twice; keep one of the two',
    ),
    "a number without end": (
        MULTIPLE_CHOICE,
        b'{"query": "Q", "choices": ["a", "b"], "gold": ' + b"9" * 5000 + b"}",
        "line 2: has a number that is too long, or too many brackets; write one object a line",
    ),
    "brackets without end": (
        MULTIPLE_CHOICE,
        b'{"query": ' + b"[" * 100_000,
        "line 2: has a number that is too long, or too many brackets; write one object a line",
    ),
    "NaN": (MULTIPLE_CHOICE, QUERY | {"gold": float("nan")}, "line 2: gold: is a number; give an integer or a text"),
    "no field": (
        MULTIPLE_CHOICE,
        {"query": "Q", "gold": 0},
        'line 2: choices: is missing, and the fields are ["query", "gold"]; give a list',
    ),
    "no gold": (MULTIPLE_CHOICE, {"query": "Q", "choices": ["a", "b"]}, "line 2: gold: is missing"),
    "null": (MULTIPLE_CHOICE, QUERY | {"query": None}, "line 2: query: is null; give a text"),
    "choices as text": (MULTIPLE_CHOICE, QUERY | {"choices": "a, b"}, "line 2: choices: is a text; give a list"),
    "one choice": (MULTIPLE_CHOICE, QUERY | {"choices": ["a"]}, "line 2: choices: has 1 text(s); give at least 2"),
    "an empty choice": (MULTIPLE_CHOICE, QUERY | {"choices": ["a", ""]}, "line 2: choices[1]: is empty; give a text"),
    "a choice of blanks": (
        MULTIPLE_CHOICE,
        QUERY | {"choices": [" \n", "b"]},
        "line 2: choices[0]: is empty; give a text",
    ),
    "an option of blanks": (
        MULTIPLE_CHOICE,
        ROWS["wsc273"][0] | {"options": ["Ann", " "]},
        "line 2: options[1]: is empty; give a text",
    ),
    "a number as choice": (
        MULTIPLE_CHOICE,
        QUERY | {"choices": ["a", 2]},
        "line 2: choices[1]: is an integer; give a text",
    ),
    "gold too high": (
        MULTIPLE_CHOICE,
        QUERY | {"gold": 2},
        "line 2: gold: is 2, and there are 2 choices; give the number of",
    ),
    "gold below 0": (MULTIPLE_CHOICE, QUERY | {"gold": -1}, "line 2: gold: is -1, and there are 2 choices"),
    "gold as letter": (
        MULTIPLE_CHOICE,
        QUERY | {"gold": "B"},
        'line 2: gold: is "B"; give the number of a choice, 0 to 1',
    ),
    "gold in other digits": (MULTIPLE_CHOICE, QUERY | {"gold": "²"}, 'line 2: gold: is "²"; give the number'),
    "gold of many digits": (
        MULTIPLE_CHOICE,
        QUERY | {"gold": "1" * 5000},
        f'line 2: gold: is "{"1" * 76}...; give the number of a choice, 0 to 1',
    ),
    "a great gold": (
        MULTIPLE_CHOICE,
        QUERY | {"gold": 10**400},
        f"line 2: gold: is 1{'0' * 76}..., and there are 2 choices; give the number of a choice, 0 to 1",
    ),
    "gold as boolean": (
        MULTIPLE_CHOICE,
        QUERY | {"gold": True},
        "line 2: gold: is true or false; give an integer or a text",
    ),
    "gold with a fraction": (
        MULTIPLE_CHOICE,
        QUERY | {"gold": 0.5},
        "line 2: gold: is a number; give an integer or a text",
    ),
    "one context": (
        MULTIPLE_CHOICE,
        {"context_options": ["A"], "continuation": "c", "gold": 0},
        "line 2: context_options: has 1 text(s); give at least 2",
    ),
    "an empty continuation": (CONTINUATION, {"context": "c", "continuation": " "}, "line 2: continuation: is empty"),
    "one word": (
        CONTINUATION,
        {"text": "word"},
        "line 2: text: has no last word after a blank; give two words or more",
    ),
    "an empty text": (ROLLING, {"text": "\n"}, "line 2: text: is empty; give a text"),
    "a label that is none": (
        MULTIPLE_CHOICE,
        ARC | {"answerKey": "E"},
        'line 2: answerKey: is "E"; give one of ["A", "B", "C"]',
    ),
    "labels that are too few": (
        MULTIPLE_CHOICE,
        ARC | {"choices": {"text": ["a", "b", "c"], "label": ["A", "B"]}},
        "line 2: choices.label: has 2 labels for 3 texts; give one for each",
    ),
    "choices without texts": (MULTIPLE_CHOICE, ARC | {"choices": {"label": ["A"]}}, "line 2: choices.text: is missing"),
    "no gap": (MULTIPLE_CHOICE, ROWS["winogrande"][0] | {"sentence": "x"}, "line 2: sentence: has no _; mark the gap"),
    "no answer": (
        MULTIPLE_CHOICE,
        ROWS["winogrande"][0] | {"answer": ""},
        'line 2: answer: is ""; give the number of a choice, 1 to 2',
    ),
    "an answer in words": (
        MULTIPLE_CHOICE,
        {"passage": "P", "question": "q", "answer": "yes"},
        "line 2: answer: is a text; give true or false",
    ),
    "options in other words": (
        MULTIPLE_CHOICE,
        ROWS["mathqa"][0] | {"options": "1, 2, 3"},
        "line 2: options: do not read",
    ),
    "a pronoun beyond the text": (
        MULTIPLE_CHOICE,
        ROWS["wsc273"][0] | {"pronoun_loc": 99},
        "line 2: pronoun_loc: is 99, and the text has 51 characters; give where it begins",
    ),
    "no decision": (
        MULTIPLE_CHOICE,
        ROWS["pubmedqa"][0] | {"final_decision": "?"},
        'line 2: final_decision: is "?"; give one of ["yes", "no", "maybe"]',
    ),
    "three letters": (
        MULTIPLE_CHOICE,
        ROWS["mmlu_high_school_physics"][0] | {"choices": ["a", "b", "c"]},
        "line 2: choices: has 3 texts; give 4",
    ),
    "a turn of blanks": (
        DIALOGUE,
        {"context": "hi EOS  EOS well", "references": ["a"]},
        "line 2: context[1]: is empty; give a text",
    ),
    "no reference": (
        DIALOGUE,
        {"context": ["hi"], "references": []},
        "line 2: references: has 0 text(s); give at least 1",
    ),
}
SOUND = {
    MULTIPLE_CHOICE: QUERY,
    CONTINUATION: {"context": "a", "continuation": "b"},
    ROLLING: {"text": "a"},
    DIALOGUE: {"context": ["a"], "references": ["b"]},
}


@pytest.mark.parametrize(("kind", "row", "message"), MALFORMED.values(), ids=MALFORMED)
def test_a_malformed_row_is_named_by_file_line_and_field(tmp_path: Path, kind: str, row: Any, message: str) -> None:
    line = row if isinstance(row, bytes) else json.dumps(row).encode()
    (tmp_path / "mine.jsonl").write_bytes(json.dumps(SOUND[kind]).encode() + b"\n" + line + b"\n")
    with pytest.raises(DataError, match=re.escape(f"{tmp_path}/mine.jsonl: {message}")):
        load(tmp_path, kind)


def test_blank_lines_count_as_lines(tmp_path: Path) -> None:
    (tmp_path / "mine.jsonl").write_text(f"\n{json.dumps(QUERY)}\n\n{{}}\n")
    with pytest.raises(DataError, match=r"mine.jsonl: line 4: fields: are \[\]"):
        load(tmp_path)


def test_files_without_items_or_of_unknown_kinds(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"mine.jsonl: has no item; give one a line"):
        load(write(tmp_path))
    (tmp_path / "mine.csv").write_text("a,b")
    with pytest.raises(DataError, match=r"mine.csv: its suffix does not say what it holds; unpack it, or rename it"):
        load_task(Task("mine", MULTIPLE_CHOICE, "mine.csv"), str(tmp_path))
    (tmp_path / "folder").mkdir()
    with pytest.raises(DataError, match=r"folder: is a folder; give a file in it"):
        load_task(Task("mine", MULTIPLE_CHOICE, "folder"), str(tmp_path))


def test_a_pipe_is_read_once(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "mine.jsonl")
    writer = threading.Thread(target=(tmp_path / "mine.jsonl").write_text, args=[json.dumps(QUERY)])
    writer.start()
    with pytest.raises(
        DataError, match=r"mine.jsonl: is a pipe, and cannot be read again for the examples of n_shot; n"
    ):
        load(tmp_path, n_shot=1)
    writer.join()


def test_too_few_examples(tmp_path: Path) -> None:
    write(tmp_path, QUERY, QUERY | {"query": "other"})
    with pytest.raises(
        DataError, match=r"mine.jsonl: line 1: n_shot = 2: .*mine.jsonl has 1 other example\(s\); lower n_shot"
    ):
        load(tmp_path, n_shot=2)
    with pytest.raises(
        DataError, match=r"mine.jsonl: line 1: has no subject, and the description names \{subject\}; g"
    ):
        load(tmp_path, description="{subject}: ")
    with pytest.raises(
        DataError, match=r"train.jsonl: is not there.*; put the examples of n_shot there, or name a few"
    ):
        load(tmp_path, n_shot=2, fewshot_file="train.jsonl")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"kind": "essay"},
            "mine: kind = essay: is none of continuation, rolling, multiple_choice, dialogue; give one",
        ),
        (
            {"kind": ROLLING, "n_shot": 1},
            "mine: n_shot = 1: is for the kind multiple_choice or continuation only; leave it out",
        ),
        (
            {"kind": DIALOGUE, "description": "Talk."},
            'mine: description = "Talk.": is for the kind multiple_choice or continuation only; leave it out',
        ),
        ({"kind": CONTINUATION, "cue": "A:"}, 'mine: cue = "A:": is for the kind multiple_choice only; leave it out'),
        ({"kind": CONTINUATION, "stride": 8}, "mine: stride = 8: is for the kind rolling only; leave it out"),
    ],
)
def test_settings_that_contradict_the_kind(tmp_path: Path, settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(message)):
        load(write(tmp_path, QUERY), **settings)


def test_tasks_from_settings() -> None:
    assert make_task("piqa") == TASKS["piqa"]
    assert make_task({"name": "piqa", "n_shot": 5, "limit": 9}) == replace(TASKS["piqa"], n_shot=5, limit=9)
    own = {"name": "mine", "file": "mine.jsonl", "kind": "multiple_choice"}
    assert make_task(own) == Task("mine", MULTIPLE_CHOICE, "mine.jsonl")
    with pytest.raises(ConfigError, match=r"eval_tasks = hellswag: is not in the table.*did you mean hellaswag\?"):
        make_task("hellswag")
    with pytest.raises(
        ConfigError, match=r"eval_tasks = x: is not in the table of tasks, and has no file; give its file and kind"
    ):
        make_task("x")
    with pytest.raises(
        ConfigError, match=r"wikitext: kind = dialogue: the table's task of this name is of the kind rol"
    ):
        make_task({"name": "wikitext", "kind": "dialogue"})
    with pytest.raises(
        ConfigError, match=r"mine: fewshot_file = a.jsonl: has no effect without n_shot; give n_shot, o"
    ):
        make_task(own | {"fewshot_file": "a.jsonl"})


def test_each_task_of_the_table_reads_its_published_form(tmp_path: Path) -> None:
    of_form = {"winograd_wsc": "wsc273", "mmlu": "mmlu_high_school_physics", "arc_challenge": "arc_easy"}
    of_form["lambada_standard"] = "lambada_openai"
    for name, task in TASKS.items():
        folder = write(tmp_path, *ROWS[of_form.get(name, name)], name=task.file)
        kinds = {CONTINUATION: Question, MULTIPLE_CHOICE: Question, ROLLING: Text}
        assert {type(item) for item in load_task(task, str(folder)).items} == {kinds[task.kind]}
