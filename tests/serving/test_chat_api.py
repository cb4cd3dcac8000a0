"""Chat completions, to OpenAI's own client and to others; the engine repeats the first message."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

import httpx2
import openai
import pytest

from data.dialogue.templates import load_template
from runtime.generation.requests import sample_seed
from serving.chat import parse_chat
from serving.protocol import ChatRequest
from tests.data.dialogue.test_templates import CHAT, EOS
from tests.serving.scripted import EOS_ID, ScriptedEngine, byte_tokenizer, log_prob, served, top_of
from tests.serving.servers import Server, scripted
from tests.serving.test_api import has_error_form, parameters

TOKENIZER = byte_tokenizer()


@pytest.fixture(scope="module")
def server() -> Iterator[Server]:
    with scripted("--seconds_per_token", 0.001) as server:
        yield server


@pytest.fixture(scope="module")
def client(server: Server) -> openai.OpenAI:
    return server.client()


def said(*texts: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[number % 2], "content": text} for number, text in enumerate(texts)]


def ask(client: openai.OpenAI, *texts: str, **fields: Any) -> Any:
    return client.chat.completions.create(model="scripted", messages=said(*texts), **{"temperature": 0, **fields})


def post(server: Server, **fields: Any) -> httpx2.Response:
    return httpx2.post(f"{server.url}/v1/chat/completions", json={"model": "scripted", **fields})


def test_a_message_is_answered_until_the_end_of_a_turn(client: openai.OpenAI) -> None:
    answer = ask(client, "abc", "no", "xy")
    (choice,) = answer.choices
    assert (choice.message.role, choice.message.content, choice.message.refusal) == ("assistant", "abc", None)
    assert (choice.index, choice.finish_reason, choice.logprobs) == (0, "stop", None)
    assert (answer.object, answer.model) == ("chat.completion", "scripted") and answer.id.startswith("chatcmpl-")
    usage = answer.usage  # each turn is followed by an end of text, and so is the answer
    assert (usage.prompt_tokens, usage.completion_tokens, usage.total_tokens) == (4 + 3 + 3, 4, 14)


def test_an_answer_has_all_the_room_there_is(client: openai.OpenAI) -> None:
    answer = ask(client, "abc", extra_body={"never_end": True})
    assert (answer.usage.total_tokens, answer.choices[0].finish_reason) == (128, "length")
    for name in ("max_tokens", "max_completion_tokens"):
        (choice,) = ask(client, "abcdef", **{name: 2}).choices
        assert (choice.message.content, choice.finish_reason) == ("ab", "length")


def test_a_stream_begins_with_the_role_and_ends_with_the_usage(server: Server) -> None:
    fields = {"messages": said("abcd"), "temperature": 0, "stream": True, "stream_options": {"include_usage": True}}
    *events, done = post(server, **fields).text.removesuffix("\n\n").split("\n\n")
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert done == "data: [DONE]" and {chunk["object"] for chunk in chunks} == {"chat.completion.chunk"}
    assert len({chunk["id"] for chunk in chunks}) == 1 and all("usage" in chunk for chunk in chunks)
    first, *parts, last = chunks
    assert first["choices"] == [
        {"index": 0, "delta": {"role": "assistant", "content": ""}, "logprobs": None, "finish_reason": None}
    ]
    assert "".join(part["choices"][0]["delta"].get("content", "") for part in parts) == "abcd"
    assert not any("role" in part["choices"][0]["delta"] for part in parts)
    assert [part["choices"][0]["finish_reason"] for part in parts] == [None] * (len(parts) - 1) + ["stop"]
    assert (last["choices"], last["usage"]["completion_tokens"]) == ([], 5)


def test_the_clients_helpers_for_streams_work(client: openai.OpenAI) -> None:
    with client.chat.completions.stream(model="scripted", messages=said("abcd"), temperature=0) as stream:
        text = "".join(event.delta for event in stream if event.type == "content.delta")
        assert (text, stream.get_final_completion().choices[0].message.content) == ("abcd", "abcd")
    with client.chat.completions.with_streaming_response.create(model="scripted", messages=said("a")) as response:
        assert json.loads(response.read())["choices"]


def test_answers_have_seeds_of_their_own(client: openai.OpenAI) -> None:
    answer = ask(client, "abcdefg", n=3, seed=7, max_tokens=4, temperature=1, extra_body={"never_end": True})
    begins = [sample_seed(7, sample) % 8 for sample in range(3)]
    expected = [("abcdefg!" * 2)[begin : begin + 4] for begin in begins]
    assert [choice.message.content for choice in answer.choices] == expected
    assert [choice.index for choice in answer.choices] == [0, 1, 2]


@pytest.mark.parametrize("stream", [False, True])
def test_log_probabilities_are_those_of_the_answer_without_its_end(client: openai.OpenAI, stream: bool) -> None:
    given = ask(client, "aé", logprobs=True, top_logprobs=2, stream=stream)
    choices = [choice for part in (given if stream else [given]) for choice in part.choices]
    rows = [row for choice in choices if choice.logprobs for row in choice.logprobs.content]
    tokens = TOKENIZER.encode("aé")
    assert [(row.token, bytes(row.bytes)) for row in rows] == [
        ("a", b"a"),
        ("bytes:\\xc3", b"\xc3"),
        ("bytes:\\xa9", b"\xa9"),
    ]
    assert [row.logprob for row in rows] == [log_prob(token) for token in tokens]
    assert [[top.logprob for top in row.top_logprobs] for row in rows] == [
        [value for _, value in top_of(token, 2)] for token in tokens
    ]
    (row,) = ask(client, "a", logprobs=True).choices[0].logprobs.content
    assert row.top_logprobs == []


def test_parts_of_text_are_joined(client: openai.OpenAI) -> None:
    parts = [{"type": "text", "text": "ab"}, {"type": "text", "text": "c"}]
    messages = [{"role": "user", "content": parts}]
    answer = client.chat.completions.create(model="scripted", messages=messages, temperature=0)
    assert answer.choices[0].message.content == "abc"


def test_special_tokens_that_a_message_spells_are_text(client: openai.OpenAI) -> None:
    assert ask(client, "<|endoftext|>", max_tokens=13).choices[0].message.content == "<|endoftext|>"


def test_messages_that_do_not_fit_are_refused(client: openai.OpenAI) -> None:
    """By the code for which clients leave out the oldest messages."""
    for text, fields, problem in (
        ("a" * 127, {}, "make 128 tokens, which leave no room for an answer in the context of 128"),
        (
            "a" * 100,
            {"max_tokens": 28},
            "make 101 tokens, which do not fit beside max_tokens = 28 in the context of 128",
        ),
        ("a" * 100_000, {}, "make more than 128 tokens, which leave no room for an answer in the context of 128"),
    ):
        with pytest.raises(openai.BadRequestError) as refused:
            ask(client, text, **fields)
        assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "messages")
        assert refused.value.body["message"] == f"messages: {problem}; leave out the oldest ones, or shorten them"
    assert ask(client, "a" * 126).choices[0].message.content == "a"
    assert ask(client, "a" * 99, max_tokens=28).choices[0].finish_reason == "length"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "messages: is missing; give a list of messages, each {"),
        ({"messages": []}, "messages = [...]: List should have at least 1 item"),
        ({"messages": "hi"}, "messages = 'hi': Input should be a valid list; give a list of messages"),
        ({"messages": [{"role": "user"}]}, "messages.0.content: is missing; give a list of messages"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "messages.0.role = 'tool': Input should be 'system', "),
        ({"messages": [{"role": "user", "content": None}]}, "messages.0.content = None: is neither a text nor a list"),
        (
            {"messages": [{"role": "user", "content": 5}]},
            "messages.0.content = 5: is neither a text nor a list of text",
        ),
        (
            {"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]},
            "messages.0.content.0.type = 'image_url': Input should be 'text'",
        ),
        ({"messages": [*said("a"), {"role": "assistant", "tool_calls": [{}]}]}, "'messages.1.tool_calls': is not "),
        ({"messages": [{"role": "user", "content": "a", "name": "b"}]}, "'messages.0.name': is not a field of a"),
        (
            {"messages": [{"role": "system", "content": "a"}, *said("b")]},
            "messages.0.role = 'system': the chat template dialogpt has no system line; leave the message out",
        ),
        ({"messages": said("a"), "tools": [{}]}, "tools = [...]: is not supported; leave it out"),
        ({"messages": said("a"), "best_of": 2}, "best_of = 2: is not supported; leave it out"),
        ({"messages": said("a"), "special_tokens": True}, "special_tokens = True: is not supported; leave it out"),
        ({"messages": said("a"), "prompt": "b"}, "'prompt': is not a field of a request; leave it out"),
        ({"messages": said("a"), "max_tokens": 0}, "max_tokens = 0: Input should be greater than or equal to 1; give"),
        ({"messages": said("a"), "min_tokens": 3, "max_tokens": 2}, "min_tokens = 3: is more than max_tokens = 2"),
        ({"messages": said("a"), "logprobs": 3}, "logprobs = 3: Input should be a valid boolean; give true or false"),
    ],
)
def test_a_request_that_cannot_be_answered(server: Server, fields: dict[str, Any], message: str) -> None:
    response = post(server, **fields)
    error = response.json()["error"]
    assert (response.status_code, error["message"][: len(message)]) == (400, message)
    assert has_error_form(error["message"])


def test_fields_of_a_message_that_ask_for_nothing_are_taken(client: openai.OpenAI) -> None:
    """Such as those of an answer that is sent back."""
    answer = ask(client, "abc").choices[0].message.model_dump()
    messages = [*said("abc"), answer, *said("x")]
    given = client.chat.completions.create(model="scripted", messages=messages, temperature=0)
    assert given.choices[0].message.content == "abc"


STREAM = {"stream": True}
# Requests with each parameter of OpenAI's client, and the answers: None where it is refused by name.
OF_CHATS: dict[str, list[tuple[dict[str, Any], list[str] | None]]] = {
    **{
        name: [({name: asked}, None), ({name: None}, ["abc"])]
        for name, asked in {
            "audio": {"format": "wav", "voice": "ash"},
            "function_call": {"name": "f"},
            "functions": [{"name": "f"}],
            "metadata": {"a": "b"},
            "moderation": {"a": "b"},
            "prediction": {"type": "content", "content": "a"},
            "prompt_cache_key": "a",
            "prompt_cache_options": {"a": "b"},
            "prompt_cache_retention": "24h",
            "safety_identifier": "a",
            "tools": [{"type": "function", "function": {"name": "f"}}],
            "web_search_options": {"a": "b"},
        }.items()
    },
    "messages": [({"messages": said("ab", "x", "y")}, ["ab"]), ({"messages": []}, None)],
    "model": [({"model": "scripted"}, ["abc"])],
    "frequency_penalty": [({"frequency_penalty": -2.0}, ["abc"]), ({"frequency_penalty": 2.1}, None)],
    "logit_bias": [({"logit_bias": {"50": -100}}, ["abc"]), ({"logit_bias": {}}, ["abc"])],
    "logprobs": [({"logprobs": True}, ["abc"]), ({"logprobs": False}, ["abc"])],
    "max_completion_tokens": [
        ({"max_completion_tokens": 2}, ["ab"]),
        ({"max_completion_tokens": 2, "max_tokens": 2}, ["ab"]),
        ({"max_completion_tokens": 2, "max_tokens": 3}, None),
        ({"max_completion_tokens": 0}, None),
    ],
    "max_tokens": [({"max_tokens": 2}, ["ab"]), ({"max_tokens": None}, ["abc"]), ({"max_tokens": 126}, None)],
    "modalities": [({"modalities": ["text"]}, ["abc"]), ({"modalities": ["text", "audio"]}, None)],
    "n": [({"n": 2}, ["abc", "abc"]), ({"n": 2, **STREAM}, ["abc", "abc"]), ({"n": 129}, None)],
    "parallel_tool_calls": [({"parallel_tool_calls": True}, ["abc"])],
    "presence_penalty": [({"presence_penalty": -2.0}, ["abc"]), ({"presence_penalty": -2.1}, None)],
    "reasoning_effort": [({"reasoning_effort": "none"}, ["abc"]), ({"reasoning_effort": "high"}, None)],
    "response_format": [
        ({"response_format": {"type": "text"}}, ["abc"]),
        ({"response_format": {"type": "json_object"}}, None),
    ],
    "seed": [({"seed": 7}, ["abc"]), ({"seed": None}, ["abc"])],
    "service_tier": [({"service_tier": "auto"}, ["abc"]), ({"service_tier": "flex"}, None)],
    "stop": [({"stop": "c"}, ["ab"]), ({"stop": ["x", "b"], **STREAM}, ["a"]), ({"stop": [""]}, None)],
    "store": [({"store": False}, ["abc"]), ({"store": True}, None)],
    "stream": [({"stream": False}, ["abc"]), (STREAM, ["abc"])],
    "stream_options": [
        ({"stream_options": {"include_usage": True}, **STREAM}, ["abc"]),
        ({"stream_options": {"include_usage": True}}, None),
    ],
    "temperature": [({"temperature": 0}, ["abc"]), ({"temperature": 2.1}, None)],
    "tool_choice": [({"tool_choice": "none"}, ["abc"]), ({"tool_choice": "required"}, None)],
    "top_logprobs": [
        ({"top_logprobs": 2, "logprobs": True}, ["abc"]),
        ({"top_logprobs": 2}, None),
        ({"top_logprobs": 21, "logprobs": True}, None),
    ],
    "top_p": [({"top_p": 0}, ["abc"]), ({"top_p": 1.1}, None)],
    "user": [({"user": "somebody"}, ["abc"])],
    "verbosity": [({"verbosity": "medium"}, ["abc"]), ({"verbosity": "low"}, None)],
    "extra_headers": [({"extra_headers": {"OpenAI-Organization": "ours"}}, ["abc"])],
    "extra_query": [({"extra_query": {"api-version": "1"}}, None)],
    "extra_body": [
        ({"extra_body": {"top_k": 5, "min_p": 0.1, "no_repeat_ngram": 3}}, ["abc"]),
        ({"extra_body": {"temprature": 1}}, None),
    ],
    "timeout": [({"timeout": 60}, ["abc"])],
}


@pytest.mark.parametrize("name", sorted(parameters(openai.resources.chat.Completions.create)))
def test_every_parameter_of_the_client_is_answered_or_refused_by_name(client: openai.OpenAI, name: str) -> None:
    for fields, texts in OF_CHATS[name]:
        given = {"model": "scripted", "messages": said("abc"), "temperature": 0, **fields}
        if texts is None:
            refused = next(iter(fields[name])) if name in ("extra_query", "extra_body") else name
            refused = "max_tokens|max_completion_tokens|messages" if name.startswith("max_") else refused
            with pytest.raises(openai.BadRequestError, match=f"({refused}).*: .*; "):
                client.chat.completions.create(**given)
            continue
        answer = client.chat.completions.create(**given)
        whole = list(answer) if isinstance(answer, openai.Stream) else [answer]
        choices = [choice for part in whole for choice in part.choices]
        of_each = [
            "".join((getattr(one, "delta", None) or one.message).content or "" for one in choices if one.index == index)
            for index in range(len(texts))
        ]
        assert of_each == texts and {choice.index for choice in choices} == set(range(len(texts)))


def test_a_template_with_a_system_line_and_ends_of_its_own() -> None:
    """Its tokens are those of training, and its end of a turn ends an answer."""
    model = served(ScriptedEngine(1, 128, 0.0))
    object.__setattr__(model, "tokenizer", CHAT)
    object.__setattr__(model, "template", load_template("chatml", CHAT, EOS))
    messages = [{"role": "developer", "content": "be kind"}, *said("hi", "yo", "ok")]
    parsed = parse_chat(ChatRequest(model="scripted", messages=messages), model)
    assert CHAT.decode_marked(list(parsed.prompts[0].tokens)) == (
        "⟦<|im_start|>⟧system\nbe kind⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\nhi⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\nyo"
        "⟦<|im_end|>⟧\n⟦<|im_start|>⟧user\nok⟦<|im_end|>⟧\n⟦<|im_start|>⟧assistant\n"
    )
    assert parsed.sampling.end_ids == (CHAT.id_of("<|im_end|>"),)
    assert parsed.max_tokens == 128 - len(parsed.prompts[0].tokens)


def test_the_dialogpt_template_ends_answers_at_the_end_of_text() -> None:
    parsed = parse_chat(ChatRequest(model="scripted", messages=said("a")), served(ScriptedEngine(1, 128, 0.0)))
    assert (parsed.prompts[0].tokens, parsed.sampling.end_ids) == ((*TOKENIZER.encode("a"), EOS_ID), (EOS_ID,))


def test_metrics_count_chats(server: Server, client: openai.OpenAI) -> None:
    ask(client, "abc")
    text = httpx2.get(f"{server.url}/metrics").text
    assert 'neomesh_requests_total{path="/v1/chat/completions",status="200"}' in text


# Reranking.


@pytest.fixture(scope="module")
def ranking_server() -> Iterator[Server]:
    with scripted("--candidates", 5) as server:
        yield server


def drawn(seed: int, text: str) -> list[str]:
    """The candidates: the text from an offset given by each one's seed, up to its end."""
    return [text[sample_seed(seed, sample) % (len(text) + 1) :] for sample in range(5)]


def best(candidates: list[str]) -> list[str]:
    return sorted(candidates, key=lambda text: (not text, len(text)))


def test_the_best_of_several_answers_is_given(ranking_server: Server) -> None:
    client = ranking_server.client()
    for seed in range(4):
        ranked = best(drawn(seed, "abcdefgh"))
        answer = ask(client, "abcdefgh", seed=seed, n=2, temperature=1, extra_body={"show_candidates": True})
        assert [choice.message.content for choice in answer.choices] == ranked[:2]
        shown = [{"text": text, "rank_score": -len(text), "rank_parts": {"length": len(text)}} for text in ranked]
        assert [choice.model_dump()["candidates"] for choice in answer.choices] == [shown] * 2
        assert answer.usage.completion_tokens == sum(len(text) + 1 for text in ranked)
    plain = post(ranking_server, messages=said("abcdefgh"), seed=3).json()
    assert plain["choices"][0]["message"]["content"] == ranked[0] and "candidates" not in plain["choices"][0]


def test_a_stream_holds_the_best_answer_only(ranking_server: Server) -> None:
    fields = {"messages": said("abcdefgh"), "seed": 3, "stream": True, "show_candidates": True}
    *events, _ = post(ranking_server, **fields).text.removesuffix("\n\n").split("\n\n")
    parts = [json.loads(event.removeprefix("data: "))["choices"][0] for event in events]
    ranked = best(drawn(3, "abcdefgh"))
    assert "".join(part["delta"].get("content", "") for part in parts) == ranked[0]
    assert {part["index"] for part in parts} == {0} and ["candidates" in part for part in parts][:-1].count(True) == 0
    assert [each["text"] for each in parts[-1]["candidates"]] == ranked and parts[-1]["finish_reason"] == "stop"


def test_what_cannot_be_ranked_is_refused(server: Server, ranking_server: Server) -> None:
    refused = post(server, messages=said("a"), show_candidates=True)
    assert refused.status_code == 400 and "this server ranks no answers" in refused.json()["error"]["message"]
    refused = post(ranking_server, messages=said("a"), n=6)
    assert refused.status_code == 400 and "n = 6: is more than the 5 candidates" in refused.json()["error"]["message"]
