"""Pairs for ranking: how they are read, drawn from conversations and encoded, and what training is given of them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from data.dialogue.conversation import Turn, alternating
from data.dialogue.draw_pairs import draw_pairs, main
from data.dialogue.pairs import Pair, PairEncoder, pairs_from_text, pairs_of
from data.preprocessing.prepare import prepare_dataset
from inputs import evaluation_batches
from tests.data.dialogue.test_templates import EOS, PLAIN

PAIR = {"context": ["ab", "c"], "better": "de", "worse": "f"}


def spelled(ids: np.ndarray) -> str:
    return "".join("." if token == EOS else PLAIN.decode([token]) for token in ids)


def test_a_value_is_a_pair_or_pairs_that_stay_together() -> None:
    ((one, problem),) = pairs_of(PAIR)
    assert (pairs_from_text(one), problem) == ([Pair(["ab", "c"], "de", "f")], None)
    ((two, _),) = pairs_of([PAIR, PAIR | {"context": "ab EOS c"}])
    assert pairs_from_text(two) == [Pair(["ab", "c"], "de", "f")] * 2


@pytest.mark.parametrize(
    ("value", "problem"),
    [
        ("ab", "a pair is an object with context, better and worse"),
        ({**PAIR, "worse": " "}, "none of them empty"),
        ({**PAIR, "context": []}, "none of them empty"),
        ({**PAIR, "context": [1]}, "none of them empty"),
        ({"better": "a", "worse": "b"}, "a pair needs context (a text, or a list of turns)"),
        ({**PAIR, "worse": "de"}, "better and worse are the same"),
        ({**PAIR, "worse": "\ud83d"}, "half a surrogate pair"),
    ],
)
def test_what_is_no_pair(value: object, problem: str) -> None:
    ((text, found),) = pairs_of(value)
    assert text is None and problem in found


def test_both_texts_stand_after_one_another_and_their_ends_have_weight() -> None:
    (text, _), *_ = pairs_of([PAIR, {"context": "x", "better": "y", "worse": "z"}])
    encoded = PairEncoder(PLAIN, EOS, 40)([text])
    assert spelled(encoded.ids["id"]) == "ab.c.deab.c.f.x.yx.z."
    assert [spelled(encoded.ids["id"][: i + 1])[-1] for i in np.flatnonzero(encoded.ids["weight"])] == list("efyz")
    assert encoded.ids["segment"].tolist() == [0] * 14 + [1] * 7


def test_a_long_context_is_cut_on_its_left() -> None:
    ((text, _),) = pairs_of({"context": "abcdefgh", "better": "ij", "worse": "klmnopqrst"})
    assert spelled(PairEncoder(PLAIN, EOS, 12)([text]).ids["id"]) == "gh.ij" + "pqrst" + "."


def test_wrong_turns_are_those_of_others_at_the_same_place() -> None:
    said = {f"{conversation}{number}": (conversation, number) for conversation in "abcdef" for number in range(4)}
    conversations = [alternating([f"{conversation}{number}" for number in range(4)]) for conversation in "abcdef"]
    drawn = list(draw_pairs(conversations, seed=3, block=4))
    assert [[pair.better for pair in pairs] for pairs in drawn] == [[f"{c}{n}" for n in (1, 2, 3)] for c in "abcdef"]
    for pair in (pair for pairs in drawn for pair in pairs):
        (conversation, number), (other, place) = said[pair.better], said[pair.worse]
        assert place == number and other != conversation
        assert pair.turns == [f"{conversation}{earlier}" for earlier in range(number)]
        assert (other in "abcd") == (conversation in "abcd")  # of the same block
    assert list(draw_pairs(conversations, seed=3, block=4)) == drawn
    assert list(draw_pairs(conversations, seed=4, block=4)) != drawn
    assert {len(pair.turns) for pairs in draw_pairs(conversations, 3, max_turns=2) for pair in pairs} == {1, 2}


def test_turns_without_weight_or_without_another_are_left_out() -> None:
    conversations = [
        (Turn("system", "s"), Turn("user", "a"), Turn("assistant", "same"), Turn("user", "b", 0.0)),
        (Turn("user", "c"), Turn("assistant", "same"), Turn("user", "d"), Turn("assistant", "alone")),
    ]
    assert list(draw_pairs(conversations, seed=1)) == [[], [Pair(["c", "same"], "d", "b")]]


def test_training_compares_the_ends_of_the_two_texts(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    chats = [{"messages": [[{"text": f"{c}{n}"}] for n in range(3)]} for c in "abcdefgh"]
    (tmp_path / "chats.jsonl").write_text("".join(json.dumps(chat) + "\n" for chat in chats))
    assert main(["--input_dir", str(tmp_path / "chats.jsonl"), "--out", str(tmp_path / "pairs.jsonl")]) == 0
    assert capsys.readouterr().out == "8 conversations, 0 left out, 16 pairs\n"
    (tmp_path / "bytes.json").write_text(PLAIN.to_json())
    dataset = {"id": "pairs", "pairs": str(tmp_path / "pairs.jsonl"), "n_vocab": 257, "eval_fraction": 0.5}
    dataset |= {"tokenizer_path": str(tmp_path / "bytes.json"), "cache_dir": str(tmp_path / "cache")}
    sizes = {"n_head": 1, "n_embd": 8, "n_layer": 1, "n_ctx": 30, "n_vocab": 257}
    run = {"train_batch_size": 2, "train_steps": 1, "model_path": "runs/x", "objective": "ranking"}
    (tmp_path / "x.json").write_text(json.dumps(sizes | run | {"datasets": [dataset]}))
    config = load_config(str(tmp_path / "x.json"), ["eos_id=0", "padding_id=0"])
    said = []
    prepared = prepare_dataset(config.data.datasets[0].dataset, 30, said.append)
    batches = list(evaluation_batches(config, [prepared.eval_pattern]))
    n_pairs = 0
    for batch in batches:
        for row, at in zip(*np.nonzero(batch.weights_BS), strict=True):
            better, starts = batch.labels_BS[row, at], batch.segment_starts_BS[row]
            texts = [spelled(batch.tokens_BS[row, starts[end] : end + 1]) for end in (better, at)]
            assert starts[at] == better + 1
            (context, one), (again, other) = (text.rsplit(".", 1) for text in texts)
            assert context == again and one[0] == context[-2] and one[0] != other[0] and one[1] == other[1]
            n_pairs += 1
    assert n_pairs % 2 == 0 and f"eval: {n_pairs} pairs in " in "\n".join(said)
