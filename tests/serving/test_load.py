"""Many clients at once; the engine repeats the prompts."""

from __future__ import annotations

import asyncio

from tests.serving.load import load, requests, send_alone
from tests.serving.servers import scripted

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
