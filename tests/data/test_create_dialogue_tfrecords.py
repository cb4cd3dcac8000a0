"""Conversations to tfrecords: every conversation and every weighted token is accounted for."""

import json
import os
import re
from pathlib import Path

import numpy as np
import pytest

from data.create_dialogue_tfrecords import main, parse_arguments
from data.preprocessing.packing import ConversationPacker, ResumePoint, ShardLayout
from data.preprocessing.splits import DocumentPosition
from data.tfrecord.records import parse_examples, read_records
from data.tokenization.tokenizer import load_tokenizer
from tests.data.dialogue.test_templates import PLAIN

EOS = 50256


def records(folder, prefix):
    files = sorted(Path(folder).glob(f"{prefix}_[0-9]*.tfrecords"))
    return [record for file in files for record in parse_examples(list(read_records(str(file))), None)]


@pytest.fixture
def tokenizer_file(tmp_path):
    (tmp_path / "bytes.json").write_text(PLAIN.to_json())
    return str(tmp_path / "bytes.json")


def create(tmp_path, tokenizer_file, *flags):
    out = str(tmp_path / "out")
    return main(
        ["--input_dir", str(tmp_path / "in"), "--output_dir", out, "--name", "d", "--encoder_path", tokenizer_file]
        + ["--processes", "1", *flags]
    )


@pytest.fixture
def chats(tmp_path):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.tsv").write_text("0.0 ab EOS 1.0 c\t1.0 d\nlost\n0.0 x\t0.0 y\n")
    chat = {"messages": [{"role": "user", "content": "e"}, {"role": "assistant", "content": "fg", "weight": 0.5}]}
    (tmp_path / "in" / "b.jsonl").write_text(json.dumps(chat) + "\n")


def spelled(record):
    text = "".join(PLAIN.decode([i]) for i in record.ids_L).replace("<|endoftext|>", ".")
    return text, record.loss_weights_L.tolist(), record.segments_L.tolist()


def test_conversations_are_packed_with_weights_and_segments(tmp_path, tokenizer_file, chats, capsys):
    assert create(tmp_path, tokenizer_file, "--chunk_size", "13") == 0
    (record,) = records(tmp_path / "out", "d")
    text, weights, segments = spelled(record)
    assert text == "ab.c.d.e.fg..."  # padding is the end of text here
    assert weights == [0, 0, 0, 1, 1, 1, 1, 0, 0, 0.5, 0.5, 0.5, 0, 0]
    assert segments == [1] * 7 + [2] * 5 + [0] * 2
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    expected = {"documents_read": 4, "documents_kept": 2, "discarded_undecodable": 1, "discarded_unanswered": 1}
    assert {key: report[key] for key in expected} == expected
    assert report["weighted_tokens"] == 7 and report["padding_tokens"] == 2
    assert report["problems"] == ["a.tsv:2: 1 columns: DialoGPT's lines have two, turns and response"]


def test_one_conversation_each(tmp_path, tokenizer_file, chats):
    assert create(tmp_path, tokenizer_file, "--chunk_size", "7", "--packing", "single", "--reverse") == 0
    found = [spelled(record) for record in records(tmp_path / "out", "d")]
    assert [(text, segments) for text, _, segments in found] == [
        ("d.c.....", [1, 1, 1, 1, 0, 0, 0, 0]),  # the first turn has weight 0 in the file
        ("fg.e....", [1, 1, 1, 1, 1, 0, 0, 0]),
    ]
    assert found[1][1] == [0, 0, 0, 1, 1, 0, 0, 0]


def test_the_dataset_config_keeps_conversations_apart(tmp_path, tokenizer_file, chats):
    config = tmp_path / "d.json"
    assert create(tmp_path, tokenizer_file, "--chunk_size", "13", "--write_dataset_config", str(config)) == 0
    values = json.loads(config.read_text())
    assert (values["packing"], values["chat_template"]) == ("masked", "dialogpt")


@pytest.mark.parametrize(
    "flags, message",
    [
        (["--chat_template", "chatml"], "chat_template: the tokenizer has no <|im_start|>"),
        (["--chat_template", "no.jinja"], "chat_template = no.jinja: cannot be read"),
        (["--max_turns", "1"], "--max_turns 1: is too small; give 2 or more"),
        (["--packing", "loose"], "invalid choice: 'loose'"),
    ],
)
def test_what_is_refused(tmp_path, tokenizer_file, chats, flags, message, capsys):
    try:
        status = create(tmp_path, tokenizer_file, *flags)
    except SystemExit as end:
        status = end.code
    assert status == 2 and message in capsys.readouterr().err
    assert not list((tmp_path / "out").glob("*.tfrecords")) if (tmp_path / "out").exists() else True


def test_dialogpts_flags_are_known():
    settings = parse_arguments(["--corpus", "a.tsv", "--max_seq_len", "128", "--reverse", "--two_turn"])
    assert settings.chunk_size == 128 and settings.dialogue.rules.reverse and settings.dialogue.rules.two_turn


def conversation(number, lengths):
    """A conversation in parts of some lengths; the ids name it and its part."""
    parts = np.zeros(sum(lengths), [("id", np.int32), ("weight", np.float32), ("segment", np.int32)])
    parts["segment"] = np.repeat(range(len(lengths)), lengths)
    parts["id"], parts["weight"] = 100 * number + parts["segment"], 1
    return parts


def test_packing_resumes_after_every_example():
    draw = np.random.default_rng(0)
    conversations = [conversation(n, draw.integers(1, 9, draw.integers(1, 4))) for n in range(30)]
    layout = ShardLayout("d", 8, 5, separator=0, padding=7, conversations="packed")

    def run(start, examples):
        packer = ConversationPacker(layout, start)
        for number in range(start.document.overall, len(conversations)):
            for example in packer.add(DocumentPosition(0, number, number), conversations[number], 1, True):
                yield example, packer
        for example in packer.finish(DocumentPosition(1, 0, len(conversations))):
            yield example, packer

    whole, points, stats = [], [], None
    for example, packer in run(ResumePoint(), 0):
        whole.append(example)
        points.append(packer.resume_point())
        stats = packer.stats
    packed = np.concatenate([example[example["segment"] > 0] for example in whole])
    assert packed["id"].tolist() == np.concatenate(conversations)["id"].tolist()
    for n_done, point in enumerate(points[:-1], start=1):
        again = list(run(point, n_done))
        assert all((one == other).all() for (one, _), other in zip(again, whole[n_done:], strict=True))
        assert again[-1][1].stats == stats


@pytest.mark.parametrize("reverse", [False, True])
def test_reddit_lines_are_read_whole(tmp_path, capsys, reverse):
    """Real lines in DialoGPT's form, against a count by its rules: neither first turns nor those of weight 0 count."""
    data = os.environ.get("NEOMESH_TEST_DATA")
    if not data:
        pytest.skip("NEOMESH_TEST_DATA does not name the folder of the test data")
    corpus, tokenizer = f"{data}/dialogue/reddit_1000.tsv", load_tokenizer(f"{data}/gpt2_tokenizer")
    flags = ["--corpus", corpus, "--output_dir", str(tmp_path), "--name", "r", "--max_seq_len", "255"]
    flags += ["--encoder_path", f"{data}/gpt2_tokenizer", "--processes", "1", "--packing", "single"]
    assert main([*flags, *(["--reverse"] if reverse else [])]) == 0
    n_examples = n_weighted = 0
    for line in Path(corpus).read_text().splitlines():
        turns = [re.match(r"(\d\.\d) (.*)", turn).groups() for turn in line.replace("\t", " EOS ").split(" EOS ")]
        turns = turns if float(turns[-1][0]) else turns[:-1]
        counted = [text for weight, text in (turns[::-1] if reverse else turns)[1:] if float(weight)]
        n_examples += bool(counted)
        n_weighted += sum(len(tokenizer.encode(text)) + 1 for text in counted)
    report = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert (report["documents_read"], report["documents_kept"], report["cut_conversations"]) == (1000, n_examples, 0)
    found = records(tmp_path, "r")
    assert len(found) == n_examples and report["weighted_tokens"] == n_weighted
    assert sum(np.count_nonzero(record.loss_weights_L) for record in found) == n_weighted
