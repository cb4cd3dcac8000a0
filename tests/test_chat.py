"""--chat and --self_play with a model that was trained to talk."""

from __future__ import annotations

import json
import os
import subprocess
import time
from pathlib import Path

import pytest

from tests.program import ENVIRONMENT, command
from tests.talks import Talks
from tests.terminal import Terminal

pytestmark = [pytest.mark.slow, pytest.mark.processes]

QUESTIONS = ("where is the cow ?", "who is at the sea ?")


def run(talks: Talks, typed: bytes, *arguments: str) -> subprocess.CompletedProcess[bytes]:
    return subprocess.run(command(*arguments), cwd=talks.folder, env=ENVIRONMENT, input=typed, capture_output=True)


def test_answers_are_those_of_the_model(talks: Talks, tmp_path: Path) -> None:
    """To all turns so far, one answer for each line, and nothing else on standard output."""
    saved = tmp_path / "talk.jsonl"
    typed = f"\n{QUESTIONS[0]}\r\n{QUESTIONS[1]}\n/save {saved}\n".encode()
    done = run(talks, b"\xef\xbb\xbf" + typed, "--chat", "--temperature", "0")
    turns: list[str] = []
    for question in QUESTIONS:
        turns.append(question)
        turns.append(talks.most_likely_answer(turns, 16))
    assert turns[1].endswith(" .") and turns[3].startswith("it is ")
    assert (done.returncode, done.stdout.decode()) == (0, f"{turns[1]}\n{turns[3]}\n"), done.stderr
    assert b"chat template: dialogpt; temperature = 0.0, top_k = 10, answers of up to 16 tokens" in done.stderr
    assert [message["content"] for message in json.loads(saved.read_text())["messages"]] == turns


def test_a_line_that_is_no_text_loses_no_answer(talks: Talks) -> None:
    done = run(talks, f"{QUESTIONS[0]}\n".encode() + b"\xff\n/undo\n" + QUESTIONS[0].encode(), "--chat", "--seed", "3")
    first, second = done.stdout.decode().splitlines()
    assert done.returncode == 2 and first == second
    assert b"the line: is not UTF-8 text; type it again\n" in done.stderr


def test_self_play_answers_its_own_turns(talks: Talks) -> None:
    arguments = ["--self_play", "3", "--prompt_text", QUESTIONS[0], "--temperature", "0"]
    turns = [QUESTIONS[0]]
    for _ in range(3):
        turns.append(talks.most_likely_answer(turns, 16))
    done = run(talks, b"", *arguments)
    assert (done.returncode, done.stdout.decode().splitlines()) == (0, turns), done.stderr


def test_a_system_line_needs_a_template_that_has_one(talks: Talks) -> None:
    done = run(talks, b"hi\n", "--chat", "--system", "be kind")
    assert (done.returncode, done.stdout) == (2, b"")
    assert done.stderr.decode().splitlines()[-1] == (
        "--system: the chat template dialogpt has no system line; leave it out, or give a --chat_template that has one"
    )


def test_a_terminal(talks: Talks, tmp_path: Path) -> None:
    """Ctrl-C stops an answer and keeps the chat; Ctrl-D ends it."""
    arguments = ["--chat", "--temperature", "0", "--never_end", "--max_new_tokens", "30"]
    with Terminal(arguments, tmp_path, talks.folder) as terminal:
        terminal.until("/help lists the commands")
        terminal.until("> ")
        terminal.type(f"{QUESTIONS[0]}\n")
        terminal.until(f"{QUESTIONS[0]}\r\n")
        terminal.more()
        terminal.type("\x03")
        terminal.until("> ")
        terminal.type("/undo\n")
        terminal.until("messages: 0")
        terminal.until("> ")
        time.sleep(0.5)  # Python's readline misses a Ctrl-C between its prompt and its wait for keys
        terminal.type("\x04")
        assert terminal.process.wait(timeout=30) == 0
    assert os.path.exists(tmp_path / ".neomesh_history")
