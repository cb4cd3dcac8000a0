"""--predict and --interactive, with prompts from files, standard input and the terminal."""

from __future__ import annotations

import dataclasses
import fcntl
import io
import json
import os
import pty
import re
import select
import shlex
import signal
import struct
import subprocess
import sys
import termios
import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from commands.console import with_progress
from commands.prompts import encode_prompts
from configs.prompts import Prompt
from configs.schema import PredictionConfig
from data.tokenization.tokenizer import Tokenizer, load_tokenizer
from main import main
from runtime.cluster.process_group import ALONE
from tests import tiny
from tests.program import ENVIRONMENT, TINY, command, run_process, write_project
from tests.terminal import Terminal

N_STEPS = 150
N_TOKENS = 300  # of the tokenizer; the model has room for more
KEPT = re.compile(rf"written to (runs/tiny/predictions_nosacred_{N_STEPS}(?:\.\d+)?\.(?:txt|jsonl))\n")

Lines = list[dict[str, object]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A project with a trained `runs/tiny`, whose rotary positions allow any length."""
    folder = tmp_path_factory.mktemp("project")
    write_project(folder)
    config = TINY | {"train_steps": N_STEPS, "rotary_emb": True, "n_vocab": N_TOKENS + 30}
    (folder / "tiny.json").write_text(json.dumps(config))
    training = run_process(folder)
    assert training.returncode == 0, training.stderr
    return folder


@pytest.fixture
def here(folder: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(folder)
    return folder


@pytest.fixture
def tokenizer(here: Path) -> Tokenizer:
    return load_tokenizer("runs/tiny/tokenizer.json")


def predict(*arguments: str) -> int:
    return main(["--model", "tiny.json", "--predict", *arguments])


def as_lines(prompts: Sequence[dict[str, object]]) -> str:
    return "".join(json.dumps(prompt) + "\n" for prompt in prompts)


def parsed(lines: str) -> Lines:
    return [json.loads(line) for line in lines.splitlines()]


# Prompt files. Building the programs takes seconds, so several tests share the output of two runs.

WORDS = "the cat sat on a mat and saw one dog run far from home while it sat on a mat"
PROMPTS = (
    {"id": "a", "prompt": "the cat sat on a mat and", "seed": 3, "n_samples": 2},
    {"id": 2, "prompt": "dog", "seed": 4, "temperature": 0, "max_new_tokens": 3},
    {"id": None, "prompt": [], "seed": 5, "top_k": 3, "never_end": True},
    {"prompt": [270, 271, 272, 273], "seed": 6, "repetition_penalty": 5.0, "max_new_tokens": 9},
    {"prompt": "the cat", "seed": 7, "temperature": 0, "max_new_tokens": 1000},
    {"prompt": WORDS, "seed": 8},
    *[{"prompt": "the", "temperature": 2.0, "never_end": True}] * 3,
    *[{"prompt": "a", "seed": 9, "temperature": 1.0, "never_end": True, "entmax_sampling": on} for on in (False, True)],
    {"prompt": "the", "seed": 10, "temperature": 100.0, "never_end": True, "n_samples": 8},
)


@pytest.fixture(scope="module")
def from_file(folder: Path) -> subprocess.CompletedProcess[str]:
    """Continues `PROMPTS`, eight at once."""
    (folder / "prompts.jsonl").write_text(as_lines(PROMPTS))
    return run_process(folder, "--predict", "--prompt", "prompts.jsonl", "--sacred_id", "file")


@pytest.fixture(scope="module")
def first(folder: Path, from_file: subprocess.CompletedProcess[str]) -> Lines:
    assert from_file.returncode == 0, from_file.stderr
    return parsed((folder / f"runs/tiny/predictions_file_{N_STEPS}.jsonl").read_text())


def stops_in(text: str) -> list[str]:
    """Returns stop strings: two that occur in a text and one that does not."""
    assert len(text) > 8
    return [text[5:8], text[2:4] + "?", text[4:6]]


@pytest.fixture(scope="module")
def from_standard_input(folder: Path, first: Lines) -> subprocess.CompletedProcess[str]:
    """Continues some of the prompts in reverse order, and others, one at a time."""
    greedy, text = PROMPTS[4], first[5]["text"]
    end = load_tokenizer(str(folder / "runs/tiny/tokenizer.json")).encode(WORDS)[-8:]
    more = [{**greedy, "stop": stops_in(text)}, {**greedy, "stop": text[0]}, {"prompt": end, "seed": 8}]
    asked = [*PROMPTS[4::-1], *more]
    process = subprocess.run(
        command("--predict", "--prompt", "-", "--rows", "1"),
        input=as_lines(asked),
        cwd=folder,
        env=ENVIRONMENT,
        capture_output=True,
        text=True,
    )
    assert process.returncode == 0, process.stderr
    return process


def test_every_prompt_of_a_file_is_continued_in_order_with_its_own_settings(first: Lines, tokenizer: Tokenizer) -> None:
    assert [(line.get("id", "none"), line["prompt"], line["sample"]) for line in first] == [
        ("a", "the cat sat on a mat and", 0),
        ("a", "the cat sat on a mat and", 1),
        (2, "dog", 0),
        (None, [], 0),
        ("none", [270, 271, 272, 273], 0),
        ("none", "the cat", 0),
        ("none", WORDS, 0),
        *[("none", "the", 0)] * 3,
        *[("none", "a", 0)] * 2,
        *[("none", "the", sample) for sample in range(8)],
    ]
    for line in first:
        assert line["text"] == tokenizer.decode(line["tokens"])
        assert len(line["log_probs"]) == len(line["tokens"])
        assert all(-20 < log_prob <= 0 for log_prob in line["log_probs"])
    assert len(first[2]["tokens"]) <= 3 and len(first[4]["tokens"]) <= 9
    assert (len(first[3]["tokens"]), first[3]["reason"]) == (15, "length")  # all of n_ctx after the eos
    assert first[0]["text"] != first[1]["text"] and first[10]["text"] != first[11]["text"]


def test_ids_beyond_the_tokenizer_are_never_drawn(first: Lines) -> None:
    """Though all ids are about equally likely at this temperature."""
    drawn = [token for line in first[12:] for token in line["tokens"]]
    assert len(drawn) > 100 and max(drawn) < N_TOKENS


def test_ids_beyond_the_tokenizer_are_no_prompt(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Though the model has rows for them."""
    Path("ids.jsonl").write_text(as_lines([{"prompt": [3]}, {"prompt": [N_TOKENS - 1, N_TOKENS, 5]}]))
    assert predict("--prompt", "ids.jsonl") == 2
    message = f"prompt: the id {N_TOKENS} is out of range; give ids from 0 to {N_TOKENS - 1}"
    assert capsys.readouterr().err == f"--prompt ids.jsonl: line 2: {message}\n"


def test_many_beams_are_announced(tokenizer: Tokenizer) -> None:
    warnings: list[str] = []
    prompts = [Prompt("here", "the cat", PredictionConfig(num_beams=n), {}) for n in (1, 64, 300, 300)]
    encode_prompts(prompts, tiny.run_config(), tokenizer, warnings.append)
    assert warnings == ["num_beams = 300: is slow to compile and to search; fewer than 10 beams are usual"]


def test_without_a_seed_equal_prompts_get_different_texts(first: Lines) -> None:
    assert len({line["text"] for line in first[7:10]}) == 3


@pytest.mark.slow
@pytest.mark.processes
def test_a_text_depends_neither_on_other_prompts_nor_on_their_order(
    first: Lines, from_standard_input: subprocess.CompletedProcess[str]
) -> None:
    others = parsed(from_standard_input.stdout)[:6]
    for line, other in zip(first[:6], [*others[4:], *others[3::-1]], strict=True):
        np.testing.assert_allclose(other.pop("log_probs"), line["log_probs"], rtol=1e-4)
        assert other == {key: value for key, value in line.items() if key != "log_probs"}


def test_a_stop_string_cuts_the_text(first: Lines, from_standard_input: subprocess.CompletedProcess[str]) -> None:
    whole, (cut, empty) = first[5], parsed(from_standard_input.stdout)[6:8]
    start = min(whole["text"].index(stop) for stop in stops_in(whole["text"]) if stop in whole["text"])
    assert (cut["text"], cut["reason"]) == (whole["text"][:start], "stop")
    assert cut["tokens"] == whole["tokens"][: len(cut["tokens"])] != whole["tokens"]
    assert len(cut["log_probs"]) == len(cut["tokens"])
    assert (empty["text"], empty["tokens"], empty["log_probs"], empty["reason"]) == ("", [], [], "stop")


def test_standard_output_holds_the_json_lines_only_and_a_file_the_same(
    here: Path, from_standard_input: subprocess.CompletedProcess[str]
) -> None:
    (kept,) = KEPT.findall(from_standard_input.stderr)
    assert Path(kept).read_text() == from_standard_input.stdout
    assert f"\nrestored runs/tiny/model.ckpt-{N_STEPS}\n" in from_standard_input.stderr
    assert from_standard_input.stderr.endswith(f"\nwritten to {kept}\n") and kept.endswith(".jsonl")


def test_a_long_prompt_keeps_its_end(
    first: Lines,
    from_file: subprocess.CompletedProcess[str],
    from_standard_input: subprocess.CompletedProcess[str],
) -> None:
    printed = (
        "--prompt prompts.jsonl: line 6: the prompt does not fit into n_ctx = 16: only its last 8 tokens are used\n"
    )
    assert printed in from_file.stdout
    assert parsed(from_standard_input.stdout)[8]["text"] == first[6]["text"]


def test_a_long_prompt_is_refused_on_request(here: Path, tokenizer: Tokenizer, capsys) -> None:
    ids = tokenizer.encode(WORDS)
    lines = [{"prompt": ids[:n_ids], "prompt_overflow": "refuse"} for n_ids in (15, 16, 17)]
    Path("long.jsonl").write_text(as_lines(lines))
    before = sorted(here.rglob("*"))
    assert predict("--prompt", "long.jsonl") == 2
    assert capsys.readouterr().err == "".join(
        f"--prompt long.jsonl: line {line}: the prompt has more than 15 tokens and leaves no room for a new one in "
        "n_ctx = 16; shorten it, or set prompt_overflow to left\n"
        for line in (2, 3)
    )
    assert sorted(here.rglob("*")) == before


# Single texts.


def test_a_text_file_gives_the_samples_of_the_same_prompt_in_json(here: Path, first: Lines, capsys) -> None:
    Path("prompt.txt").write_text("the cat sat on a mat and")
    settings = ("--seed", "3", "--n_samples", "2", "--remove_partial_sequences")
    assert predict("--prompt", "prompt.txt", *settings, "--output", "out/answers.jsonl") == 0
    printed = capsys.readouterr().out
    framed = re.findall(r"={40} SAMPLE \d ={40}\n\n(.*?)\n\n={80}\n", printed, re.DOTALL)
    assert framed == [line["text"] for line in first[:2]]
    (kept,) = KEPT.findall(printed)
    assert printed.endswith(f"written to {kept}\nand to out/answers.jsonl\n")
    assert [line["tokens"] for line in parsed(Path("out/answers.jsonl").read_text())] == [
        line["tokens"] for line in first[:2]
    ]


def test_a_prompt_in_a_pipe_is_read_and_answers_outlast_a_full_disk(folder: Path) -> None:
    """The answers are kept before they are shown, and standard output need not be UTF-8."""
    typed = "--temperature .7 --max_new_tokens 4e0 --stop '\\n' --sacred_id kept --seed 3"
    asked = [*command("--predict"), "--prompt"]
    script = f"{shlex.join(asked)} <(printf 'na\u00efve cat') {typed} > /dev/full"
    process = subprocess.run(["bash", "-c", script], cwd=folder, env=ENVIRONMENT, capture_output=True, text=True)
    assert (process.returncode, process.stderr.count("\n")) == (2, 1), process.stderr
    assert process.stderr.startswith("standard output: cannot be written: No space left on device")
    (kept,) = (folder / "runs/tiny").glob("predictions_kept_*")
    assert "\n\nna\u00efve cat" in kept.read_text(encoding="utf-8")


def test_prompts_on_the_command_line_and_none_at_all(here: Path, capsys) -> None:
    Path("empty.txt").write_text("")
    for prompt in (["--prompt_text", r"the\ncat"], ["--prompt", "empty.txt"]):
        assert predict(*prompt, "--max_new_tokens", "1", "--temperature", "0", "--output", "-") == 0
        out, err = capsys.readouterr()
        is_said = "--prompt empty.txt: is empty; the text begins after the end of another one\n" in err
        assert (parsed(out)[0]["prompt"], is_said) == (("", True) if "empty.txt" in prompt else ("the\ncat", False))


@pytest.mark.slow
@pytest.mark.processes
def test_a_text_on_standard_input_may_give_json_lines(here: Path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"the dog\n")))
    assert predict("--prompt", "-", "--seed", "2", "--output", "-") == 0
    out, err = capsys.readouterr()
    (line,) = parsed(out)
    assert (line["prompt"], "SAMPLE" in err) == ("the dog\n", False)
    assert f"SAMPLE 0 {'=' * 40}\n\nthe dog\n{line['text']}\n\n" in Path(*KEPT.findall(err)).read_text()


@pytest.mark.slow
@pytest.mark.processes
def test_prompts_of_a_file_are_continued_at_checkpoints(here: Path, capsys) -> None:
    Path("two.jsonl").write_text(as_lines([{"prompt": "the", "id": 1}, {"prompt": "a", "n_samples": 2}]))
    changes = ("--set", "model_path=runs/pausing", "--set", "train_steps=4", "--set", "predict_steps=1")
    arguments = ("--prompt", "two.jsonl", "--steps_per_checkpoint", "2")
    assert main(["--model", "tiny.json", *changes, *arguments]) == 0
    for step in (2, 4):
        kept = parsed(Path(f"runs/pausing/predictions_nosacred_{step}.jsonl").read_text())
        assert [(line["prompt"], line["sample"]) for line in kept] == [("the", 0), ("a", 0), ("a", 1)]


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_an_interrupted_program_saves_the_finished_texts(folder: Path, number: signal.Signals) -> None:
    (folder / "many.jsonl").write_text(as_lines([{"prompt": "the cat", "never_end": True}] * 50_000))
    whole = folder / f"runs/tiny/predictions_{number.name}_{N_STEPS}.jsonl"
    whole.write_text("of an earlier run")
    asked = command("--predict", "--prompt", "many.jsonl", "--sacred_id", number.name, "--output", "-")
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(asked, cwd=folder, env=ENVIRONMENT, stdin=subprocess.DEVNULL, **pipes) as process:
        begin = [process.stdout.readline() for _ in range(9)]
        process.send_signal(number)
        time.sleep(0.01)
        process.send_signal(number)  # impatient people press twice
        rest, printed = process.communicate(timeout=60)
    kept = whole.with_suffix(".partial.jsonl").read_text()
    assert process.returncode in (130, -number) and whole.read_text() == "of an earlier run"
    assert kept.startswith("".join(begin) + rest) and kept.endswith("\n")
    n_kept = kept.count("\n")
    path = Path(os.path.relpath(whole, folder)).with_suffix(".partial.jsonl")
    assert f"{n_kept} of 50000 answers written to {path}" in printed.splitlines()


# Progress.


def test_a_terminal_shows_a_progress_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    ours, theirs = pty.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    with open(theirs, "w", encoding="utf-8") as terminal:
        monkeypatch.setattr(sys, "stderr", terminal)
        assert list(with_progress(iter("abc"), 3, ALONE)) == ["a", "b", "c"]
        shown = ""
        while select.select([ours], [], [], 0.1)[0]:
            shown += os.read(ours, 1 << 16).decode()
        assert "0/3" in shown and "3/3" in shown and "answers" in shown
        assert list(with_progress(iter("a"), 1, ALONE)) == ["a"]
        assert list(with_progress(iter("abc"), 3, dataclasses.replace(ALONE, index=1))) == ["a", "b", "c"]
        assert (
            select.select([ours], [], [], 0.1)[0] == []
        )  # a single text needs no bar, and only the first process shows one
    os.close(ours)


# User errors.

REFUSALS: dict[str, tuple[Sequence[str], str]] = {
    "a line that is wrong": (
        ["--predict", "--prompt", "wrong.jsonl"],
        "--prompt wrong.jsonl: line 2: top_p = 7: is out of range; give a number in (0, 1]",
    ),
    "a directory as output": (
        ["--predict", "--output", "texts"],
        "--output texts: is a directory; give a file, or - for standard output",
    ),
    "output of another command": (
        ["--eval", "--output", "a"],
        "--output a: works with --predict only; leave it out, or give --predict",
    ),
    "standard input while training": (
        ["--prompt", "-"],
        "--prompt -: only --predict reads standard input; give a file, or --predict",
    ),
    "a prompt file with --interactive": (
        ["--interactive", "--prompt", "a"],
        "--prompt a: --interactive gets its prompts later; leave --prompt out",
    ),
    "beam search with --interactive": (
        ["--interactive", "--num_beams", "2"],
        "num_beams = 2: beam search has no text to show before it ends; set it to 1 with --interactive, or use "
        "--predict",
    ),
    "a host without a server": (
        ["--predict", "--host", "0.0.0.0"],
        "--host 0.0.0.0: works with --serve only; leave it out, or give --serve PORT",
    ),
    "two prompts": (
        ["--predict", "--prompt_text", "a", "--prompt", "b"],
        "--prompt_text and --prompt: cannot be combined; give one of them",
    ),
    "a prompt for a server": (
        ["--serve", "0", "--prompt_text", "a"],
        "--prompt_text: --serve gets its prompts later; leave --prompt_text out",
    ),
    "the prompt file as output": (
        ["--predict", "--prompt", "prompt.txt", "--output", "./prompt.txt"],
        "--output ./prompt.txt: is the prompt file; give another file for the answers",
    ),
    "an empty output path": (
        ["--predict", "--output", ""],
        "--output: names no file; give one, or - for standard output",
    ),
    "a name too long for a file": (
        ["--predict", "--sacred_id", "a" * 101],
        f"--sacred_id {'a' * 101}: is too long for a part of a file name; give at most 100 characters",
    ),
    "an output below a file": (
        ["--predict", "--output", "tiny.json/answers/a"],
        "--output tiny.json/answers/a: tiny.json is not writable; give a file that can be written",
    ),
    "no rows": (
        ["--predict", "--rows", "0"],
        "--rows 0: must be at least 1, and needs --predict, --serve or --prompt; give such a number, or leave it out",
    ),
    "more devices than any machine": (
        ["--predict", "--cpu_devices", "1e9"],
        "--cpu_devices 1000000000: is out of range; give a number from 1 to 4096",
    ),
    "rows without texts": (
        ["--rows", "3"],
        "--rows 3: must be at least 1, and needs --predict, --serve or --prompt; give such a number, or leave it out",
    ),
    "new and a server": (
        ["--new", "--serve", "0"],
        "--new: starts training from the beginning; leave out --serve",
    ),
    "a masked model": (
        ["--interactive", "--set", "mlm_training=true", "--set", "mlm_mask_id=2"],
        "tiny: mlm_training = true: a masked language model cannot generate text; give the config of a causal model",
    ),
    "a server on a TPU": (
        ["--serve", "0", "--tpu", "local"],
        "--serve: a TPU generates whole texts only and cannot serve; leave out --tpu",
    ),
    "a server's temperature": (
        ["--serve", "0", "--temperature", "0"],
        "--temperature: each request has its own settings; leave it out with --serve",
    ),
    "a server's stop string": (
        ["--serve", "0", "--cache_dtype", "bfloat16", "--stop", "a"],
        "--stop: each request has its own settings; leave it out with --serve",
    ),
    "a penalty": (
        ["--predict", "--presence_penalty", "3"],
        "--presence_penalty 3: is out of range; give a number in [-2, 2]",
    ),
    "a stop string": (
        ["--predict", "--stop", "a", ""],
        "--stop a '': holds an empty string; give strings of at least one character",
    ),
    "a server of many processes": (
        ["--serve", "0", "--hosts", "127.0.0.1:1,127.0.0.1:2", "--host_index", "0"],
        "--serve: runs in a single process, which may have many devices; leave out --hosts, TF_CONFIG and Slurm",
    ),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_an_error_gives_one_message_and_writes_nothing(
    here: Path, capsys: pytest.CaptureFixture[str], case: str
) -> None:
    arguments, message = REFUSALS[case]
    Path("wrong.jsonl").write_text('{"prompt": "a"}\n{"prompt": "b", "top_p": 7}\n')
    Path("prompt.txt").write_text("the cat")
    before = sorted((path, path.stat().st_mtime_ns) for path in here.rglob("*"))
    capsys.readouterr()
    assert main(["--model", "tiny.json", *arguments]) == 2
    assert capsys.readouterr() == ("", f"{message}\n")
    assert sorted((path, path.stat().st_mtime_ns) for path in here.rglob("*")) == before


def test_output_follows_a_link_and_goes_into_a_pipe(here: Path) -> None:
    asked = ["--prompt", "two.jsonl", "--output"]
    Path("two.jsonl").write_text(as_lines([{"prompt": "the cat", "seed": 1, "n_samples": 2}]))
    Path("answers.jsonl").write_text("of an earlier run")
    os.symlink("answers.jsonl", "link")
    os.mkfifo("pipe")
    reader = subprocess.Popen(["cat", "pipe"], stdout=subprocess.PIPE, text=True)
    try:
        assert (predict(*asked, "link"), predict(*asked, "pipe")) == (0, 0)
        piped, _ = reader.communicate(timeout=20)
    finally:
        reader.kill()
    assert Path("link").is_symlink() and Path("pipe").is_fifo()
    assert piped == Path("answers.jsonl").read_text() and len(parsed(piped)) == 2


# Beam search.


@pytest.mark.slow
@pytest.mark.processes
def test_beam_search_finds_the_most_likely_texts(here: Path, tokenizer: Tokenizer, capsys) -> None:
    search = {"prompt": "the cat", "num_beams": 3, "n_samples": 3, "max_new_tokens": 6}
    prompts = [
        search,
        {"prompt": "dog", "temperature": 0, "max_new_tokens": 3},
        {**search, "stop": "a", "n_samples": 1},
    ]
    Path("beams.jsonl").write_text(as_lines(prompts))
    assert predict("--prompt", "beams.jsonl") == 0
    *best, sampled, cut = parsed(Path(*KEPT.findall(capsys.readouterr().out)).read_text())
    assert [line["sample"] for line in (*best, sampled, cut)] == [0, 1, 2, 0, 0]
    assert all(line["text"] == tokenizer.decode(line["tokens"]) for line in best)
    scores = [line["score"] for line in best]
    assert scores == sorted(scores, reverse=True) and max(scores) < 0
    assert len({line["text"] for line in best}) == 3 and not any("log_probs" in line for line in best)
    assert sampled["prompt"] == "dog" and len(sampled["log_probs"]) == len(sampled["tokens"])
    assert cut["text"] == best[0]["text"].partition("a")[0] and cut["score"] == pytest.approx(scores[0])
    assert cut["reason"] == ("stop" if "a" in best[0]["text"] else best[0]["reason"])


# --interactive.


@pytest.mark.slow
@pytest.mark.processes
def test_piped_lines_are_continued_one_by_one(here: Path, first: Lines, monkeypatch, capsys) -> None:
    typed = b"the cat sat on a mat and\n\nthe cat sat on a mat and\r\n"
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed)))
    assert main(["--model", "tiny.json", "--interactive", "--seed", "3"]) == 0
    assert capsys.readouterr().out == f"{first[0]['text']}\n" * 2


def records_dataset() -> str:
    """Returns an override that uses the tfrecords, which need no preprocessing for another n_ctx."""
    records = {"id": "records", "n_vocab": 300, "path": "datasets/words/*/train/*.tfrecords", "eos_id": 0}
    return f"datasets={json.dumps([records | {'tokenizer_path': 'runs/tiny/tokenizer.json', 'padding_id': 1}])}"


LONG = ("--set", "n_ctx=20000", "--set", records_dataset(), "--never_end", "--temperature", "0")


@pytest.mark.slow
@pytest.mark.processes
def test_ctrl_c_at_a_terminal_stops_the_text_and_not_the_program(here: Path, tmp_path: Path) -> None:
    with Terminal(["--interactive", *LONG], tmp_path) as terminal:
        terminal.until("Ctrl-D exits.")
        terminal.until("> ")
        terminal.type("the cat\n")
        terminal.until("the cat\r\n")
        streamed = terminal.more() + terminal.more()  # it comes in chunks
        terminal.type("\x03")
        streamed += terminal.until("> ")
        assert len(streamed) < 40_000
        time.sleep(0.5)  # Python's readline misses a Ctrl-C between its prompt and its wait for keys
        terminal.type("never mind\x03")  # clears the line
        terminal.until("> ")
        terminal.type("\x1b[A")  # the line before, by readline
        terminal.until("the cat")
        terminal.type("\n")
        terminal.until("\r\n")
        time.sleep(0.2)
        terminal.type("\x03")
        terminal.until("> ")
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
    assert (tmp_path / ".neomesh_history").read_text() == "the cat\n"  # a repeated line is kept once
