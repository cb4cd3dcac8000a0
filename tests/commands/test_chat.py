"""Conversations with an engine that repeats the first turn it is given, up to the end of text."""

from __future__ import annotations

import dataclasses
import io
import json
import types
from pathlib import Path

import pytest

from commands.chat import Chat, Speaker, chat_settings
from commands.chat_template import choose_template
from commands.options import RerankingSettings
from commands.reranking import find_sampling_issues
from commands.text_generator import TextGenerator
from configs.errors import ConfigError, DataError
from configs.schema import DatasetConfig, DatasetUse
from data.dialogue.templates import load_template
from main import parse_arguments
from runtime.cluster.process_group import ALONE
from runtime.generation.requests import sample_seed
from runtime.generation.reranking import Scores
from tests import tiny
from tests.serving.scripted import EOS_ID, ScriptedEngine, byte_tokenizer, shortest

TOKENIZER = byte_tokenizer()
N_CTX = 32
NO_OPTIONS = types.SimpleNamespace(typed_keys=(), chat_template=None, init_from=None)


@dataclasses.dataclass
class Desk:
    """A chat whose answers can be read."""

    chat: Chat
    output: io.StringIO

    def say(self, *lines: str) -> list[str]:
        """Types lines; returns the answers to them."""
        self.output.seek(0)
        self.output.truncate()
        self.status = self.chat.run(iter(lines), is_typed=False)
        return self.output.getvalue().splitlines()


def run_config(**prediction: object) -> object:
    config = tiny.run_config()
    model = dataclasses.replace(config.model, n_ctx=N_CTX)
    return dataclasses.replace(config, model=model, prediction=dataclasses.replace(config.prediction, **prediction))


def desk(**prediction: object) -> Desk:
    config = run_config(**{"temperature": 0.0, **prediction})
    run = types.SimpleNamespace(config=config, tokenizer=TOKENIZER, group=ALONE, options=NO_OPTIONS)
    output, template = io.StringIO(), load_template("dialogpt", TOKENIZER, EOS_ID)
    generator = TextGenerator(run, ScriptedEngine(1, N_CTX, 0.0), None)
    return Desk(Chat(Speaker(generator, template, output), (), chat_settings(config, NO_OPTIONS)), output)


def test_each_answer_is_to_all_turns_before_it() -> None:
    assert desk().say("ha", "b", "", " \t", "c") == ["ha"] * 3


def test_the_oldest_turns_are_left_out_once_they_do_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    """A letter is a token, and so is the end of a turn; 24 fit beside an answer of 8."""
    talk = desk()
    assert talk.say("abcdef", "ghijkl") == ["abcdef", "abcdef"]  # 21 tokens
    assert capsys.readouterr().out == ""
    assert talk.say("xy") == ["ghijkl"]  # 31 with the first two
    assert talk.say("z") == ["xy"]  # ghijkl abcdef xy ghijkl z: 26
    line = "the conversation: no longer fits into n_ctx = 32; its oldest turns are left out\n"
    assert capsys.readouterr().out == line
    assert talk.say("/reset", "abcdef") == ["abcdef"] and talk.status == 0


@pytest.mark.parametrize("line", ["/undo 3", "/reset all", "/quit now", "/settings x"])
def test_a_command_that_takes_nothing_is_not_carried_out_with_more(
    line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = desk()
    assert talk.say("ab", line, "c") == ["ab", "ab"] and talk.status == 2
    assert capsys.readouterr().out == f"{line}: takes nothing after it; type {line.split()[0]}\n"


def test_a_message_that_is_too_long_is_refused_and_forgotten(capsys: pytest.CaptureFixture[str]) -> None:
    talk = desk()
    assert talk.say("ab", "x" * 24, "c") == ["ab", "ab"] and talk.status == 2
    assert capsys.readouterr().out == (
        "the message: makes 25 tokens, and there is room for 24 beside the answer; shorten it, or lower "
        "max_new_tokens\n"
    )


def test_bytes_that_are_no_text_are_refused_and_the_others_answered(capsys: pytest.CaptureFixture[str]) -> None:
    talk = desk()
    assert talk.say("ä€", b"\xff".decode(errors="surrogateescape"), "c") == ["ä€", "ä€"] and talk.status == 2
    assert capsys.readouterr().out == "the line: is not UTF-8 text; type it again\n"


def test_an_answer_has_as_many_tokens_as_there_is_room_for() -> None:
    assert desk().say("abcdefghijkl") == ["abcdefgh"]
    assert desk(predict_max_steps=3).say("abcdefghijkl") == ["abc"]
    assert desk(predict_max_steps=1000).say("abcdefghijkl" + "m" * 3) == ["abcdefghijkl" + "m" * 3]


def test_commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    talk = desk()
    assert talk.say("a", "b", "/undo", "/undo", "c", "//x", "/save talk.jsonl", "/quit", "d") == ["a", "a", "c", "c"]
    assert talk.status == 0 and capsys.readouterr().out == "messages: 1\nmessages: 0\nwritten to talk.jsonl\n"
    turns = [("user", "c"), ("assistant", "c"), ("user", "/x"), ("assistant", "c")]
    saved = {"messages": [{"role": role, "content": text} for role, text in turns]}
    assert json.loads(Path("talk.jsonl").read_text()) == saved
    assert talk.say("/help") == []
    assert [line.split()[0] for line in capsys.readouterr().out.splitlines()] == [
        *("/reset", "/undo", "/save", "/seed", "/settings", "/help", "/quit")
    ]
    assert talk.say("/settings") == []
    shown = capsys.readouterr().out.splitlines()
    assert shown[0] == "chat template = dialogpt, n_ctx = 32, turns = 4"
    assert {"top_k = 10", "temperature = 0.0", "max_new_tokens = 8", "seed = null"} <= set(shown)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("/undo", "/undo: nothing was said yet; type a message"),
        ("/save", "/save: names no file; give one, such as /save chat.jsonl"),
        ("/save there", "/save there: is there already; give another file"),
        ("/save there/x", "there/x: cannot be written"),
        ("/save a\0b", "/save a\0b: "),
        ("/seed x", '/seed: seed = "x": is a string, not an integer; give an integer from 0 to 2147483647'),
        ("/seed -1", "/seed: seed = -1: is out of range; give an integer from 0 to 2147483647"),
        ("/rest", "/rest: is not a command; /help lists them, and // begins a message"),
        ("/", "/: is not a command; /help lists them, and // begins a message"),
    ],
)
def test_a_command_that_cannot_be_carried_out(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], line: str, message: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("there").write_text("")
    talk = desk()
    assert talk.say(line, "a") == ["a"] and talk.status == 2
    assert capsys.readouterr().out.startswith(message)
    assert Path("there").read_text() == "" and len(list(tmp_path.iterdir())) == 1


def test_a_seed_gives_the_same_answer_each_time() -> None:
    letters = "abcdefghijklmnopqrs"
    talk = desk(temperature=1.0)
    first, second = talk.say("/seed 7", letters, "/undo", letters)
    assert first == second and first in letters * 2
    answers = {talk.say("/undo", "/seed none", letters)[0] for _ in range(12)}
    assert len(answers) > 1


def test_the_model_talks_to_itself() -> None:
    """As in a chat, the last turn is the other's."""
    talk = desk()
    talk.chat.play("abcdef", 3)
    assert talk.output.getvalue() == "abcdef\n" * 4  # 21 tokens before the last answer


@pytest.mark.parametrize(
    ("prediction", "typed", "expected"),
    [
        ({}, (), (10, N_CTX // 4)),
        ({"top_k": 3, "predict_max_steps": 5}, (), (3, 5)),
        ({}, ("top_k",), (0, N_CTX // 4)),
        ({"top_p": 0.9}, (), (0, N_CTX // 4)),
        ({"predict_max_steps": 30}, ("predict_max_steps",), (10, N_CTX // 2)),
    ],
)
def test_settings_are_those_of_the_run_and_else_dialogpts(
    prediction: dict, typed: tuple[str, ...], expected: tuple[int, int]
) -> None:
    settings = chat_settings(run_config(**prediction), types.SimpleNamespace(typed_keys=typed))
    assert (settings.top_k, settings.predict_max_steps) == expected


def test_the_template_is_that_of_the_flag_or_the_folder_or_dialogpts(tmp_path: Path) -> None:
    config = dataclasses.replace(tiny.run_config(), model_path=str(tmp_path))

    def name(flag: str | None) -> str:
        options = types.SimpleNamespace(chat_template=flag, init_from=None)
        return choose_template(types.SimpleNamespace(config=config, options=options, tokenizer=TOKENIZER)).name

    assert name(None) == "dialogpt"
    (tmp_path / "chat_template.jinja").write_text("{% for m in messages %}{{ m['content'] + eos_token }}{% endfor %}")
    assert (name(None), name("dialogpt"), name("tokenizer")) == ("tokenizer", "dialogpt", "tokenizer")
    sources = ({"text": ("a.txt",)}, {"dialogue": ("talks.tsv",)})
    uses = tuple(DatasetUse(DatasetConfig(id="a", n_vocab=257, cache_dir="a", **source)) for source in sources)
    config = dataclasses.replace(config, data=dataclasses.replace(config.data, datasets=uses))
    assert (name(None), name("tokenizer")) == ("dialogpt", "tokenizer")
    with pytest.raises(DataError, match="chat_template: the tokenizer has no <|im_start|>"):
        name("chatml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--chat", "--prompt", "a"], "--prompt a: --chat gets its prompts later; leave --prompt out"),
        (["--self_play", "3"], "--self_play 3: needs a first line; give --prompt_text or --prompt"),
        (
            ["--self_play", "0", "--prompt_text", "a"],
            "--self_play 0: must be at least 1; give a number of turns",
        ),
        (["--predict", "--system", "a"], "--system: works with --chat only; leave it out, or give --chat"),
        (
            ["--predict", "--chat_template", "chatml"],
            "--chat_template chatml: works with --chat and --serve only; leave it out, or give one of them",
        ),
        (
            ["--chat", "--rows", "2"],
            "--rows 2: must be at least 1, and needs --predict, --serve or --prompt; give such a number, or leave it "
            "out",
        ),
    ],
)
def test_flags_that_do_not_go_together(arguments: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as raised:
        parse_arguments(["--model", "quickstart", *arguments])
    assert str(raised.value) == message


def test_self_play_is_a_chat() -> None:
    for arguments in (["--self_play", "3"], ["--chat", "--self_play", "3"], ["--self_play", "3", "--chat"]):
        parsed = parse_arguments(["--model", "quickstart", *arguments, "--prompt_text", "hi"])
        assert (parsed.command, parsed.self_play) == ("chat", 3)


def test_the_best_of_several_answers_is_given_and_all_are_shown(capsys: pytest.CaptureFixture[str]) -> None:
    config, asked = run_config(temperature=1.0, predict_seed=3), []
    options = types.SimpleNamespace(reranking=RerankingSettings(4, True, "backward", {}, False, 0.0))
    run = types.SimpleNamespace(config=config, tokenizer=TOKENIZER, group=ALONE, options=NO_OPTIONS)

    def scores(turns: list[str], texts: list[str]) -> list[Scores]:
        asked.append(turns)
        return shortest(turns, texts)

    reranker = types.SimpleNamespace(run=types.SimpleNamespace(options=options), scores=scores)
    output, template = io.StringIO(), load_template("dialogpt", TOKENIZER, EOS_ID)
    speaker = Speaker(TextGenerator(run, ScriptedEngine(3, N_CTX, 0.0), None), template, output, reranker)
    talk = Desk(Chat(speaker, (), chat_settings(config, NO_OPTIONS)), output)
    drawn = ["abcdef"[sample_seed(3, sample) % 7 :] for sample in range(4)]
    ranked = sorted(drawn, key=lambda text: (not text, len(text)))
    assert talk.say("abcdef") == [ranked[0]] and asked == [["abcdef"]]
    shown = capsys.readouterr().out.splitlines()
    assert [json.loads(line.split("  ")[-1]) for line in shown] == ranked
    talk.say("uvwxyz")
    assert asked[1] == ["abcdef", ranked[0], "uvwxyz"]
    talk.chat.is_stopped.set()
    assert talk.say("a") == [""]


def test_a_temperature_of_0_leaves_nothing_to_choose_from() -> None:
    assert list(find_sampling_issues("--chat", run_config(temperature=0.0).prediction, 4)) == [
        "--chat: temperature = 0: all candidates would be the same; raise it"
    ]
