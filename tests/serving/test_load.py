"""Many clients at once; the engine repeats the prompts."""

from __future__ import annotations

import asyncio
import collections
import concurrent.futures
import contextlib
import socket

import httpx2
import openai
import pytest

from tests.serving.load import load, requests, send_alone
from tests.serving.servers import Server, scripted

PROMPTS = [
    "the cat sat on a mat",
    "é and ß and €",
    ["one", "two prompts"],
    "the end <| of it",
    "abcdefghijklmnopqrstuvwxyz",
]


def test_clients_get_their_own_answers() -> None:
    with scripted("--rows", 8, "--seconds_per_token", 0.0005, "--n_waiting", 1000) as server:
        known = send_alone(server, requests("scripted", PROMPTS, 48))
        tally = asyncio.run(load(server, known, 32, 2.0))
        assert tally.wrong == [] and tally.n_right > 50 and tally.n_disconnected > 5
        assert not any("Traceback" in line for line in server.lines), server.lines


async def send_at_once(server: Server, n_clients: int, n_rounds: int) -> collections.Counter[str]:
    """Sends a request on each of this many connections at once, as often as said; returns how often each text came."""
    texts: collections.Counter[str] = collections.Counter()
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=None)
    transport = httpx2.AsyncClient(limits=limits, timeout=600)
    async with openai.AsyncOpenAI(
        base_url=f"{server.url}/v1", api_key="none", max_retries=0, http_client=transport
    ) as client:

        async def send() -> None:
            answer = await client.completions.create(model="scripted", prompt="abcd", max_tokens=9, temperature=0)
            texts[answer.choices[0].text] += 1

        for _ in range(n_rounds):
            await asyncio.gather(*(send() for _ in range(n_clients)))
            await asyncio.sleep(6.0)  # longer than some servers keep an idle connection
    return texts


@pytest.mark.slow
@pytest.mark.processes
def test_none_of_two_thousand_requests_at_once_is_lost() -> None:
    """Over kept connections, without retries, and with 1,500 connections that are silent."""
    with scripted("--rows", 8) as server, contextlib.ExitStack() as links:
        host, port = server.url.removeprefix("http://").split(":")
        for _ in range(1500):
            links.enter_context(socket.create_connection((host, int(port))))
        assert asyncio.run(send_at_once(server, 2000, 3)) == {"abcdabcda": 6000}
        assert server.lines[1:] == []


HEAVY = {
    "scores": {"prompt": ["a b c d e f g h i j"] * 2048, "max_tokens": 8, "logprobs": 20, "echo": True},
    "scores in a stream": {"prompt": ["a b c"] * 1000, "max_tokens": 8, "logprobs": 20, "echo": True, "stream": True},
    "texts": {"prompt": ["a b c d e f g h i j"] * 2048, "max_tokens": 64},
}


@pytest.mark.slow
@pytest.mark.processes
@pytest.mark.parametrize("name", HEAVY)
def test_the_server_answers_others_all_through_a_long_request(name: str) -> None:
    with scripted("--rows", 8) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        body = {"model": "scripted", **HEAVY[name]}
        heavy, n_answers = threads.submit(httpx2.post, f"{server.url}/v1/completions", json=body, timeout=600), 0
        with httpx2.Client(base_url=server.url) as client:
            while not heavy.done():
                n_answers += client.get("/healthz").status_code == 200
        assert heavy.result().status_code == 200 and n_answers > 30
