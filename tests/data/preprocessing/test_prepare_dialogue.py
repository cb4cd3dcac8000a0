"""Raw conversations of dataset configs: what is counted, held out, kept in the cache, and refused."""

from __future__ import annotations

import dataclasses
import glob
import json
from pathlib import Path

import numpy as np
import pytest

import data.preprocessing.prepare
from configs.errors import DataError
from configs.schema import DatasetConfig
from data.dialogue.templates import DIALOGPT
from data.preprocessing.prepare import PreparedDataset, prepare_dataset
from data.preprocessing.settings import DialogueSettings
from data.preprocessing.shard_writer import ShardWriter
from data.tfrecord.records import Record, decode_records
from data.tokenization.bpe_training import save_tokenizer, train_byte_level_bpe
from data.tokenization.tokenizer import Tokenizer, load_tokenizer

N_CTX = 63
JINJA = "{% for m in messages %}{{ '<|' + m.role + '|>' + m.content + '<|end|>' }}{% endfor %}"
JINJA += "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}{# <|user|> <|system|> #}"


def write_chats(path: Path, number: int = 40) -> dict[str, list[str]]:
    """Writes conversations of 2 to 4 turns, each of which names the conversation."""
    chats = {
        f"chat {n}": [f"chat {n} hello", *(f"answer {n * 17 + i}" for i in range(1 + n % 3))] for n in range(number)
    }
    path.write_text("".join(json.dumps(turns) + "\n" for turns in chats.values()))
    return chats


def dataset_of(tmp_path: Path, **values: object) -> DatasetConfig:
    defaults = {"id": "chats", "n_vocab": 300, "dialogue": (f"{tmp_path}/chats.jsonl",), "eos_id": 0, "padding_id": 1}
    return DatasetConfig(**(defaults | {"cache_dir": f"{tmp_path}/cache", "eval_fraction": 0.2} | values))


def prepare(dataset: DatasetConfig) -> tuple[PreparedDataset, list[str]]:
    lines: list[str] = []
    return prepare_dataset(dataset, N_CTX, lines.append), lines


def records_of(pattern: str) -> list[Record]:
    return [record for path in sorted(glob.glob(pattern)) for record in decode_records(path)]


def conversations_of(pattern: str, tokenizer: Tokenizer) -> list[list[tuple[str, bool]]]:
    """The turns of each segment, and whether all of a turn and the end of text after it counts in the loss."""
    found = []
    for record in records_of(pattern):
        for segment in range(1, record.segments_L.max() + 1):
            ids, weights = (values[record.segments_L == segment] for values in (record.ids_L, record.loss_weights_L))
            ends = np.flatnonzero(ids == 0) + 1
            assert ends[-1] == len(ids)
            parts = list(zip(np.split(ids, ends)[:-1], np.split(weights, ends)[:-1], strict=True))
            assert all(len(set(weights)) == 1 for _, weights in parts)
            found.append([(tokenizer.decode(part[:-1].tolist()), bool(weights[0])) for part, weights in parts])
    return found


def test_conversations_become_a_tokenizer_and_two_splits(tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl")
    prepared, lines = prepare(dataset_of(tmp_path))
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    train, held_out = (conversations_of(p, tokenizer) for p in (prepared.train_pattern, prepared.eval_pattern))
    expected = [[(turn, number > 0) for number, turn in enumerate(turns)] for turns in chats.values()]
    assert 2 <= len(held_out) <= 20
    assert sorted(train + held_out) == sorted(expected)

    manifest = json.loads((Path(prepared.tokenizer_path).parent / "manifest.json").read_text())
    for name, conversations in (("train", train), ("eval", held_out)):
        counted = [turn for turns in conversations for turn, counts in turns if counts]
        assert manifest[name]["documents_read"] == manifest[name]["documents_kept"] == len(conversations)
        assert manifest[name]["weighted_tokens"] == sum(len(tokenizer.encode(turn)) + 1 for turn in counted)
    assert lines[0].startswith("chats: preparing 1 files of conversations in ")
    kept = f"{len(train)} read = {len(train)} kept + 0 discarded (0 undecodable, 0 empty, 0 too short)"
    assert lines[2] == f"chats: train: conversations: {kept}"
    assert f", of which {manifest['train']['weighted_tokens']:,} count in the loss, " in lines[3]


def test_the_tokenizer_never_sees_what_is_held_out(tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl")
    first, _ = prepare(dataset_of(tmp_path))
    held_out = conversations_of(first.eval_pattern, load_tokenizer(first.tokenizer_path))
    names = {turns[0][0] for turns in held_out}
    changed = [["zqzqzqzq " * 3] * 2 if turns[0] in names else turns for turns in chats.values()]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(turns) + "\n" for turns in changed))
    prepared, _ = prepare(dataset_of(tmp_path))
    tokenizer = load_tokenizer(prepared.tokenizer_path)
    assert {turn for turns in conversations_of(prepared.eval_pattern, tokenizer) for turn, _ in turns} == {
        "zqzqzqzq " * 3
    }
    assert not [token for token in json.loads(tokenizer.to_json())["model"]["vocab"] if "zq" in token]


def test_every_conversation_is_accounted_for(tmp_path):
    write_chats(tmp_path / "chats.jsonl", number=9)
    with open(tmp_path / "chats.jsonl", "a") as file:
        file.write('["alone"]\n{"nothing": 1}\nno json\n')
        file.write(json.dumps(["short", "word " * N_CTX, "again short", "last"]) + "\n")
    prepared, lines = prepare(dataset_of(tmp_path, eval_fraction=0.0))
    manifest = json.loads((Path(prepared.tokenizer_path).parent / "manifest.json").read_text())["train"]
    counts = {key: value for key, value in manifest.items() if key.startswith(("documents", "discarded")) and value}
    assert counts == {
        "documents_read": 13,
        "documents_kept": 10,
        "discarded_undecodable": 2,
        "discarded_unanswered": 1,
    }
    assert (manifest["cut_conversations"], manifest["turns_without_loss"]) == (0, 2)
    assert [line for line in lines if "left out chats.jsonl:11: no conversation under messages" in line]
    assert [line for line in lines if "left out chats.jsonl:12: not JSON" in line]


def test_the_rules_of_turns_are_used(tmp_path):
    chats = write_chats(tmp_path / "chats.jsonl")
    rules = {
        "reverse": lambda turns: turns[::-1],
        "two_turn": lambda turns: turns[:2],
        "max_turns": lambda turns: turns[-2:],
    }
    for key, rule in rules.items():
        prepared, _ = prepare(dataset_of(tmp_path, **{key: 2 if key == "max_turns" else True}, eval_fraction=0.0))
        found = conversations_of(prepared.train_pattern, load_tokenizer(prepared.tokenizer_path))
        assert sorted([turn for turn, _ in turns] for turns in found) == sorted(map(rule, chats.values()))


def test_a_tokenizer_is_trained_with_the_tokens_of_the_template(tmp_path):
    write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "own.jinja").write_text(JINJA)
    for template, names in (
        ("chatml", ["<|im_start|>", "<|im_end|>"]),
        (f"{tmp_path}/own.jinja", ["<|end|>", "<|assistant|>", "<|user|>", "<|system|>"]),
    ):
        prepared, _ = prepare(dataset_of(tmp_path, chat_template=template))
        tokenizer = load_tokenizer(prepared.tokenizer_path)
        assert tokenizer.special_tokens == ["<|endoftext|>", "<|padding|>", *names]
        (record, *_) = records_of(prepared.train_pattern)
        shown = tokenizer.decode_marked(record.ids_L[record.segments_L == 1].tolist())
        assert shown.startswith(f"⟦{names[0]}⟧user" if template == "chatml" else "⟦<|user|>⟧chat")
        last = np.flatnonzero(record.loss_weights_L)[-1]
        assert tokenizer.decode_marked([int(record.ids_L[last])]) == f"⟦{names[1 if template == 'chatml' else 0]}⟧"


def test_a_cache_is_up_to_date_until_conversations_template_or_rules_change(tmp_path):
    write_chats(tmp_path / "chats.jsonl")
    first, _ = prepare(dataset_of(tmp_path))
    assert prepare(dataset_of(tmp_path))[1] == [f"chats: {Path(first.tokenizer_path).parent} is up to date"]
    for changed in ({"reverse": True}, {"max_turns": 3}, {"two_turn": True}, {"chat_template": "chatml"}):
        assert prepare(dataset_of(tmp_path, **changed))[1][0].startswith("chats: preparing ")
    (tmp_path / "own.jinja").write_text(JINJA)
    own = dataset_of(tmp_path, chat_template=f"{tmp_path}/own.jinja")
    prepare(own)
    (tmp_path / "own.jinja").write_text(JINJA.replace("<|end|>", "<|stop|>"))
    prepared, lines = prepare(own)
    assert lines[0].startswith("chats: preparing ")
    assert load_tokenizer(prepared.tokenizer_path).id_of("<|stop|>") is not None
    write_chats(tmp_path / "chats.jsonl", number=41)
    assert prepare(dataset_of(tmp_path))[1][0].startswith("chats: preparing ")


def test_an_interrupted_preparation_is_resumed_with_the_same_files(tmp_path, monkeypatch):
    write_chats(tmp_path / "chats.jsonl")
    monkeypatch.setattr(data.preprocessing.prepare, "EXAMPLES_PER_FILE", 2)
    monkeypatch.setattr(data.preprocessing.prepare, "SHUFFLE_TOKENS", 3 * (N_CTX + 1))
    whole, _ = prepare(dataset_of(tmp_path, cache_dir=f"{tmp_path}/whole"))
    write_example = ShardWriter._write_example
    n_left = [8]

    def interrupted(writer: ShardWriter, example: np.ndarray) -> None:
        n_left[0] -= 1
        if not n_left[0]:
            raise KeyboardInterrupt
        write_example(writer, example)

    monkeypatch.setattr(ShardWriter, "_write_example", interrupted)
    with pytest.raises(KeyboardInterrupt):
        prepare(dataset_of(tmp_path))
    assert len(glob.glob(f"{tmp_path}/cache/*.partial/train/*.tfrecords")) > 1
    monkeypatch.setattr(ShardWriter, "_write_example", write_example)
    prepared, _ = prepare(dataset_of(tmp_path))
    contents = [[Path(path).read_bytes() for path in sorted(glob.glob(p.train_pattern))] for p in (whole, prepared)]
    assert contents[0] == contents[1] and len(contents[0]) > 3


def test_a_given_tokenizer_and_its_template_are_used(tmp_path):
    write_chats(tmp_path / "chats.jsonl")
    (tmp_path / "folder").mkdir()
    tokenizer = train_byte_level_bpe(["some text"] * 3, 300, special_tokens=("<|user|>", "<|assistant|>", "<|end|>"))
    save_tokenizer(tokenizer, f"{tmp_path}/folder/tokenizer.json")
    (tmp_path / "folder" / "chat_template.jinja").write_text(JINJA)
    given = dataset_of(tmp_path, tokenizer_path=f"{tmp_path}/folder", chat_template="tokenizer")
    prepared, _ = prepare(given)
    assert prepared.tokenizer_path == f"{tmp_path}/folder"
    (record, *_) = records_of(prepared.train_pattern)
    assert tokenizer.decode_marked(record.ids_L[:1].tolist()) == "⟦<|user|>⟧"


MORE = "add conversations, change eval_fraction, or set eval_fraction to 0 to hold out nothing"


@pytest.mark.parametrize(
    "changed, message",
    [
        ({"chat_template": "no.jinja"}, "chat_template = no.jinja: cannot be read"),
        ({"chat_template": "tokenizer"}, "chat_template = tokenizer: the tokenizer has no chat_template; give"),
        ({"cache_dir": "gs://mine/cache"}, "write tfrecords into the bucket with data/create_dialogue_tfrecords.py"),
        ({"dialogue": ("nowhere.tsv",)}, "nowhere.tsv"),
    ],
)
def test_what_cannot_be_prepared_is_refused_before_anything_is_written(tmp_path, changed, message):
    write_chats(tmp_path / "chats.jsonl")
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path, **changed))
    assert message in str(error.value)
    assert not (tmp_path / "cache").exists()


def test_a_conversation_is_never_cut_to_hold_something_out(tmp_path):
    write_chats(tmp_path / "chats.jsonl", number=1)
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path))
    assert str(error.value) == f"chats: the data is 1 conversation(s), and one must be held out; {MORE}"
    (tmp_path / "chats.jsonl").write_text('["alone"]\n["lonely"]\n')
    with pytest.raises(DataError) as error:
        prepare(dataset_of(tmp_path))
    assert str(error.value) == f"chats: no conversation with a response is left for train; {MORE}"


def test_the_defaults_are_those_of_the_script(tmp_path):
    settings, dataset = DialogueSettings(), dataset_of(tmp_path)
    assert settings.chat_template == dataset.chat_template == DIALOGPT
    rules = (dataset.reverse, dataset.two_turn, dataset.max_turns)
    assert dataclasses.astuple(settings.rules) == rules
    assert dataset.has_segments and not dataset_of(tmp_path, dialogue=(), text=("a",)).has_segments
