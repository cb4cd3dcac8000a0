"""Files of prompts, right and wrong."""

from __future__ import annotations

import dataclasses
import json

import pytest

from configs.errors import ConfigError
from configs.prompts import MAX_ISSUES, parse_prompts, starts_as_json_lines
from configs.schema import GENERATION_FLAGS, PredictionConfig, keys_of
from tests import tiny

CONFIG = dataclasses.replace(tiny.run_config(), prediction=PredictionConfig(temperature=0.5, top_k=7))


def issues_of(text: str) -> list[str]:
    with pytest.raises(ConfigError) as error:
        parse_prompts("p.jsonl", text, CONFIG)
    return str(error.value).splitlines()


def test_prompts_have_settings_of_their_own_over_those_of_the_run() -> None:
    lines = [
        '\ufeff{"prompt": "Once"}',
        '{"id": {"a": [1, null]}, "prompt": [1, 2], "temperature": 0, "stop": "\\n", "seed": 5, "n_samples": 2}\r',
        "  ",
        '{"prompt": "", "id": null, "predict_max_steps": 3, "never_end": true, "top_k": 0}',
    ]
    first, second, third = parse_prompts("p.jsonl", "\n".join(lines) + "\n", CONFIG)
    assert [prompt.place for prompt in (first, second, third)] == [f"p.jsonl: line {number}" for number in (1, 2, 4)]
    assert [prompt.given for prompt in (first, second, third)] == ["Once", (1, 2), ""]
    assert [prompt.extra for prompt in (first, second, third)] == [{}, {"id": {"a": [1, None]}}, {"id": None}]
    assert first.settings == CONFIG.prediction
    assert second.settings == PredictionConfig(
        temperature=0.0, top_k=7, stop=("\n",), predict_seed=5, predict_batch_size=2
    )
    assert third.settings == PredictionConfig(temperature=0.5, predict_max_steps=3, never_end=True)


def test_every_setting_but_those_of_the_whole_program_may_stand_in_a_line() -> None:
    defaults = {key: field.metadata["kind"].write(field.default) for key, field in keys_of(PredictionConfig).items()}
    for key in ("predict_steps", "cache_dtype", "remove_partial_sequences"):
        del defaults[key]
    (prompt,) = parse_prompts("p.jsonl", json.dumps({"prompt": "a", **defaults}), CONFIG)
    assert prompt.settings == PredictionConfig()
    short = {flag: defaults[key] for flag, key in GENERATION_FLAGS.items() if flag != key}
    assert parse_prompts("p.jsonl", json.dumps({"prompt": "a", **short}), CONFIG)[0].settings == CONFIG.prediction


def test_beam_search_in_a_line_resets_the_sampling_keys() -> None:
    (prompt,) = parse_prompts("p.jsonl", '{"prompt": "a", "num_beams": 3}', CONFIG)
    assert prompt.settings == PredictionConfig(num_beams=3)


@pytest.mark.parametrize(
    ("line", "issue"),
    [
        ("hello", "is not JSON (Expecting value: line 1 column 1 (char 0)); correct the line, such as"),
        ('{"prompt": "a", "temperature": NaN}', "is not JSON (NaN is not a JSON number); correct the line, such as"),
        ('{"prompt": "a", "prompt": "b"}', "is not JSON (a key is given twice); correct the line, such as"),
        (
            '{"prompt": "a", "id": 1e400}',
            "is not JSON (1e400 is too large); correct the line, such as",
        ),
        ("[" * 100_000, "is not JSON (it is nested too deeply); correct the line, such as"),
        ('["a"]', "is not an object with a prompt; write it as"),
        ('{"text": "a"}', "is not an object with a prompt; write it as"),
    ],
)
def test_a_line_that_is_no_prompt_is_named(line: str, issue: str) -> None:
    assert issues_of(f'{{"prompt": "a"}}\n{line}') == [f'p.jsonl: line 2: {issue} {{"prompt": "Once upon a time"}}']


NO_PROMPT = "is neither a string nor a list of ids; give one of them"


@pytest.mark.parametrize(
    ("keys", "issue"),
    [
        ({"prompt": None}, f": prompt: {NO_PROMPT}"),
        ({"prompt": [1, "a"]}, f": prompt: {NO_PROMPT}"),
        ({"prompt": [True]}, f": prompt: {NO_PROMPT}"),
        ({"prompt": [3, 64]}, ": prompt: holds the id 64, outside [0, 64); give ids of the tokenizer"),
        ({"prompt": [-1]}, ": prompt: holds the id -1, outside [0, 64); give ids of the tokenizer"),
        (
            {"prompt": "a\ud800"},
            ": prompt: holds half of a character (a surrogate); write the whole character",
        ),
        ({"prompt": "a", "tempurature": 1}, ": tempurature = 1: is not a known key; did you mean temperature?"),
        (
            {"prompt": "a", "id": {"b": "\ud83d"}},
            ": id: holds half of a character (a surrogate); write the whole character",
        ),
        (
            {"prompt": "a", "stop": ["\ud83d"]},
            ': stop = ["\ud83d"]: holds half of a character (a surrogate); write the whole character',
        ),
        (
            {"prompt": "a", "no_repeat_ngram": 10**7},
            ": no_repeat_ngram = 10000000: is out of range; give an integer from 0 to 1000000",
        ),
        ({"prompt": "a", "top_p": 0}, ": top_p = 0: is out of range; give a number in (0, 1]"),
        ({"prompt": "a", "top_k": 65}, ": top_k = 65: is more than n_vocab = 64; lower it; 0 turns it off"),
        ({"prompt": "a", "stop": ""}, ': stop = "": holds an empty string; give strings of at least one character'),
        (
            {"prompt": "a", "seed": 1, "predict_seed": 2},
            ": predict_seed = 2: is the same key as seed, which is 1; keep one of the two",
        ),
        (
            {"prompt": "a", "num_beams": 2, "temperature": 0.7, "top_k": 0},
            ": temperature = 0.7: has no effect on beam search (num_beams = 2); leave one of them out",
        ),
    ],
)
def test_a_prompt_or_setting_that_cannot_be_used_is_named(keys: dict[str, object], issue: str) -> None:
    assert issues_of(json.dumps(keys)) == [f"p.jsonl: line 1{issue}"]


def test_every_wrong_line_is_named_up_to_a_few() -> None:
    lines = ['{"prompt": 1, "top_p": 0}', '{"prompt": "a", "top_p": 0, "min_p": 2}', '{"prompt": "a"}', "x"]
    assert [issue.split(" is ")[0] for issue in issues_of("\n".join(lines))] == [
        "p.jsonl: line 1: prompt:",
        "p.jsonl: line 2: top_p = 0:",
        "p.jsonl: line 2: min_p = 2:",
        "p.jsonl: line 4:",
    ]
    many = issues_of("x\n" * (MAX_ISSUES + 5))
    assert (len(many), many[-1]) == (MAX_ISSUES + 1, "p.jsonl: 5 more lines are wrong; correct them too")


@pytest.mark.parametrize("text", ["", "\n \n"])
def test_no_prompt_at_all(text: str) -> None:
    assert issues_of(text) == [
        'p.jsonl: holds no prompt; write one object a line, such as {"prompt": "Once upon a time"}'
    ]


@pytest.mark.parametrize(
    ("text", "is_one"),
    [
        ('{"prompt": 3}\nrest', True),
        ('\n {"id": 1, "prompt": "a"}', True),
        ('\ufeff{"prompt": "a"}', True),
        ('{"prompt": "a"', False),
        ('{"text": "a"}', False),
        ("Once", False),
        ("", False),
        ('"prompt"', False),
    ],
)
def test_a_text_is_one_of_prompts_by_its_first_line(text: str, is_one: bool) -> None:
    assert starts_as_json_lines(text) == is_one
