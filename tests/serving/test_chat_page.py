"""The chat page, and that it answers as the terminal and OpenAI's client do."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import re
import subprocess
from collections.abc import Mapping
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import httpx2
import pytest

from serving.chat_page import FILE
from tests.browser import CHROMIUM, NEEDS_BROWSER, installed_packages
from tests.program import ENVIRONMENT, command
from tests.serving.servers import running, scripted
from tests.talks import Talks

KEY = "key"


class _Elements(HTMLParser):
    """Collects the elements of a page, and what scripts and styles hold."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.inside: dict[str, list[str]] = {"script": [], "style": []}
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        tag = self.elements[-1][0] if self.elements else ""
        if tag in self.inside and data.strip():
            self.inside[tag].append(data)


def test_the_page_may_run_its_own_script_and_ask_its_own_server_only() -> None:
    with scripted(NEOMESH_API_KEY=KEY) as server:
        response = httpx2.get(server.url)
    assert response.status_code == 200 and response.headers["content-type"] == "text/html; charset=utf-8"
    inside = _Elements(response.text).inside
    assert response.text == FILE.read_text(encoding="utf-8")
    hashes = {
        tag: base64.b64encode(hashlib.sha256(content.encode()).digest()).decode() for tag, (content,) in inside.items()
    }
    policy = dict(part.strip().split(" ", 1) for part in response.headers["content-security-policy"].split(";"))
    assert policy == {
        "default-src": "'none'",
        "script-src": f"'sha256-{hashes['script']}'",
        "style-src": f"'sha256-{hashes['style']}'",
        "connect-src": "'self'",
        "img-src": "data:",
        "base-uri": "'none'",
        "form-action": "'none'",
        "frame-ancestors": "'none'",
    }


def test_the_page_is_whole_and_labelled() -> None:
    page = FILE.read_text(encoding="utf-8")
    elements = _Elements(page).elements
    assert "//" not in re.sub(r"(?m)(^|\s)// .*$", "", page) and "@import" not in page
    assert not any("style" in given or name.startswith("on") for _, given in elements for name in given)
    assert not {"localStorage", "sessionStorage", "cookie", "innerHTML"} & set(re.findall(r"\w+", page))
    labelled = {given["for"] for tag, given in elements if tag == "label" and "for" in given}
    wrapped = {
        name for each in re.findall(r"<label.*?</label>", page, re.DOTALL) for name in re.findall('id="(\\w+)"', each)
    }
    fields = {given["id"] for tag, given in elements if tag in ("input", "textarea")}
    assert fields <= labelled | wrapped and "message" in labelled


def walk(folder: Path, address: str, key: str, settings: Mapping[str, str], *messages: str) -> dict[str, Any]:
    script = str(Path(__file__).with_name("chat_page_walk.js"))
    program = ["node", script, address, str(CHROMIUM), str(folder), key, json.dumps(settings), *messages]
    environment = {**os.environ, "NODE_PATH": str(installed_packages())}
    done = subprocess.run(program, env=environment, capture_output=True, text=True, timeout=400)
    assert done.returncode == 0, done.stderr[-2000:]
    return json.loads(done.stdout)


class TestInABrowser:
    """With a real one, by the keyboard alone."""

    pytestmark = [pytest.mark.slow, pytest.mark.processes, *NEEDS_BROWSER]

    def test_a_conversation(self, tmp_path: Path) -> None:
        """With a key, a stopped answer, an undone one, a message that is refused, and turns that no longer fit."""
        with scripted("--seconds_per_token", 0.05, NEOMESH_API_KEY=KEY) as server:
            settings = {"temperature": "0", "max_tokens": "30"}
            messages = ["<b>hi</b>", "no", "UNDO", "w" * 100, f"STOP {'x' * 20}", "y" * 40, "z" * 28]
            seen = walk(tmp_path, server.url, KEY, settings, *messages)
        assert seen["asked"] == ["<b>hi</b>", "x" * 20, "y" * 40, "z" * 28]
        first, stopped, third, last = seen["answers"]
        assert first == "<b>hi</b>" == third[:9] and "<b>hi</b>".startswith(stopped) and 0 < len(stopped) < 9
        assert last == "x" * 20 or last == "y" * 30
        assert seen["status"] == "The conversation no longer fits; its oldest turns are left out."
        assert (seen["stored"], seen["others"], seen["afterReset"]) == ([0, 0, ""], [], 0)
        assert seen["focused"] == "message"
        refused = [fault for fault in seen["faults"] if "401" not in fault and "400" not in fault]
        assert refused == []  # the browser names each request that is refused
        assert {path.name for path in tmp_path.iterdir()} == {"settings.png", "light.png", "dark.png", "narrow.png"}

    def test_the_page_the_terminal_and_the_client_give_the_same_answers(self, talks: Talks, tmp_path: Path) -> None:
        """For the same seed and settings, also once turns are left out."""
        questions = ["where is the cow ?", "who is at the sea ?", "where is the owl ?", "who is at the mat ?"] * 2
        typed = "".join(f"{question}\n" for question in questions)
        done = subprocess.run(
            command("--chat", "--seed", "5"),
            cwd=talks.folder,
            env=ENVIRONMENT,
            input=typed,
            capture_output=True,
            text=True,
        )
        expected = done.stdout.splitlines()
        assert len(expected) == len(questions) and "no longer fits" in done.stderr
        with running(command("--serve", "0"), talks.folder, ENVIRONMENT) as server:
            seen = walk(tmp_path, server.url, "", {"seed": "5"}, *questions)
            turns: list[dict[str, str]] = []
            client = server.client().chat.completions
            for question, answer in list(zip(questions, expected, strict=True))[:2]:  # the others do not fit
                turns.append({"role": "user", "content": question})
                options = {"temperature": 0.9, "seed": 5, "max_tokens": 16, "extra_body": {"top_k": 10}}
                given = client.create(model="tiny", messages=turns, **options).choices[0].message.content
                assert given == answer
                turns.append({"role": "assistant", "content": given})
        assert seen["answers"] == expected and seen["asked"] == questions
