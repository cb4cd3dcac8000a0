"""Many clients at once that know the right answers."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import random
import re
import time
from collections.abc import Sequence
from typing import Any

import httpx2

from tests.serving.servers import Server

DISCONNECT_SHARE = 0.15  # of the requests are abandoned
TOLERANCE = 1e-4  # of log-probabilities: the order of sums depends on the batch


@dataclasses.dataclass(frozen=True)
class Known:
    """A request and its answer when there are no others."""

    fields: dict[str, Any]
    choices: list[dict[str, Any]]
    usage: dict[str, int]


@dataclasses.dataclass
class Tally:
    """The outcome of a load test."""

    n_right: int = 0
    n_disconnected: int = 0
    wrong: list[str] = dataclasses.field(default_factory=list)
    memory_bytes: list[tuple[float, float]] = dataclasses.field(default_factory=list)

    def memory_from(self, seconds: float) -> list[float]:
        """Returns the sizes of the server's memory after this many seconds."""
        return [size for at, size in self.memory_bytes if at >= seconds]


def requests(model: str, prompts: Sequence[Any], n_requests: int) -> list[dict[str, Any]]:
    """Returns requests of all kinds, each with a seed."""
    draw = random.Random(5)
    settings = (
        {"temperature": 0},
        {"temperature": 1.0},
        {"temperature": 0.8, "top_k": 20, "n": 2},
        {"temperature": 1.2, "top_p": 0.9, "logprobs": 2},
        {"temperature": 1.0, "stop": [" a", "e "], "n": 3},
        {"temperature": 0.9, "min_p": 0.05, "repetition_penalty": 1.3, "echo": True, "logprobs": 1},
        {
            "temperature": 1.0,
            "frequency_penalty": 0.5,
            "presence_penalty": 0.5,
            "no_repeat_ngram": 3,
            "never_end": True,
        },
        {"max_tokens": 0, "echo": True, "logprobs": 3},
    )
    return [
        {
            "model": model,
            "prompt": draw.choice(prompts),
            "seed": draw.randrange(1000),
            "max_tokens": draw.randrange(1, 40),
            **settings[number % len(settings)],
        }
        for number in range(n_requests)
    ]


def send_alone(server: Server, requests: Sequence[dict[str, Any]]) -> list[Known]:
    """Sends the requests one after the other; returns them with their answers."""
    known = []
    with httpx2.Client(base_url=server.url, timeout=120) as client:
        for fields in requests:
            response = client.post("/v1/completions", json=fields)
            assert response.status_code == 200, response.text
            known.append(Known(fields, response.json()["choices"], response.json()["usage"]))
    return known


def differs(choices: list[dict[str, Any]], expected: list[dict[str, Any]]) -> bool:
    """Returns whether answers differ in more than the last digits of their scores."""
    given = sorted(choices, key=lambda choice: choice["index"])
    if [_exact(one) for one in given] != [_exact(one) for one in expected]:
        return True
    return any(abs(a - b) > TOLERANCE for a, b in zip(_scores(given), _scores(expected), strict=True))


def _exact(choice: dict[str, Any]) -> tuple[Any, ...]:
    scores = choice["logprobs"] or {}
    return choice["text"], choice["finish_reason"], scores.get("tokens"), scores.get("text_offset")


def _scores(choices: list[dict[str, Any]]) -> list[float]:
    values = [value for choice in choices if choice["logprobs"] for value in choice["logprobs"]["token_logprobs"]]
    return [value for value in values if value is not None]


async def load(server: Server, known: Sequence[Known], n_clients: int, seconds: float) -> Tally:
    """Lets this many clients send requests at once, for this long."""
    tally, end = Tally(), time.monotonic() + seconds
    limits = httpx2.Limits(max_connections=None, max_keepalive_connections=n_clients)
    async with httpx2.AsyncClient(base_url=server.url, timeout=300, limits=limits) as client:
        clients = [_run_client(client, random.Random(number), known, tally, end) for number in range(n_clients)]
        await asyncio.gather(_watch_memory(client, tally, end), *clients)
    return tally


async def _watch_memory(client: httpx2.AsyncClient, tally: Tally, end: float) -> None:
    began = time.monotonic()
    while time.monotonic() < end:
        response = (await client.get("/metrics")).text
        size = re.search(r"^process_resident_memory_bytes (\S+)$", response, re.M)
        assert size is not None
        tally.memory_bytes.append((time.monotonic() - began, float(size.group(1))))
        await asyncio.sleep(1.0)


async def _run_client(
    client: httpx2.AsyncClient, draw: random.Random, known: Sequence[Known], tally: Tally, end: float
) -> None:
    while time.monotonic() < end:
        one, kind = draw.choice(known), draw.random()
        if kind < DISCONNECT_SHARE:
            await _send_and_disconnect(client, one, draw.random() * 0.3)
            tally.n_disconnected += 1
            continue
        choices, usage = await (_send_streamed(client, one) if kind < 0.5 else _send(client, one))
        if differs(choices, one.choices) or usage != one.usage:
            tally.wrong.append(f"{one.fields}\n  alone {one.choices} {one.usage}\n  here  {choices} {usage}")
        else:
            tally.n_right += 1


async def _send_and_disconnect(client: httpx2.AsyncClient, one: Known, seconds: float) -> None:
    try:
        await client.post("/v1/completions", json=one.fields, timeout=max(0.01, seconds))
    except httpx2.TimeoutException:
        return


async def _send(client: httpx2.AsyncClient, one: Known) -> tuple[list[dict[str, Any]], dict[str, int]]:
    response = await client.post("/v1/completions", json=one.fields)
    assert response.status_code == 200, response.text
    return response.json()["choices"], response.json()["usage"]


async def _send_streamed(client: httpx2.AsyncClient, one: Known) -> tuple[list[dict[str, Any]], dict[str, int]]:
    fields = {**one.fields, "stream": True, "stream_options": {"include_usage": True}}
    async with client.stream("POST", "/v1/completions", json=fields) as response:
        assert response.status_code == 200, await response.aread()
        events = [line.removeprefix("data: ") async for line in response.aiter_lines() if line]
    assert events.pop() == "[DONE]"
    chunks = [json.loads(event) for event in events]
    usage = chunks.pop()["usage"]
    choices: dict[int, dict[str, Any]] = {}
    for (part,) in (chunk["choices"] for chunk in chunks):
        _append(choices.setdefault(part["index"], {"index": part["index"], "text": "", "logprobs": None}), part)
    return list(choices.values()), usage


def _append(choice: dict[str, Any], part: dict[str, Any]) -> None:
    choice["text"] += part["text"]
    choice["finish_reason"] = part["finish_reason"]
    if part["logprobs"] is not None:
        scores = choice["logprobs"] = choice["logprobs"] or {name: [] for name in part["logprobs"]}
        for name, values in part["logprobs"].items():
            scores[name] += values
