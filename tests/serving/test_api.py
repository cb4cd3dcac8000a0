"""What the server answers, to OpenAI's own client and to others; the engine repeats the prompts."""

from __future__ import annotations

import inspect
import json
import re
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest
from hypothesis import given
from hypothesis import strategies as st

from models.kernels.sampling import MAX_BIASES
from runtime.generation.requests import sample_seed
from serving import request
from serving.errors import ApiError
from serving.protocol import MAX_PROMPTS
from serving.request import read_request
from tests.serving.scripted import EOS_ID, byte_tokenizer, log_prob, top_of
from tests.serving.servers import Server, scripted

TOKENIZER = byte_tokenizer()


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text)


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with scripted("--seconds_per_token", 0.001) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return server.client()


def complete(client: openai.OpenAI, prompt: Any = "abc", **fields: Any) -> Any:
    return client.completions.create(model="scripted", prompt=prompt, **{"temperature": 0, **fields})


def post(server: Server, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/completions", json={"model": "scripted", **fields})


def has_error_form(message: str) -> bool:
    """Whether a message says what is wrong and what to do."""
    return re.fullmatch(r"[^:]+: .+; .+", message, re.DOTALL) is not None


def test_a_text_is_continued(client: openai.OpenAI) -> None:
    answer = complete(client, "abc", max_tokens=5)
    (choice,) = answer.choices
    assert (choice.text, choice.index, choice.finish_reason, choice.logprobs) == ("abcab", 0, "length", None)
    assert (answer.object, answer.model) == ("text_completion", "scripted") and answer.id.startswith("cmpl-")
    usage = answer.usage
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (3, 5, 8)


def test_sixteen_tokens_are_generated_by_default(client: openai.OpenAI) -> None:
    assert complete(client, "ab").choices[0].text == "ab" * 8


@pytest.mark.parametrize(
    ("prompt", "texts", "n_prompt_tokens"),
    [
        ("xy", ["xyx"], 2),
        (["xy", "z"], ["xyx", "zzz"], 3),
        (ids("xyz"), ["xyz"], 3),
        ([ids("xy"), ids("z")], ["xyx", "zzz"], 3),
    ],
)
def test_every_form_of_a_prompt(client: openai.OpenAI, prompt: Any, texts: list[str], n_prompt_tokens: int) -> None:
    answer = complete(client, prompt, max_tokens=3)
    assert [choice.text for choice in answer.choices] == texts
    assert [choice.index for choice in answer.choices] == list(range(len(answer.choices)))
    assert answer.usage.prompt_tokens == n_prompt_tokens


@pytest.mark.parametrize("prompt", ["", None])
def test_an_empty_prompt_is_the_beginning_of_a_document(server: Server, prompt: str | None) -> None:
    answer = post(server, prompt=prompt, never_end=True, max_tokens=2, echo=True, logprobs=0).json()
    (choice,) = answer["choices"]
    assert (choice["text"], choice["logprobs"]["tokens"]) == ("!!", ["!", "!"])
    assert choice["logprobs"]["text_offset"] == [0, 1] and answer["usage"]["prompt_tokens"] == 1
    ended = post(server, prompt=prompt, max_tokens=2).json()
    assert (ended["choices"][0]["text"], ended["choices"][0]["finish_reason"]) == ("", "stop")
    assert ended["usage"]["completion_tokens"] == 1


def test_samples_are_ordered_by_prompt_and_have_different_seeds(client: openai.OpenAI) -> None:
    answer = complete(client, ["abcdefg", "hijklmn"], n=3, seed=7, max_tokens=4, temperature=1)
    begins = [sample_seed(7, sample) % 7 for sample in range(3)]
    expected = [(prompt * 2)[begin : begin + 4] for prompt in ("abcdefg", "hijklmn") for begin in begins]
    assert [choice.text for choice in answer.choices] == expected
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (14, 24)


def test_without_a_seed_answers_differ(client: openai.OpenAI) -> None:
    texts = {complete(client, "abcdefghijklmnopqrstuvwxyz", temperature=1).choices[0].text for _ in range(8)}
    assert len(texts) > 1


def test_best_of_returns_the_most_likely_samples(client: openai.OpenAI) -> None:
    """Letters that come late in the alphabet are less likely to the scripted engine."""
    prompt = "abcdefghijklmnopqrstuvw"
    every = complete(client, prompt, n=6, seed=1, max_tokens=3, temperature=1)
    answer = complete(client, prompt, n=2, best_of=6, seed=1, max_tokens=3, temperature=1)
    likely = sorted((choice.text for choice in every.choices), key=lambda text: sum(ids(text)))
    assert [choice.text for choice in answer.choices] == likely[:2]
    assert [choice.index for choice in answer.choices] == [0, 1] and answer.usage.completion_tokens == 18


@pytest.mark.parametrize("stop", ["de", ["x", "de"], ["e", "de"]])
def test_an_answer_ends_before_a_stop_string(client: openai.OpenAI, stop: Any) -> None:
    answer = complete(client, "abcdef", stop=stop, max_tokens=30, logprobs=0)
    (choice,) = answer.choices
    assert (choice.text, choice.finish_reason) == ("abc", "stop")
    assert choice.logprobs.tokens == ["a", "b", "c"] and answer.usage.completion_tokens == 3


def test_a_prompt_is_echoed_with_its_scores(client: openai.OpenAI) -> None:
    answer = complete(client, "hé", echo=True, logprobs=2, max_tokens=2)
    (choice,) = answer.choices
    (h, first, second), scores = ids("hé"), choice.logprobs
    assert choice.text == "héh\ufffd"
    assert scores.tokens == ["h", "bytes:\\xc3", "bytes:\\xa9", "h", "bytes:\\xc3"]
    assert scores.token_logprobs == [None, *map(log_prob, (first, second, h, first))]
    assert scores.text_offset == [0, 1, 1, 2, 3]
    assert scores.top_logprobs[0] is None and [len(top) for top in scores.top_logprobs[1:]] == [3] * 4
    likeliest = [value for _, value in top_of(second, 2)]
    assert list(scores.top_logprobs[2].values()) == [*likeliest, log_prob(second)]
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (3, 2)


def test_an_eos_is_a_token_without_text(client: openai.OpenAI) -> None:
    """As lm-evaluation-harness needs it, which drops the one token generated after the text that it scores."""
    (choice,) = complete(client, [[*ids("ab"), EOS_ID]], logprobs=2, max_tokens=9, echo=True).choices
    scores = choice.logprobs
    assert (choice.text, choice.finish_reason) == ("ab<|endoftext|>ab", "stop")
    assert scores.tokens == ["a", "b", "<|endoftext|>", "a", "b", "<|endoftext|>"]
    assert scores.text_offset == [0, 1, 2, 15, 16, 17] and scores.token_logprobs[-1] == log_prob(EOS_ID)
    assert list(scores.top_logprobs[-1].values()) == [value for _, value in top_of(EOS_ID, 2)] + [log_prob(EOS_ID)]


@pytest.mark.parametrize("echo", [True, False])
def test_max_tokens_may_be_0(client: openai.OpenAI, echo: bool) -> None:
    answer = complete(client, ["abc", "d"], max_tokens=0, echo=echo, logprobs=1)
    assert [choice.text for choice in answer.choices] == (["abc", "d"] if echo else ["", ""])
    assert {choice.finish_reason for choice in answer.choices} == {"length"}
    assert [len(choice.logprobs.tokens) for choice in answer.choices] == ([3, 1] if echo else [0, 0])
    assert (answer.usage.prompt_tokens, answer.usage.completion_tokens) == (4, 0)


def test_a_token_among_the_most_likely_is_listed_once(client: openai.OpenAI) -> None:
    zero = complete(client, "a", logprobs=0, max_tokens=1).choices[0].logprobs
    assert zero.top_logprobs == [{"a": log_prob(ids("a")[0])}] and zero.token_logprobs == [log_prob(ids("a")[0])]


def test_a_context_may_be_filled(client: openai.OpenAI) -> None:
    answer = complete(client, "a" * 100, max_tokens=28)
    assert (answer.choices[0].text, answer.choices[0].finish_reason) == ("a" * 28, "length")
    assert complete(client, "a" * 128, max_tokens=0, echo=True, logprobs=0).choices[0].text == "a" * 128


def test_a_stream_adds_up_to_the_whole_answer(client: openai.OpenAI) -> None:
    fields = {"n": 3, "seed": 5, "temperature": 1, "logprobs": 3, "echo": True, "max_tokens": 30, "stop": ["ghi"]}
    whole = complete(client, ["abcdéfghijk", "lmnop"], **fields)
    chunks = list(complete(client, ["abcdéfghijk", "lmnop"], stream=True, **fields))
    assert len({chunk.id for chunk in chunks}) == 1 and all(chunk.usage is None for chunk in chunks)
    for choice in whole.choices:
        parts = [part for chunk in chunks for part in chunk.choices if part.index == choice.index]
        assert "".join(part.text for part in parts) == choice.text
        assert [part.finish_reason for part in parts] == [None] * (len(parts) - 1) + [choice.finish_reason]
        for name in ("tokens", "token_logprobs", "top_logprobs", "text_offset"):
            values = [value for part in parts for value in getattr(part.logprobs, name)]
            assert values == getattr(choice.logprobs, name)


def test_a_stream_ends_with_the_usage_on_request(client: openai.OpenAI, server: Server) -> None:
    *chunks, last = complete(client, "abc", max_tokens=20, stream=True, stream_options={"include_usage": True})
    assert len(chunks) > 1 and all(chunk.usage is None for chunk in chunks)
    assert (last.choices, last.usage.prompt_tokens, last.usage.completion_tokens) == ([], 3, 20)
    response = post(server, prompt="abc", stream=True)
    assert response.headers["content-type"].startswith("text/event-stream")
    events = response.text.split("\n\n")
    assert events[-2:] == ["data: [DONE]", ""]
    assert all("usage" not in json.loads(event.removeprefix("data: ")) for event in events[:-2])


def test_a_character_is_never_split_between_chunks(client: openai.OpenAI) -> None:
    chunks = list(complete(client, "aéß€😀", max_tokens=100, stream=True))
    text = "".join(chunk.choices[0].text for chunk in chunks)
    assert text.startswith("aéß€😀aéß€😀") and "\ufffd" not in text[:-1]
    assert len(chunks) > 5


@pytest.mark.parametrize(
    ("fields", "param", "part"),
    [
        ({"temperature": 2.5}, "temperature", "2.5: Input should be less than or equal to 2; give 0 to 2:"),
        ({"temperature": "1"}, "temperature", "should be a valid number"),
        ({"top_p": -0.1}, "top_p", "give 0 to 1:"),
        ({"n": 0}, "n", "give 1 to 128:"),
        ({"n": True}, "n", "give 1 to 128:"),
        ({"max_tokens": -1}, "max_tokens", "give 0 or more;"),
        (
            {"max_tokens": 126},
            "max_tokens",
            "exceeds the context of 128 tokens together with the 3 tokens of",
        ),
        ({"max_tokens": 10**400}, "max_tokens", "less than or equal to 1000000; give 0 or more;"),
        ({"logprobs": 21}, "logprobs", "give 0 to 20:"),
        ({"prompt": ["a"] * 2000, "logprobs": 20, "max_tokens": 50}, "logprobs", "makes up to 2100000 log-prob"),
        ({"stop": ["a"] * 65}, "stop", "give a string, or up to 64 of them"),
        ({"stop": ""}, "stop", "each of 1 to 1000 characters"),
        ({"seed": 2**63}, "seed", "give -9223372036854775808 to 9223372036854775807:"),
        ({"seed": -(2**63) - 1}, "seed", "give -9223372036854775808 to 9223372036854775807:"),
        ({"presence_penalty": -2.1}, "presence_penalty", "give -2 to 2:"),
        ({"repetition_penalty": 0}, "repetition_penalty", "give 0.01 to 100:"),
        ({"logit_bias": {"5": 101}}, "logit_bias", "give an object of up to 1024 token ids"),
        ({"logit_bias": {"a": 1}}, "logit_bias", "give an object of up to 1024 token ids"),
        ({"logit_bias": {"1" * 5000: 1}}, "logit_bias", "give an object of up to 1024 token ids"),
        ({"logit_bias": {"257": 1}}, "logit_bias", "the id 257 is out of range; give ids from 0 to 256"),
        ({"logit_bias": {str(i): 1 for i in range(1025)}}, "logit_bias", "has 1025 tokens; give an object of up to"),
        ({"min_tokens": 17}, "min_tokens", "is more than max_tokens = 16; give at most that many"),
        ({"suffix": "end"}, "suffix", "'end': is not supported; leave it out"),
        ({"response_format": {"type": "json_object"}}, "response_format", "is not supported; leave it out"),
        ({"use_beam_search": True}, "use_beam_search", "True: is not supported; leave it out"),
        ({"diversity_penalty": False}, "diversity_penalty", "False: is not supported; leave it out"),
        ({"early_stopping": 0}, "early_stopping", "0: is not supported; leave it out"),
        ({"skip_special_tokens": False}, "skip_special_tokens", "False: is not supported; leave it out"),
        ({"top_k": -2}, "top_k", "give -1 to"),
        ({"best_of": 1, "n": 2}, "best_of", "is less than n = 2; give n to 128"),
        ({"best_of": 2, "stream": True}, "best_of", "are only known at the end; leave out stream"),
        ({"stream_options": {"include_usage": True}}, "stream_options", "have no effect without stream; set stream"),
        (
            {"stream": True, "stream_options": {"usage": 1}},
            "stream_options.usage",
            "is not a field of a request; leave it out",
        ),
        (
            {"stream": True, "stream_options": {"include_obfuscation": True}},
            "stream_options.include_obfuscation",
            "is not supported; leave it out",
        ),
        ({"prompt": []}, "prompt", "give a text, a list of token ids,"),
        ({"prompt": [[]]}, "prompt", "give a text, a list of token ids,"),
        ({"prompt": [1, "a"]}, "prompt", "give a text, a list of token ids,"),
        ({"prompt": [257]}, "prompt", "the id 257 is out of range; give ids from 0 to 256"),
        ({"prompt": [10**400]}, "prompt", "give a text, a list of token ids,"),
        ({"prompt": [-1]}, "prompt", "give a text, a list of token ids,"),
        ({"prompt": "a" * 129}, "max_tokens", "together with the more than 128 tokens of the prompt"),
        ({"prompt": "a" * 2_000_000}, "max_tokens", "together with the more than 128 tokens of the prompt"),
        ({"prompt": ["a"] * 100, "n": 100}, "prompt", "ask for 10000 sequences; ask for at most 2052 at once"),
        ({"prompt": ["a"] * 2049}, "prompt", "give a text, a list of token ids, or a list of up to 2048 texts"),
        ({"temprature": 1}, "temprature", "'temprature': is not a field of a request; leave it out"),
        ({"never_end": 1}, "never_end", "give true or false;"),
    ],
    ids=str,
)
def test_an_invalid_field_is_named_with_the_allowed_values(
    server: Server, fields: dict[str, Any], param: str, part: str
) -> None:
    response = post(server, **{"prompt": "abc", **fields})
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param)
    assert part in error["message"] and has_error_form(error["message"])


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'"model"',
        b"\xff\xfe",
        b'{"model": "scripted", "prompt": "\\ud800"}',
        b'{"model": "scripted", "temperature": NaN}',
        b'{"model": "scripted", "temperature": 1e999}',
        b'{"model": "scripted", "prompt": ' + b"[" * 100_000,
        b'{"prompt": "a"}',
    ],
    ids=lambda body: repr(body[:30]),
)
def test_an_invalid_body_is_refused(server: Server, body: bytes) -> None:
    response = httpx2.post(f"{server.url}/v1/completions", content=body, headers={"Content-Type": "application/json"})
    assert response.status_code == 400 and has_error_form(response.json()["error"]["message"])


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": ["a"] * 200_000 + [1]},
        {"prompt": [1] * 200_000 + ["a"]},
        {"prompt": [1.5] * 200_000},
        {"prompt": [["a"]] * 100_000},
        {"prompt": [{}] * 100_000},
        {"stop": [1] * 100_000},
        {"logit_bias": {str(i): "a" for i in range(100_000)}},
        {f"unknown_{i}": 1 for i in range(50_000)},
        {"stream_options": {f"unknown_{i}": 1 for i in range(50_000)}},
    ],
    ids=range(9),
)
def test_of_a_long_list_of_errors_few_are_made(server: Server, fields: dict[str, Any]) -> None:
    """Each takes some microseconds, in which no other request is answered."""
    body = {"model": "scripted", **fields}
    with pytest.raises(ApiError) as refused:
        read_request(json.dumps(body).encode())
    cause = refused.value.__cause__
    assert cause is None or cause.error_count() <= 4
    response = post(server, **fields)
    assert response.status_code == 400 and len(response.content) < 1000
    assert response.json() == refused.value.body().model_dump()


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt": [[]] * 10_000},
        {"prompt": [{}] * 10_000},
        {"prompt": [[1]] * 10_000},
        {"prompt": [[[[[]]]]] * 2_500},
        {"user": [{"a": {"b": None}}] * 2_500},
        {"x": [[]] * 10_000},
        {f"x{i}": None for i in range(10_000)},
        {"logit_bias": {str(i): 1 for i in range(10_000)}},
    ],
    ids=range(8),
)
def test_a_body_of_many_lists_objects_and_names_is_not_read(fields: dict[str, Any]) -> None:
    """As no other request is answered while it is."""
    for body in (json.dumps({"model": "scripted", **fields}), json.dumps({"suffix": '"[', **fields})):
        with pytest.raises(ApiError, match="^the body: holds more than 10000 lists, objects and names; send"):
            read_request(body.encode())


json_values = st.recursive(
    st.none() | st.text('[{:,}]"\\ab\n', max_size=8),
    lambda inner: st.lists(inner) | st.dictionaries(st.text('":[\\a', max_size=4), inner),
)


def n_parts(value: Any) -> int:
    if isinstance(value, dict):
        return 1 + sum(1 + n_parts(one) for one in value.values())
    return 1 + sum(map(n_parts, value)) if isinstance(value, list) else 0


def refusal(body: bytes) -> str:
    try:
        read_request(body)
    except ApiError as error:
        return str(error)
    return ""


@given(json_values)
def test_what_the_strings_of_a_body_spell_does_not_count(value: Any) -> None:
    fields = {"model": "scripted", "of_another_server": value}
    body, n = json.dumps(fields).encode(), n_parts(fields)
    with pytest.MonkeyPatch.context() as patch:
        for limit, is_refused in ((n, False), (n - 1, True)):
            patch.setattr(request, "MAX_PARTS", limit)
            assert ("holds more than" in refusal(body)) == is_refused


def test_a_body_has_room_for_all_that_a_request_may_hold() -> None:
    biases = {str(i): 1.0 for i in range(MAX_BIASES)}
    text = '[{:"\\' * 20_000
    assert read_request(json.dumps({"model": "m", "prompt": text, "logit_bias": biases}).encode()).prompt == text
    prompts = [[1, 2]] * MAX_PROMPTS
    assert read_request(json.dumps({"model": "m", "prompt": prompts, "logit_bias": biases}).encode()).prompt == prompts


@pytest.mark.parametrize(
    "fields",
    [
        {"logit_bias": {}},
        {"logit_bias": None, "suffix": None, "user": None, "stop": None, "seed": None, "n": None, "best_of": None},
        {"suffix": ""},
        {"stop": []},
        {"stop": [f"{i} times" for i in range(64)]},
        {"seed": -(2**63)},
        {"seed": 2**63 - 1},
        {"top_k": -1},
        {"top_p": 0},
        {"min_tokens": 0},
        {"ignore_eos": False},
        {"stream_options": {}},
        {"stream_options": {"include_usage": False, "include_obfuscation": False}},
        {"response_format": {"type": "text"}},
        {"use_beam_search": False, "length_penalty": 1.0, "early_stopping": False, "best_of": 1},
        {"skip_special_tokens": True, "spaces_between_special_tokens": True, "include_stop_str_in_output": False},
        {"stop_token_ids": [], "truncate_prompt_tokens": None, "guided_json": None, "priority": 0, "grammar": ""},
        {"tools": [], "tool_choice": "none", "store": False, "metadata": {}, "service_tier": "auto"},
        {"repeat_penalty": 1, "mirostat": 0, "tfs_z": 1, "cache_prompt": True, "do_sample": True, "num_beams": 1},
        {"of_a_later_version": None, "of_another_server": []},
    ],
    ids=str,
)
def test_a_field_that_asks_for_nothing_changes_nothing(server: Server, fields: dict[str, Any]) -> None:
    plain, given = (post(server, prompt="abc", temperature=0, **more).json() for more in ({}, fields))
    assert (given["choices"], given["usage"]) == (plain["choices"], plain["usage"])


def test_ignore_eos_is_never_end(server: Server) -> None:
    answers = [post(server, prompt="", max_tokens=2, **{name: True}).json() for name in ("ignore_eos", "never_end")]
    assert [answer["choices"][0]["text"] for answer in answers] == ["!!", "!!"]


def test_as_many_prompts_as_are_announced_are_taken_at_once(client: openai.OpenAI) -> None:
    answer = complete(client, [chr(97 + i % 26) for i in range(MAX_PROMPTS)], max_tokens=1)
    assert [choice.text for choice in answer.choices] == [chr(97 + i % 26) for i in range(MAX_PROMPTS)]


@pytest.mark.parametrize("seed", [-1, -(2**63), 2**31, 2**63 - 1])
def test_a_seed_may_have_64_bits_and_a_sign(client: openai.OpenAI, seed: int) -> None:
    begin = sample_seed(seed, 0) % 7
    assert (
        complete(client, "abcdefg", seed=seed, max_tokens=4, temperature=1).choices[0].text == "abcdefgabcd"[begin:][:4]
    )


def test_twenty_of_the_most_likely_tokens_are_reported(client: openai.OpenAI) -> None:
    (top,) = complete(client, "a", logprobs=20, max_tokens=1).choices[0].logprobs.top_logprobs
    assert list(top.values()) == [value for _, value in top_of(ids("a")[0], 20)] + [log_prob(ids("a")[0])]


def test_no_stop_string_counts_before_min_tokens(client: openai.OpenAI) -> None:
    fields = {"stop": "bc", "max_tokens": 20}
    assert complete(client, "abc", **fields).choices[0].text == "a"
    assert complete(client, "abc", **fields, extra_body={"min_tokens": 5}).choices[0].text == "abcabca"


STREAM = {"stream": True}
# Requests with each parameter of OpenAI's client, and the texts of the answer: None where it is refused by name.
OF_COMPLETIONS: dict[str, list[tuple[dict[str, Any], list[str] | None]]] = {
    "model": [({"model": "scripted"}, ["abcab"])],
    "prompt": [
        ({"prompt": "xy"}, ["xyxyx"]),
        ({"prompt": ["xy", "z"]}, ["xyxyx", "zzzzz"]),
        ({"prompt": ids("xy")}, ["xyxyx"]),
        ({"prompt": [ids("xy"), ids("z")]}, ["xyxyx", "zzzzz"]),
        ({"prompt": None}, [""]),
        ({"prompt": []}, None),
    ],
    "best_of": [
        ({"best_of": 3}, ["abcab"]),
        ({"best_of": 3, "n": 2}, ["abcab", "abcab"]),
        ({"best_of": 1, **STREAM}, ["abcab"]),
        ({"best_of": None}, ["abcab"]),
        ({"best_of": 2, "n": 3}, None),
        ({"best_of": 3, **STREAM}, None),
    ],
    "echo": [
        ({"echo": True}, ["abcabcab"]),
        ({"echo": True, "n": 2, **STREAM}, ["abcabcab", "abcabcab"]),
        ({"echo": True, "logprobs": 2, "max_tokens": 0}, ["abc"]),
        ({"echo": False}, ["abcab"]),
    ],
    "frequency_penalty": [({"frequency_penalty": -2.0}, ["abcab"]), ({"frequency_penalty": 2.1}, None)],
    "logit_bias": [({"logit_bias": {"50": -100}}, ["abcab"]), ({"logit_bias": {}}, ["abcab"])],
    "logprobs": [({"logprobs": 0}, ["abcab"]), ({"logprobs": 5, **STREAM}, ["abcab"]), ({"logprobs": 21}, None)],
    "max_tokens": [({"max_tokens": 2}, ["ab"]), ({"max_tokens": 0}, [""]), ({"max_tokens": 126}, None)],
    "n": [({"n": 2}, ["abcab", "abcab"]), ({"n": 2, **STREAM}, ["abcab", "abcab"]), ({"n": 129}, None)],
    "presence_penalty": [({"presence_penalty": -2.0}, ["abcab"]), ({"presence_penalty": -2.1}, None)],
    "seed": [({"seed": 7}, ["abcab"]), ({"seed": -7}, ["abcab"]), ({"seed": None}, ["abcab"])],
    "stop": [
        ({"stop": "c"}, ["ab"]),
        ({"stop": ["x", "b", "c", "d"], **STREAM}, ["a"]),
        ({"stop": []}, ["abcab"]),
        ({"stop": None}, ["abcab"]),
        ({"stop": [""]}, None),
    ],
    "stream": [({"stream": False}, ["abcab"]), (STREAM, ["abcab"]), ({"stream": None}, ["abcab"])],
    "stream_options": [
        ({"stream_options": None}, ["abcab"]),
        ({"stream_options": {"include_usage": True}, **STREAM}, ["abcab"]),
        ({"stream_options": {"include_usage": False, "include_obfuscation": False}, **STREAM}, ["abcab"]),
        ({"stream_options": {"include_usage": True}}, None),
        ({"stream_options": {"include_obfuscation": True}, **STREAM}, None),
    ],
    "suffix": [({"suffix": "x"}, None), ({"suffix": None}, ["abcab"]), ({"suffix": ""}, ["abcab"])],
    "temperature": [({"temperature": 0}, ["abcab"]), ({"temperature": 2.1}, None)],
    "top_p": [({"top_p": 0}, ["abcab"]), ({"top_p": 1}, ["abcab"]), ({"top_p": 1.1}, None)],
    "user": [({"user": "somebody"}, ["abcab"]), ({"user": ""}, ["abcab"])],
    "extra_headers": [({"extra_headers": {"OpenAI-Organization": "ours"}}, ["abcab"])],
    "extra_query": [({"extra_query": {"api-version": "1"}}, None), ({"extra_query": {}}, ["abcab"])],
    "extra_body": [
        ({"extra_body": {"top_k": 5, "min_p": 0.1, "never_end": True, "special_tokens": True}}, ["abcab"]),
        ({"extra_body": {"temprature": 1}}, None),
        ({"extra_body": {"guided_regex": "a+"}}, None),
    ],
    "timeout": [({"timeout": 60}, ["abcab"])],
}


def parameters(method: Any) -> set[str]:
    return set(inspect.signature(method).parameters) - {"self"}


@pytest.mark.parametrize("name", sorted(parameters(openai.resources.Completions.create)))
def test_every_parameter_of_the_client_is_answered_or_refused_by_name(client: openai.OpenAI, name: str) -> None:
    for fields, texts in OF_COMPLETIONS[name]:
        given = {"model": "scripted", "prompt": "abc", "temperature": 0, "max_tokens": 5, **fields}
        if texts is None:
            refused = next(iter(fields[name])) if name in ("extra_query", "extra_body") else name
            with pytest.raises(openai.BadRequestError, match=f"{refused}.*: .*; "):
                client.completions.create(**given)
            continue
        answer = client.completions.create(**given)
        whole = list(answer) if isinstance(answer, openai.Stream) else [answer]
        choices = [choice for part in whole for choice in part.choices]
        of_each = ["".join(one.text for one in choices if one.index == index) for index in range(len(texts))]
        assert of_each == texts and {choice.index for choice in choices} == set(range(len(texts)))


def test_every_parameter_of_the_clients_models_is_answered_or_refused_by_name(client: openai.OpenAI) -> None:
    options = {"extra_headers": {"X-Other": "1"}, "extra_body": {}, "timeout": 60}
    assert parameters(client.models.list) == {*options, "extra_query"}
    assert parameters(client.models.retrieve) == {*options, "extra_query", "model"}
    assert client.models.list(**options).data == [client.models.retrieve("scripted", **options)]
    for ask in (client.models.list, lambda **more: client.models.retrieve("scripted", **more)):
        with pytest.raises(openai.BadRequestError, match="'after': is not a parameter of this path; leave it out"):
            ask(extra_query={"after": "x"})


def test_the_client_raises_its_own_exceptions(client: openai.OpenAI) -> None:
    with pytest.raises(openai.NotFoundError, match="model = 'gpt-4': is not served here; use scripted") as unknown:
        client.completions.create(model="gpt-4", prompt="a")
    assert (unknown.value.code, unknown.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.BadRequestError, match="give 0 to 2"):
        complete(client, temperature=3)
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("gpt-4")


def test_a_page_in_a_browser_cannot_send_requests(server: Server) -> None:
    """The content types that it may send without a preflight request are refused."""
    response = httpx2.post(
        f"{server.url}/v1/completions", content='{"model": "scripted"}', headers={"Content-Type": "text/plain"}
    )
    assert (response.status_code, response.json()["error"]["code"]) == (415, "not_json")


def test_other_paths_and_methods_get_errors_of_the_same_form(server: Server) -> None:
    paths = ("/completions", "/v1/chat", "/v1/embeddings", "/health", "/v1/engines/x/completions")
    others = [("GET", "/v1/completions", 405), ("DELETE", "/v1/models", 405), ("OPTIONS", "/v1/completions", 405)]
    for method, path, status in [*(("POST", path, 404) for path in paths), *others]:
        response = httpx2.request(method, server.url + path)
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (status, "unknown_path") and has_error_form(error["message"])
        assert (
            f"{method} '{path}': " in error["message"]
            and "use POST /v1/completions, POST /v1/chat/completions, GET /v1/models, " in error["message"]
        )


def test_every_answer_has_an_id_of_its_own(server: Server, client: openai.OpenAI) -> None:
    answers = [httpx2.get(server.url + path) for path in ("/healthz", "/metrics", "/nowhere", "/v1/models/none")]
    answers += [post(server, prompt="a"), post(server, prompt="a", stream=True), post(server, n=0)]
    names = [answer.headers["x-request-id"] for answer in answers]
    assert len(set(names)) == len(answers) and all(re.fullmatch("req_[0-9a-f]{32}", name) for name in names)
    assert complete(client)._request_id.startswith("req_")


def test_pages_of_other_origins_are_not_let_in_unless_a_flag_names_them(server: Server) -> None:
    asked = {"Origin": "http://localhost:3000", "Access-Control-Request-Method": "POST"}
    asked["Access-Control-Request-Headers"] = "authorization,content-type,x-stainless-lang"
    assert "access-control-allow-origin" not in httpx2.options(f"{server.url}/v1/completions", headers=asked).headers
    with scripted("--cors_origins", "http://localhost:3000,http://other", NEOMESH_API_KEY="key") as open_server:
        url = f"{open_server.url}/v1/completions"
        response = httpx2.options(url, headers=asked)  # without the key, which browsers do not send here
        assert response.status_code == 200
        assert response.headers["access-control-allow-origin"] == "http://localhost:3000"
        assert "x-stainless-lang" in response.headers["access-control-allow-headers"]
        refused = httpx2.post(url, headers={"Origin": "http://other"}, json={})
        assert (refused.status_code, refused.headers["access-control-allow-origin"]) == (401, "http://other")
        assert "x-request-id" in refused.headers["access-control-expose-headers"].lower()
        strange = httpx2.options(url, headers={**asked, "Origin": "http://elsewhere"})
        assert strange.status_code == 400 and "access-control-allow-origin" not in strange.headers


def test_the_model_is_listed(client: openai.OpenAI) -> None:
    (model,) = client.models.list().data
    assert (model.id, model.object, model.owned_by, model.n_ctx) == ("scripted", "model", "neomesh", 128)
    settings = {"temperature": 0.0, "top_k": 10, "top_p": 1.0, "max_tokens": 32}
    assert model.chat == {"template": "dialogpt", "has_system": False, "settings": settings}
    assert client.models.retrieve("scripted") == model


def numbers(server: Server) -> dict[str, float]:
    response = httpx2.get(f"{server.url}/metrics")
    assert response.headers["content-type"].startswith("text/plain; version=")
    return {name: float(value) for name, value in re.findall(r"^([a-z_]+(?:{.*})?) (\S+)$", response.text, re.M)}


def test_metrics_count_requests_sequences_and_tokens(server: Server, client: openai.OpenAI) -> None:
    before = numbers(server)
    complete(client, ["abc", "de"], n=2, max_tokens=6, stop="c")
    with pytest.raises(openai.BadRequestError):
        complete(client, temperature=3)
    after = numbers(server)

    def grown(name: str) -> float:
        return after.get(name, 0) - before.get(name, 0)

    assert grown("neomesh_prompt_tokens_total") == 5 and grown("neomesh_completion_tokens_total") == 2 * 2 + 2 * 6
    assert grown('neomesh_answers_total{end="stop"}') == 2 == grown('neomesh_answers_total{end="length"}')
    assert grown('neomesh_requests_total{path="/v1/completions",status="200"}') == 1
    assert grown('neomesh_requests_total{path="/v1/completions",status="400"}') == 1
    assert grown("neomesh_time_to_first_token_seconds_count") == 1
    assert after["neomesh_rows"] == 4
    assert (after["neomesh_num_requests_running"], after["neomesh_num_requests_waiting"]) == (0, 0)
    assert after["process_resident_memory_bytes"] > 1e6


def test_the_openapi_document_has_the_limits_of_the_model(server: Server) -> None:
    response = httpx2.get(f"{server.url}/openapi.json").json()
    fields = response["components"]["schemas"]["CompletionRequest"]["properties"]
    assert fields["model"]["enum"] == ["scripted"]
    assert {"type": "integer", "minimum": 0, "maximum": 128} in fields["max_tokens"]["anyOf"]
    assert "security" not in response
