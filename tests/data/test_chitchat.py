"""The conversations of the chat quickstart: each is accounted for, and so is each token of a response."""

from __future__ import annotations

import dataclasses
import glob
import importlib.util
import json
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from configs.load import load_config
from data.preprocessing.prepare import prepare_dataset
from data.tfrecord.records import decode_records
from data.tokenization.tokenizer import load_tokenizer

pytestmark = pytest.mark.slow


def counted_tokens(lengths: Sequence[int], room: int) -> int:
    """Returns how many tokens of a conversation count, from the lengths of its turns with the ends of text.

    Those of the first turn do not. If the turns do not fit together, they are cut into runs, each as long as fits,
    that begin with the last turn of the run before, or, if the next turn does not fit beside it, with that one.
    """
    if sum(lengths) <= room:
        return sum(lengths[1:])
    counted, run = 0, []
    for length in lengths:
        if run and sum(run) + length > room:
            run = run[-1:] if run[-1] + length <= room else []
        if run:
            counted += length
            run.append(length)
        elif length <= room:
            run = [length]
    return counted


def test_every_conversation_and_every_token_of_a_response_is_accounted_for(tmp_path: Path) -> None:
    source = Path(importlib.util.find_spec("chitchat_dataset").origin).with_name("dataset.json")
    config = load_config("chat_quickstart")
    (use,) = config.data.datasets
    dataset = dataclasses.replace(use.dataset, dialogue=(str(source),), cache_dir=str(tmp_path))
    prepared = prepare_dataset(dataset, config.model.n_ctx, lambda line: None)

    encode = load_tokenizer(prepared.tokenizer_path).encode
    outcomes, n_counted = Counter(), 0
    for conversation in json.loads(source.read_text(encoding="utf-8")).values():
        turns = [" ".join(message["text"] for message in turn) for turn in conversation["messages"]]
        if not all(turn.strip() for turn in turns):
            outcomes["discarded_undecodable"] += 1
            continue
        counted = counted_tokens([len(encode(turn)) + 1 for turn in turns], config.model.n_ctx + 1)
        outcomes["documents_kept" if counted else "discarded_unanswered"] += 1
        n_counted += counted
    manifest = json.loads((Path(prepared.tokenizer_path).parent / "manifest.json").read_text())
    splits = [manifest["train"], manifest["eval"]]
    assert sum(split["documents_read"] for split in splits) == outcomes.total() == 7168
    assert {key: sum(split[key] for split in splits) for key in outcomes} == dict(outcomes)
    assert sum(split["weighted_tokens"] for split in splits) == n_counted
    paths = [path for pattern in (prepared.train_pattern, prepared.eval_pattern) for path in glob.glob(pattern)]
    in_records = sum(np.count_nonzero(record.loss_weights_L) for path in paths for record in decode_records(path))
    assert in_records == n_counted
