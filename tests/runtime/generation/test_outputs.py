"""Answers, gathered and written down."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from models.kernels.sampling import SamplingParams
from runtime.generation.outputs import (
    GeneratedText,
    format_line,
    format_samples,
    join_chunks,
    sampled_texts,
    write_predictions,
)
from runtime.generation.requests import GenerationRequest
from runtime.generation.scheduler import Scheduler, TextChunk
from tests.runtime.generation.test_scheduler import LETTERS, EchoEngine, bytes_of


def request(text: str) -> GenerationRequest:
    return GenerationRequest(tuple(map(LETTERS.index, text)), SamplingParams(), 0, 100)


def test_news_of_an_answer_are_put_together() -> None:
    chunks = [TextChunk("a", (1, 2), (-1.0, -2.0), ((), ()), None), TextChunk("b", (3,), (-3.0,), ((),), "length")]
    assert join_chunks(chunks) == GeneratedText("ab", (1, 2, 3), (-1.0, -2.0, -3.0), "length")


def test_answers_come_in_the_order_of_the_asks_whichever_ends_first() -> None:
    texts = ["abcdefgh" * 3, "a", "bc", "defdefdef", ""]
    answers = sampled_texts(Scheduler(EchoEngine(2), bytes_of), [request(text) for text in texts if text])
    assert [answer.text for answer in answers] == [text for text in texts if text]


def test_no_answer_waits_for_later_ones() -> None:
    engine = EchoEngine(1)
    answers = sampled_texts(Scheduler(engine, bytes_of), [request("a"), request("b"), request("c")])
    assert next(answers).text == "a"
    assert len(engine.prefilled) == 1


def test_asks_are_taken_as_rows_become_free() -> None:
    taken = itertools.count()
    engine = EchoEngine(3)
    answers = sampled_texts(Scheduler(engine, bytes_of), (request("a") for _ in taken))
    for _ in range(10):
        next(answers)
    assert next(taken) < 10 + 3 * engine.n_rows


def test_a_line_of_json_holds_all_that_is_known() -> None:
    answer = GeneratedText('ä"\n', (3, 4), (-0.5, -1.25), "stop")
    line = format_line({"id": {"a": None}}, "der \u2028\u2029\x85", 2, answer)
    assert line.splitlines(keepends=True) == [line] and line.endswith("\n") and "ä" in line
    assert list(json.loads(line).items()) == [
        ("id", {"a": None}),
        ("prompt", "der \u2028\u2029\x85"),
        ("text", 'ä"\n'),
        ("tokens", [3, 4]),
        ("log_probs", [-0.5, -1.25]),
        ("reason", "stop"),
        ("sample", 2),
    ]
    assert json.loads(format_line({}, (1, 2), 0, answer))["prompt"] == [1, 2]


def test_samples_stand_in_the_frame_of_gpt_neo(tmp_path: Path) -> None:
    line = "=" * 40
    framed = f"{line} SAMPLE 0 {line}\n\none\ntwo\n\n{line}{line}\n\n{line} SAMPLE 1 {line}\n\nälter\n\n{line}{line}\n"
    assert format_samples(["one\ntwo", "älter"]) == framed
    path = write_predictions(f"{tmp_path}/run", "exp7", 1234, ".txt", framed)
    assert path == f"{tmp_path}/run/predictions_exp7_1234.txt"
    assert Path(path).read_text(encoding="utf-8") == framed
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["predictions_exp7_1234.txt"]
