"""Every command that the documents show: it is there, and it takes the arguments shown."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
import urllib.parse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import httpx2
import pytest

import run_experiment
import tasks.dialogue.__main__
import tasks.dialogue.agreement
from configs.load import load_config
from data import check_tfrecords, create_dialogue_tfrecords, create_tfrecords, train_tokenizer
from data.dialogue import reddit, reddit_references
from main import config_overrides, parse_arguments
from serving.protocol import CompletionRequest
from serving.routes import ROUTES
from tests.serving.servers import scripted

REPOSITORY = Path(__file__).resolve().parents[1]
PAGES = sorted(str(path.relative_to(REPOSITORY)) for path in (REPOSITORY / "docs").glob("*.md"))
DOCUMENTS = ("README.md", "CONTRIBUTING.md", "examples/README.md", *PAGES)
README_LINES = 120
PYTHON = re.compile(r"(\.venv(-lm-eval)?/bin/)?python3?(\.\d+)?")
SERVED = "quickstart"
ADDRESS = "http://127.0.0.1:8000"
# Programs that are not the project's own.
OTHERS = {"docker", "git", "cd", "source", "ls", "cat", "cp", "mkdir", "tail", "printf", "tensorboard"}
OTHERS |= {".venv/bin/tensorboard", "lm_eval"}


def code_lines(text: str) -> Iterator[str]:
    """The lines of shell blocks: fenced as bash, sh or console, or set in by four blanks after an empty line."""
    for block in re.findall(r"^```(?:bash|sh|console)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL):
        yield from block.replace("\\\n", " ").splitlines()
    unfenced = re.sub(r"^```.*?^```$", "", text, flags=re.MULTILINE | re.DOTALL)
    for block in re.findall(r"(?<=\n\n)((?: {4}\S.*\n(?: {4,}.*\n)*)+)", unfenced):
        yield from block.replace("\\\n", " ").splitlines()


def commands(text: str) -> Iterator[tuple[str, ...]]:
    """The words of each command, without comments and prompts; `a && b` is two commands."""
    for line in code_lines(text):
        words = shlex.split(re.sub(r"^\s*(\$ |[A-Z_]+=\S+ )", "", line).replace("&&", " && "), comments=True)
        while words:
            end = words.index("&&") if "&&" in words else len(words)
            yield tuple(words[:end])
            words = words[end + 1 :]


def check_make(arguments: Sequence[str]) -> None:
    dry = subprocess.run(["make", "-n", *arguments], cwd=REPOSITORY, capture_output=True, text=True)
    assert dry.returncode == 0, dry.stderr


def check_main(arguments: Sequence[str]) -> None:
    parsed = parse_arguments(arguments)
    is_placeholder = "/" in parsed.model or parsed.model.endswith((".json", "-folder"))
    if not is_placeholder or (REPOSITORY / parsed.model).is_file():
        path_or_name = str(REPOSITORY / parsed.model) if parsed.model.endswith(".json") else parsed.model
        load_config(path_or_name, config_overrides(parsed))


def check_experiment(arguments: Sequence[str]) -> None:
    _, others = run_experiment.parse_arguments(arguments)
    if others:
        check_main(others)


def check_pip(arguments: Sequence[str]) -> None:
    assert arguments[:2] == ("install", "-r") and all((REPOSITORY / file).exists() for file in arguments[2:])


def body_of(arguments: Sequence[str]) -> str:
    """What curl would send as JSON."""
    printed = dict(zip(arguments[1::2], arguments[2::2], strict=True))
    assert set(printed) == {"-H", "-d"} and printed["-H"] == "Content-Type: application/json"
    return printed["-d"]


def check_request(arguments: Sequence[str]) -> None:
    """A request to a server that serves the model which the documents serve."""
    assert urllib.parse.urlsplit(arguments[0]).path in {route.path for route in ROUTES}
    assert CompletionRequest.model_validate_json(body_of(arguments)).model == SERVED


def check_pytest(arguments: Sequence[str]) -> None:
    files = [argument for argument in arguments if "/" in argument]
    assert [file for file in files if not (REPOSITORY / file.split("::")[0]).exists()] == []


def check_script(script: str, arguments: Sequence[str]) -> None:
    """A script without a parser to ask: its source must know each flag."""
    known = re.findall(r"\"(--[\w-]+)\"", (REPOSITORY / script).read_text(encoding="utf-8"))
    assert {word.split("=")[0] for word in arguments if word.startswith("--")} <= set(known)


MODULES: dict[str, Callable[[Sequence[str]], object]] = {
    "pytest": check_pytest,
    "tasks.dialogue": tasks.dialogue.__main__.parse_arguments,
    "tasks.dialogue.agreement": tasks.dialogue.agreement.parse_arguments,
}
PARSERS: dict[str, Callable[[Sequence[str]], object]] = {
    "main.py": check_main,
    "run_experiment.py": check_experiment,
    "data/check_tfrecords.py": check_tfrecords.parse_arguments,
    "data/create_dialogue_tfrecords.py": create_dialogue_tfrecords.parse_arguments,
    "data/create_tfrecords.py": create_tfrecords.parse_arguments,
    "data/dialogue/reddit.py": reddit.parse_arguments,
    "data/dialogue/reddit_references.py": reddit_references.parse_arguments,
    "data/train_tokenizer.py": train_tokenizer.parse_arguments,
}


def check_python(arguments: Sequence[str]) -> None:
    if arguments[0] == "-m":
        MODULES[arguments[1]](arguments[2:])
    elif arguments[0] in PARSERS:
        PARSERS[arguments[0]](arguments[1:])
    else:
        check_script(arguments[0], arguments[1:])


CHECKS: dict[str, Callable[[Sequence[str]], None]] = {"make": check_make, "pip": check_pip, "curl": check_request}


def check(words: Sequence[str]) -> None:
    program, arguments = words[0], words[1:]
    if program in CHECKS:
        CHECKS[program](arguments)
    elif PYTHON.fullmatch(program):
        check_python(arguments)
    else:
        assert program in OTHERS, f"nothing here can check {shlex.join(words)}"


SHOWN = [
    (document, words)
    for document in DOCUMENTS
    for words in dict.fromkeys(commands((REPOSITORY / document).read_text(encoding="utf-8")))
]


def test_the_config_of_the_readme_is_that_of_the_example(tmp_path: Path) -> None:
    (shown,) = re.findall(r"^```json\n(\{.*?)^```$", (REPOSITORY / "README.md").read_text(), re.MULTILINE | re.DOTALL)
    (tmp_path / "books.json").write_text(shown)
    assert load_config(str(tmp_path / "books.json")) == load_config(str(REPOSITORY / "examples" / "books.json"))


@pytest.mark.parametrize(
    ("document", "words"), SHOWN, ids=lambda part: part if isinstance(part, str) else " ".join(part)
)
def test_a_command_that_is_shown_can_be_run(document: str, words: tuple[str, ...]) -> None:
    check(words)


def test_the_two_commands_are_shown() -> None:
    assert {("README.md", ("make", "quickstart")), ("README.md", ("make", "test"))} <= set(SHOWN)


def test_the_readme_is_short() -> None:
    assert len((REPOSITORY / "README.md").read_text(encoding="utf-8").splitlines()) <= README_LINES


@pytest.mark.parametrize("document", DOCUMENTS)
def test_links_lead_somewhere(document: str) -> None:
    path = REPOSITORY / document
    links = re.findall(r"\]\((?!https?:)([^)]+)\)", path.read_text(encoding="utf-8"))
    for file, _, anchor in (link.partition("#") for link in links):
        target = (path.parent / file).resolve() if file else path
        assert target.exists(), file
        assert not anchor or anchor in anchors(target), f"{file}#{anchor}"


def anchors(page: Path) -> set[str]:
    """The anchors that the site and GitHub give to a page's headings."""
    headings = re.findall(r"^#+ (.*)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading).lower().replace(" ", "-") for heading in headings}


def test_every_page_is_in_the_site() -> None:
    with open(REPOSITORY / "zensical.toml", "rb") as file:
        text = file.read().decode()
    assert sorted(f"docs/{page}" for page in re.findall(r'= "([\w-]+\.md)"', text)) == PAGES


def json_blocks() -> list[tuple[str, str]]:
    pages = [(document, (REPOSITORY / document).read_text(encoding="utf-8")) for document in DOCUMENTS]
    return [(name, block) for name, text in pages for block in re.findall(r"^```json\n(.*?)^```$", text, re.M | re.S)]


@pytest.mark.parametrize(("document", "block"), json_blocks())
def test_json_that_is_shown_can_be_used(tmp_path: Path, document: str, block: str) -> None:
    shown = json.loads(block if block.startswith("{") else f"{{{block}}}")
    if "prompt" in shown:
        assert CompletionRequest.model_fields.keys() >= shown.keys() - {"id", "n_samples", "max_new_tokens"}
    elif "text" in shown or "dialogue" in shown:
        load_config("quickstart", overrides(datasets=[{"id": "shown", **shown}], n_vocab=shown["n_vocab"]))
    elif "n_layer" in shown:
        (tmp_path / "shown.json").write_text(block)
        load_config(str(tmp_path / "shown.json"))
    else:
        load_config("benchmark_small", overrides(**shown))


def overrides(**values: object) -> list[str]:
    return [f"{key}={value if isinstance(value, str) else json.dumps(value)}" for key, value in values.items()]


def test_requests_that_are_shown_are_answered() -> None:
    """They are sent to the server of the tests, which repeats the prompt and has another name and address."""
    text = (REPOSITORY / "docs" / "serving.md").read_text(encoding="utf-8")
    program, chat = re.findall(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    (request,) = (words[1:] for words in commands(text) if words[0] == "curl")
    with scripted() as server:

        def for_it(text: str) -> str:
            return text.replace(ADDRESS, server.url).replace(SERVED, "scripted")

        printed = subprocess.run([sys.executable, "-c", for_it(program)], capture_output=True, text=True, timeout=60)
        assert len(printed.stdout) == 40 and set(printed.stdout) <= set("def main"), printed.stderr[-2000:]
        printed = subprocess.run([sys.executable, "-c", for_it(chat)], capture_output=True, text=True, timeout=60)
        assert 0 < len(printed.stdout.strip()) <= 40, printed.stderr[-2000:]
        answer = httpx2.post(for_it(request[0]), json=json.loads(for_it(body_of(request))))
        assert len(answer.json()["choices"][0]["text"]) == 40


def test_commands_are_found() -> None:
    text = "\n".join(
        [
            "Text with `make nothing` in it.",
            "```bash",
            "$ make quickstart  # what it does",
            'cd x && python3 main.py --model tiny \\\n  --set "a = b"',
            "```",
            "```json",
            '{"make": "nothing"}',
            "```",
            "",
            "    make test",
            "    make lint",
            "",
            "- a list",
            "  make nothing",
            "",
        ]
    )
    assert list(commands(text)) == [
        ("make", "quickstart"),
        ("cd", "x"),
        ("python3", "main.py", "--model", "tiny", "--set", "a = b"),
        ("make", "test"),
        ("make", "lint"),
    ]


@pytest.mark.parametrize(
    "command",
    [
        "make quickstrat",
        "python3 -m tasks.dialogue hyp.txt --n_refs none",
        "python3 -m tasks.nothing",
        "python3 main.py --model quickstrat",
        "python3 main.py --model quickstart --evaluate",
        "python3 main.py --model quickstart --set lerning_rate=1",
        "python3 main.py --model quickstart --temperature hot",
        "python3 data/create_tfrecords.py --inputs nowhere",
        "python3 -m pytest tests/test_nothing.py",
        "python3 docs/generate_configuration.py --nonsense",
        "python3 nothing.py",
        "npm install",
        "pip install -r requirements-nothing.txt",
        """curl http://127.0.0.1:8000/v1/completion -H "Content-Type: application/json" -d '{"model": "quickstart"}'""",
        """curl http://127.0.0.1:8000/v1/completions -H "Content-Type: application/json" -d '{"model": "other"}'""",
        """curl http://127.0.0.1:8000/v1/completions -H "Content-Type: text/plain" -d '{"model": "quickstart"}'""",
    ],
)
def test_a_command_that_cannot_be_run_is_caught(command: str) -> None:
    with pytest.raises((AssertionError, KeyError, ValueError, SystemExit, FileNotFoundError)):
        check(shlex.split(command))
