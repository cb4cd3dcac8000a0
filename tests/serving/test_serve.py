"""A trained model behind the server, started from the command line."""

from __future__ import annotations

import asyncio

import numpy as np
import openai
import pytest

from serving.response import token_name
from tests import program
from tests.serving.load import Known, differs, load, requests, send_alone
from tests.serving.projects import SIZE, Project
from tests.serving.servers import Server

PROMPTS = ["the cat sat on a mat", "one dog", ["far from", "home while it run and saw the"], "", "far and"]


@pytest.fixture(scope="module")
def client(trained_server: Server) -> openai.OpenAI:
    return trained_server.client(timeout=120)


@pytest.mark.slow
@pytest.mark.processes
def test_scores_are_those_of_the_model(project: Project, client: openai.OpenAI) -> None:
    """Both for the echoed prompt and the generated text, whatever the sampling parameters."""
    text = "the cat saw one"
    answer = client.completions.create(
        model="tiny",
        prompt=text,
        echo=True,
        logprobs=5,
        temperature=0.7,
        frequency_penalty=1.0,
        max_tokens=12,
        seed=3,
        extra_body={"top_k": 5, "never_end": True},
    )
    tokenizer, scores = project.tokenizer(), answer.choices[0].logprobs
    assert scores is not None and answer.choices[0].text.startswith(text)
    names = {token_name(tokenizer.bytes_of(token)): token for token in range(tokenizer.n_vocab)}
    tokens = [names[name] for name in scores.tokens]
    assert tokens[: len(tokenizer.encode(text))] == tokenizer.encode(text) and len(tokens) > 12
    expected = project.log_probs(tokens)
    following = np.array(tokens[1:])[:, None]
    np.testing.assert_allclose(scores.token_logprobs[1:], np.take_along_axis(expected, following, 1)[:, 0], atol=1e-4)
    for position, top in enumerate(scores.top_logprobs[1:]):
        likeliest = sorted(expected[position])[-5:]
        np.testing.assert_allclose(sorted(top.values())[-5:], likeliest, atol=1e-4)
        np.testing.assert_allclose([expected[position][names[name]] for name in top], list(top.values()), atol=1e-4)


def test_temperature_0_gives_the_most_likely_token(project: Project, client: openai.OpenAI) -> None:
    tokenizer, prompt = project.tokenizer(), "while the dog"
    answer = client.completions.create(model="tiny", prompt=prompt, temperature=0, max_tokens=10)
    tokens = tokenizer.encode(prompt)
    for _ in range(10):
        tokens.append(int(project.log_probs([*tokens, 0])[-1].argmax()))
    assert answer.choices[0].text == tokenizer.decode(tokens[len(tokenizer.encode(prompt)) :])


def test_a_bias_bans_a_token_or_lets_no_other_be_chosen(project: Project, client: openai.OpenAI) -> None:
    tokenizer, prompt = project.tokenizer(), "while the dog"
    expected = project.log_probs([*tokenizer.encode(prompt), 0])[-1]
    *_, second, best = np.argsort(expected).tolist()
    names = [token_name(tokenizer.bytes_of(token)) for token in (second, best)]
    for bias, chosen in ({}, 1), ({best: -100}, 0), ({best: -100, second: 100.0}, 0), ({best: 0.5}, 1):
        answer = client.completions.create(
            model="tiny", prompt=prompt, temperature=0, max_tokens=1, logprobs=0, logit_bias=bias
        )
        scores = answer.choices[0].logprobs
        assert scores.tokens == [names[chosen]]
        np.testing.assert_allclose(scores.token_logprobs, [expected[(second, best)[chosen]]], atol=1e-4)


def test_a_text_does_not_end_before_min_tokens(project: Project, client: openai.OpenAI) -> None:
    eos = {str(project.tokenizer().eos_id): 100}
    for min_tokens in (0, 1, 12):
        answer = client.completions.create(
            model="tiny", prompt="the", seed=1, max_tokens=20, logit_bias=eos, extra_body={"min_tokens": min_tokens}
        )
        assert answer.choices[0].finish_reason == "stop"
        assert answer.usage.completion_tokens == min_tokens + 1  # the end counts


@pytest.mark.slow
@pytest.mark.processes
def test_predict_and_the_server_give_the_same_texts(project: Project, client: openai.OpenAI) -> None:
    """For the same prompt, settings and seed."""
    (project.folder / "prompt.txt").write_text("the cat")
    sampling = ("--temperature", "0.9", "--top_p", "0.95", "--seed", "11", "--n_samples", "3", "--max_new_tokens", "16")
    done = program.run_process(
        project.folder,
        *SIZE,
        "--predict",
        "--prompt",
        "prompt.txt",
        *sampling,
        "--set",
        "remove_partial_sequences=true",
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = client.completions.create(
        model="tiny", prompt="the cat", temperature=0.9, top_p=0.95, seed=11, n=3, max_tokens=16
    )
    for choice in answer.choices:
        assert f"\n{choice.text}\n" in done.stdout


@pytest.fixture(scope="module")
def known(trained_server: Server) -> list[Known]:
    return send_alone(trained_server, requests("tiny", PROMPTS, 24))


def test_clients_get_their_own_answers(trained_server: Server, known: list[Known]) -> None:
    tally = asyncio.run(load(trained_server, known, 16, 4.0))
    assert tally.wrong == [] and tally.n_right > 10


@pytest.mark.slow
@pytest.mark.processes
def test_sixty_four_clients_for_two_minutes(project: Project) -> None:
    with project.serving("--rows", "16") as server:
        known = send_alone(server, requests("tiny", PROMPTS, 64))
        tally = asyncio.run(load(server, known, 64, 120.0))
        assert tally.wrong == [] and tally.n_right > 200 and tally.n_disconnected > 50
        sizes = tally.memory_from(30.0)
        print(
            f"{tally.n_right} right, {tally.n_disconnected} disconnected, {min(sizes):,.0f} to {max(sizes):,.0f} bytes"
        )
        assert max(sizes) < 1.05 * sizes[0]
        assert not any("Traceback" in line for line in server.lines)


@pytest.mark.slow
@pytest.mark.processes
def test_a_mesh_answers_as_one_device(project: Project, known: list[Known]) -> None:
    mesh = ("--cpu_devices", "4", "--set", "mesh_shape=x:2,y:2", "--set", "layout=batch:x,heads:y,vocab:y")
    with project.serving(*mesh) as server:
        for one, other in zip(known, send_alone(server, [one.fields for one in known]), strict=True):
            assert not differs(other.choices, one.choices), one.fields


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--serve", "70000"), "--serve 70000: is not a port; "),
        (("--serve", "0", "--rows", "0"), "--rows 0: must be at least 1"),
    ],
)
def test_invalid_serving_flags_are_refused(project: Project, arguments: tuple[str, ...], message: str) -> None:
    done = program.run_process(project.folder, *SIZE, *arguments)
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith(message), done.stderr[-2000:]
