"""Collecting and formatting generated texts."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

from models.kernels.sampling import SamplingParams
from runtime.generation.detokenizer import TextChunk
from runtime.generation.outputs import (
    GeneratedText,
    format_line,
    format_samples,
    join_chunks,
    sampled_texts,
    write_predictions,
)
from runtime.generation.requests import GenerationRequest
from runtime.generation.scheduler import Scheduler
from tests.runtime.generation.test_scheduler import LETTERS, EchoEngine, bytes_of


def request(text: str) -> GenerationRequest:
    return GenerationRequest(tuple(map(LETTERS.index, text)), SamplingParams(), 0, 100)


def test_chunks_are_joined() -> None:
    chunks = [TextChunk("a", (1, 2), (-1.0, -2.0), ((), ()), None), TextChunk("b", (3,), (-3.0,), ((),), "length")]
    assert join_chunks(chunks) == GeneratedText("ab", (1, 2, 3), (-1.0, -2.0, -3.0), "length")


def test_texts_come_in_the_order_of_the_requests_whichever_ends_first() -> None:
    texts = ["abcdefgh" * 3, "a", "bc", "defdefdef", ""]
    generated_texts = sampled_texts(Scheduler(EchoEngine(2), bytes_of), [request(text) for text in texts if text])
    assert [generated.text for generated in generated_texts] == [text for text in texts if text]


def test_no_text_waits_for_later_ones() -> None:
    engine = EchoEngine(1)
    generated_texts = sampled_texts(Scheduler(engine, bytes_of), [request("a"), request("b"), request("c")])
    assert next(generated_texts).text == "a"
    assert len(engine.prefilled) == 1


def test_requests_are_taken_as_rows_become_free() -> None:
    taken = itertools.count()
    engine = EchoEngine(3)
    generated_texts = sampled_texts(Scheduler(engine, bytes_of), (request("a") for _ in taken))
    for _ in range(10):
        next(generated_texts)
    assert next(taken) < 10 + 3 * engine.n_rows


def test_a_json_line_holds_prompt_text_tokens_and_scores() -> None:
    generated = GeneratedText('ä"\n', (3, 4), (-0.5, -1.25), "stop")
    line = format_line({"id": {"a": None}}, "der \u2028\u2029\x85", 2, generated)
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
    assert json.loads(format_line({}, (1, 2), 0, generated))["prompt"] == [1, 2]


def test_samples_are_framed_as_by_gpt_neo(tmp_path: Path) -> None:
    line = "=" * 40
    framed = f"{line} SAMPLE 0 {line}\n\none\ntwo\n\n{line}{line}\n\n{line} SAMPLE 1 {line}\n\nälter\n\n{line}{line}\n"
    assert format_samples(["one\ntwo", "älter"]) == framed
    path = write_predictions(f"{tmp_path}/run", "exp7", 1234, ".txt", framed)
    assert path == f"{tmp_path}/run/predictions_exp7_1234.txt"
    assert Path(path).read_text(encoding="utf-8") == framed
    assert [file.name for file in (tmp_path / "run").iterdir()] == ["predictions_exp7_1234.txt"]
