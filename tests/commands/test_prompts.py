"""Prompts that spell special tokens."""

from __future__ import annotations

import dataclasses
import json

import pytest

from commands.prompts import encode_prompts
from configs.prompts import Prompt, parse_prompts
from data.tokenization.bpe_training import train_byte_level_bpe
from tests import tiny

TOKENIZER = train_byte_level_bpe(["the end of the text"] * 5, 265)


@pytest.mark.parametrize("key", ["special_tokens", "prompt_special_tokens"])
def test_special_tokens_that_a_prompt_spells_count_when_asked(key):
    config, lines = tiny.run_config(), []
    asked = parse_prompts("p.jsonl", json.dumps({"prompt": "end<|endoftext|>", key: True}), config)
    (ids,) = encode_prompts(asked, config, TOKENIZER, lines.append).ids
    assert (ids, lines) == ((*TOKENIZER.encode("end"), 0), [])


def test_without_asking_they_are_counted():
    config, lines = tiny.run_config(), []
    config = dataclasses.replace(config, model=dataclasses.replace(config.model, n_ctx=64))
    prompts = [Prompt("the line", "a<|endoftext|>", config.prediction, {})]
    (ids,) = encode_prompts(prompts, config, TOKENIZER, lines.append).ids
    assert 0 not in ids
    assert lines == [
        "the line: spells special tokens, read as plain characters: <|endoftext|> 1 times; --special_tokens makes "
        "them count"
    ]
