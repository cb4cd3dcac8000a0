"""The server's API key, limits and shutdown; the engine repeats the prompts."""

from __future__ import annotations

import concurrent.futures
import contextlib
import json
import re
import signal
import socket
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx2
import openai
import pytest
import tokenizers
from tokenizers import models

from configs.errors import UserError
from data.tokenization.tokenizer import Tokenizer
from runtime.training.signals import SIGNALS
from serving import settings
from serving.app import listen, serve
from serving.protocol import CompletionRequest
from serving.request import parse_completion
from serving.settings import ServingSettings, check_packages, key_from_environment
from serving.spelled_tokens import SpelledTokens
from tests.serving.scripted import BREAKS, EOS_ID, ScriptedEngine, served
from tests.serving.servers import Server, scripted

MODEL = served(ScriptedEngine(1, 128, 0.0))
SLOW = ("--rows", 1, "--seconds_per_token", 0.05)  # 120 tokens in 6 s


def until(holds: Callable[[], bool], seconds: float = 20.0) -> None:
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "timed out"
        time.sleep(0.02)


def post(server: Server, **fields: Any) -> httpx2.Response:
    body = {"model": "scripted", "prompt": "abc", "temperature": 0, **fields}
    return httpx2.post(f"{server.url}/v1/completions", json=body, timeout=60)


def number(server: Server, name: str) -> float:
    found = re.search(rf"^{re.escape(name)} (\S+)$", httpx2.get(f"{server.url}/metrics").text, re.M)
    return float(found.group(1)) if found else 0.0


@contextlib.contextmanager
def streaming(server: Server, **fields: Any) -> Iterator[Iterator[str]]:
    """Yields the remaining lines of an answer that has started."""
    body = {"model": "scripted", "prompt": "abc", "temperature": 0, "stream": True, **fields}
    with httpx2.stream("POST", f"{server.url}/v1/completions", json=body, timeout=60) as response:
        lines = response.iter_lines()
        next(lines)
        yield lines


def test_requests_without_the_key_are_refused() -> None:
    with scripted(NEOMESH_API_KEY="let me in") as server:
        assert server.client("let me in").completions.create(model="scripted", prompt="ab").choices[0].text
        for key in ("let me", "let me in!", "LET ME IN"):
            with pytest.raises(openai.AuthenticationError):
                server.client(key).models.list()
        for path in ("/v1/models", "/metrics", "/openapi.json", "/nowhere"):
            response = httpx2.get(server.url + path)
            assert (response.status_code, response.headers["www-authenticate"]) == (401, "Bearer")
            assert response.json()["error"]["code"] == "invalid_api_key"
        odd = httpx2.get(f"{server.url}/v1/models", headers={"Authorization": "Bearer é€".encode()})
        assert odd.status_code == 401
        assert httpx2.get(f"{server.url}/healthz").json() == {"status": "ok"}
        response = httpx2.get(f"{server.url}/openapi.json", headers={"Authorization": "bearer let me in"}).json()
        assert "401" in response["paths"]["/v1/completions"]["post"]["responses"]
        assert response["security"] == [{"key": []}]


@pytest.mark.parametrize("key", ["", " ", " key", "k\ney", "schlüssel"])
def test_a_key_that_no_header_can_carry_is_refused(key: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NEOMESH_API_KEY", key)
    with pytest.raises(UserError, match="^NEOMESH_API_KEY: is empty, starts .*; set it "):
        key_from_environment()


def test_a_server_open_to_the_network_without_a_key_warns() -> None:
    with scripted("--host", "0.0.0.0") as server:
        assert server.lines[0].startswith("warning: --host 0.0.0.0: anyone who reaches this machine can use the server")
        port = server.url.rpartition(":")[2]
        assert httpx2.get(f"http://127.0.0.1:{port}/healthz").status_code == 200
    with scripted("--host", "0.0.0.0", NEOMESH_API_KEY="key") as server:
        assert len(server.lines) == 1


def test_a_body_that_is_too_large_is_refused_and_the_next_is_not() -> None:
    with scripted("--body_bytes", 10_000) as server:
        for size in (9_000, 11_000, 100_000, 1_000_000):
            response = post(server, prompt="a", user="x" * size)
            assert response.status_code == (200 if size < 10_000 else 413)
        assert "is larger than 10000 bytes" in response.json()["error"]["message"]
        chunks = (b"x" * 4_000 for _ in range(10))
        headers = {"Content-Type": "application/json"}
        assert httpx2.post(f"{server.url}/v1/completions", content=chunks, headers=headers).status_code == 413
        assert post(server, prompt="a").status_code == 200


def test_a_body_that_does_not_arrive_times_out() -> None:
    with scripted("--body_seconds", 0.3) as server:
        host, port = server.url.removeprefix("http://").split(":")
        with socket.create_connection((host, int(port))) as link:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
            assert link.recv(1000).startswith(b"HTTP/1.1 408 ")
        assert post(server).status_code == 200


def connect(server: Server, buffer_bytes: int | None = None) -> socket.socket:
    host, port = server.url.removeprefix("http://").split(":")
    link = socket.socket()
    link.settimeout(60)
    if buffer_bytes is not None:
        link.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, buffer_bytes)
    link.connect((host, int(port)))
    return link


def is_healthy(link: socket.socket) -> bool:
    """Asks on a connection that is kept, and reads the whole answer."""
    link.sendall(HEALTH)
    answer = b""
    while not answer.endswith(b'{"status":"ok"}'):
        part = link.recv(10_000)
        if not part:
            return False
        answer += part
    return True


HEAD = b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n"
HEALTH = b"GET /healthz HTTP/1.1\r\nHost: x\r\n\r\n"


@pytest.mark.parametrize(
    ("sent", "status"),
    [(b"", b""), (b"G", b"408"), (b"GET /healthz HTTP/1.1\r\nHost", b"408"), (b"GET / HTTP/1.1\r\nA: b\r\n", b"408")],
    ids=repr,
)
@pytest.mark.parametrize("is_kept", [False, True], ids=["new", "kept"])
def test_a_request_whose_headers_do_not_arrive_times_out(
    quick_server: Server, is_kept: bool, sent: bytes, status: bytes
) -> None:
    with connect(quick_server) as link:
        assert not is_kept or is_healthy(link)
        link.sendall(sent)
        head, _, body = received(link).partition(b"\r\n\r\n")
        assert head[9:12] == status and head.count(b"x-request-id: req_") == (status != b"")
        assert not body or json.loads(body)["error"]["code"] == "slow_head"


@pytest.fixture(scope="module")
def quick_server() -> Iterator[Server]:
    """Waits a short time for everything, and has a key."""
    times = ("--head_seconds", 0.3, "--body_seconds", 0.3, "--write_seconds", 0.5, "--keep_alive_seconds", 1)
    with scripted(*times, NEOMESH_API_KEY="key") as server:
        yield server


def received(link: socket.socket) -> bytes:
    """Returns all that arrives until the server closes the connection."""
    with contextlib.suppress(ConnectionResetError):
        return b"".join(iter(lambda: link.recv(65536), b""))
    return b""


def test_headers_that_arrive_slowly_time_out(quick_server: Server) -> None:
    """However often something arrives."""
    with connect(quick_server) as link, contextlib.suppress(BrokenPipeError, ConnectionResetError):
        link.sendall(b"GET /healthz HTTP/1.1\r\n")
        for number in range(100):
            link.sendall(b"Header-%d: 1\r\n" % number)
            time.sleep(0.05)
        pytest.fail("the server takes headers for ever")


@pytest.mark.parametrize("method", [b"POST", b"GET", b"PUT"])
@pytest.mark.parametrize("key", [b"key", b"wrong"])
def test_a_body_that_does_not_arrive_ends_the_connection_with_any_method_and_key(
    quick_server: Server, method: bytes, key: bytes
) -> None:
    with connect(quick_server) as link:
        link.sendall(HEAD.replace(b"POST", method).replace(b": x", b": x\r\nAuthorization: Bearer " + key) + b"{")
        assert received(link)[9:12] == (b"408" if key == b"key" else b"401")


def test_an_idle_connection_is_kept_for_a_while(quick_server: Server) -> None:
    assert ServingSettings(0).keep_alive_seconds == 75
    with connect(quick_server) as link:
        for _ in range(3):
            assert is_healthy(link)
            time.sleep(0.6)
        assert received(link) == b""


def test_a_client_that_does_not_read_is_disconnected(quick_server: Server) -> None:
    """Its answer is larger than the buffers between it and the server."""
    body = {"model": "scripted", "prompt": ["a" * 120] * 150, "max_tokens": 0, "echo": True, "logprobs": 20}
    data = json.dumps(body).encode()
    head = HEAD.replace(b"100", str(len(data)).encode())
    head = head.replace(b": x", b": x\r\nAuthorization: Bearer key\r\nContent-Type: application/json")
    with connect(quick_server, buffer_bytes=4096) as link:
        link.sendall(head + data)
        assert link.recv(1) == b"H"
        time.sleep(2.0)
        assert not received(link).endswith(b"}")


@pytest.mark.parametrize("limit", [("--n_connections", 50), ("--files", 178)], ids=lambda flags: flags[0])
def test_silent_connections_do_not_keep_a_client_out(limit: tuple[str, int]) -> None:
    """The oldest of them is closed for a new one, and a connection that was in use after all of them."""
    with scripted(*limit) as server, httpx2.Client(base_url=server.url) as kept, contextlib.ExitStack() as links:
        assert kept.get("/healthz").status_code == 200
        silent = [links.enter_context(connect(server)) for _ in range(120)]
        for link in silent[60:90]:
            link.sendall(b"GET /healthz HTTP/1.1\r\n")
        for _ in range(3):
            assert httpx2.get(f"{server.url}/healthz").status_code == 200
        assert kept.get("/healthz").status_code == 200
        assert received(silent[0]) == b"" == received(silent[30])
        assert is_healthy(silent[119])
        assert not any("Traceback" in line or "accept" in line for line in server.lines)


def test_connections_in_use_are_not_closed_for_new_ones() -> None:
    with scripted(*SLOW, "--n_connections", 3) as server, contextlib.ExitStack() as links:
        running = [links.enter_context(streaming(server, max_tokens=20)) for _ in range(1)]
        waiting = [links.enter_context(connect(server)) for _ in range(2)]
        body = json.dumps({"model": "scripted", "prompt": "abc", "max_tokens": 2}).encode()
        for link in waiting:
            link.sendall(
                HEAD.replace(b"100", str(len(body)).encode()).replace(b": x", b": x\r\nContent-Type: application/json")
                + body
            )
        time.sleep(0.5)
        with connect(server) as refused:
            answer = received(refused)
            assert answer[9:12] == b"503" and b"too_many_connections" in answer and b"\r\nRetry-After: 1\r\n" in answer
        assert list(running[0])[-2:] == ["data: [DONE]", ""]
        assert [link.recv(10_000)[9:12] for link in waiting] == [b"200", b"200"]


def test_small_answers_are_sent_at_once() -> None:
    """Without Nagle's algorithm, which holds an answer back until the client has confirmed the one before."""
    with listen(ServingSettings(port=0)) as listener, socket.create_connection(listener.getsockname()):
        connection, _ = listener.accept()
        with connection:
            assert connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)


def test_a_client_that_disconnects_in_the_middle_of_its_body_causes_no_fault() -> None:
    with scripted() as server:
        address = server.url.removeprefix("http://").split(":")
        with socket.create_connection((address[0], int(address[1]))) as link:
            link.sendall(b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Length: 100\r\n\r\n{")
        counted = 'neomesh_requests_total{path="/v1/completions",status="499"} 1.0'
        until(lambda: counted in httpx2.get(f"{server.url}/metrics").text)
        assert not any("Traceback" in line for line in server.lines)


def test_a_full_queue_refuses_requests_until_there_is_room() -> None:
    with scripted(*SLOW, "--n_waiting", 2) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        with streaming(server, max_tokens=120):
            waiting = [threads.submit(post, server, max_tokens=2) for _ in range(2)]
            until(lambda: number(server, "neomesh_num_requests_waiting") == 2)
            response = post(server)
            assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
            assert int(response.headers["retry-after"]) >= 1
            assert post(server, n=4).status_code == 400  # there can never be room for this many
            assert httpx2.get(f"{server.url}/healthz").status_code == 200
        assert [one.result().json()["choices"][0]["text"] for one in waiting] == ["ab", "ab"]
        assert post(server, max_tokens=1).status_code == 200


def test_many_sequences_wait_by_default_and_more_are_refused() -> None:
    with scripted(*SLOW) as server, streaming(server, prompt=["abc"] * 2048, max_tokens=8):
        refused = post(server, prompt=["a", "b"])  # beside 2,048 that wait there is one with a row
        assert (refused.status_code, refused.headers["retry-after"]) == (429, "1")
        assert "2048 of 2049 sequences are running or waiting" in refused.json()["error"]["message"]
        assert httpx2.get(f"{server.url}/healthz").status_code == 200


def test_an_answer_that_takes_too_long_times_out() -> None:
    with scripted("--rows", 1, "--seconds_per_token", 0.02, "--answer_seconds", 0.8) as server:
        response = post(server, max_tokens=120)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "late")
        assert "retry-after" in response.headers
        with streaming(server, max_tokens=120) as lines:
            *_, last, _ = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "late"
        with pytest.raises(openai.APIError, match="took more than 0.8 seconds"):
            list(server.client().completions.create(model="scripted", prompt="abc", max_tokens=120, stream=True))
        until(lambda: number(server, "neomesh_num_requests_running") == 0, 1.0)


@pytest.mark.parametrize("stream", [True, False])
def test_a_request_is_cancelled_when_its_client_disconnects(stream: bool) -> None:
    with scripted(*SLOW) as server:
        with pytest.raises(httpx2.ReadTimeout):
            body = {"model": "scripted", "prompt": "a", "max_tokens": 120, "n": 3, "stream": stream}
            with httpx2.stream("POST", f"{server.url}/v1/completions", json=body, timeout=0.3) as response:
                for _ in response.iter_lines():
                    raise httpx2.ReadTimeout("enough")
        until(
            lambda: (
                number(server, "neomesh_num_requests_running") == 0 == number(server, "neomesh_num_requests_waiting")
            ),
            2.0,
        )
        assert number(server, 'neomesh_answers_total{end="cancelled"}') == 3
        assert post(server, max_tokens=1).status_code == 200


def test_scoring_is_cancelled_when_its_client_disconnects() -> None:
    with scripted("--seconds_per_token", 0.2) as server:
        with pytest.raises(httpx2.ReadTimeout):
            body = {"model": "scripted", "prompt": ["ab"] * 100, "max_tokens": 0, "echo": True, "logprobs": 1}
            httpx2.post(f"{server.url}/v1/completions", json=body, timeout=0.5)
        until(lambda: number(server, "neomesh_num_requests_waiting") == 0, 3.0)


def test_a_long_list_to_score_does_not_hold_up_other_requests() -> None:
    with scripted("--seconds_per_token", 0.01) as server, concurrent.futures.ThreadPoolExecutor() as threads:
        listed = threads.submit(post, server, prompt=["ab"] * 150, max_tokens=0, echo=True, logprobs=1)
        until(lambda: number(server, "neomesh_num_requests_waiting") > 100)
        assert post(server, max_tokens=16).status_code == 200 and not listed.done()
        assert len(listed.result().json()["choices"]) == 150


@pytest.mark.parametrize("signal_number", SIGNALS)
def test_running_answers_finish_when_the_server_is_stopped(signal_number: int) -> None:
    with scripted(*SLOW) as server:
        with httpx2.Client(base_url=server.url) as other:
            assert other.get("/healthz").status_code == 200
            with streaming(server, max_tokens=30) as lines:
                server.signal(signal_number)
                until(lambda: other.get("/healthz").status_code == 503)
                response = post(server)
                assert (response.status_code, response.json()["error"]["code"]) == (503, "stopping")
                assert list(lines)[-2:] == ["data: [DONE]", ""]
        assert server.end() == 0
        assert server.lines[1:] == ["stopping; unfinished sequences: 1"]


def test_an_idle_server_stops_at_once() -> None:
    with scripted() as server, server.client() as client:
        client.models.list()
        began = time.monotonic()
        server.signal()
        assert server.end() == 0 and time.monotonic() - began < 5


@pytest.mark.parametrize("signal_number", [signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2])
def test_a_closed_terminal_and_schedulers_may_send_several_signals(signal_number: int) -> None:
    with scripted(*SLOW) as server, streaming(server, max_tokens=30) as lines:
        server.signal(signal_number)
        until(lambda: any("stopping" in line for line in server.lines))
        server.signal(signal_number)
        assert list(lines)[-2:] == ["data: [DONE]", ""] and server.end() == 0


@pytest.mark.parametrize("signal_number", SIGNALS)
def test_a_signal_that_is_ignored_at_the_start_stays_ignored(signal_number: int) -> None:
    with scripted("--ignored", signal_number) as server:
        server.signal(signal_number)
        assert post(server).status_code == 200
        server.signal(signal.SIGTERM if signal_number == signal.SIGINT else signal.SIGINT)
        assert server.end() == 0


@pytest.mark.parametrize("second", [True, False], ids=["two signals", "no grace"])
def test_answers_are_cut_off_after_the_grace_period_or_a_second_signal(second: bool) -> None:
    with (
        scripted(*SLOW, "--grace_seconds", 60 if second else 0.5) as server,
        streaming(server, max_tokens=120) as lines,
    ):
        server.signal(signal.SIGTERM)
        if second:
            until(lambda: any("stopping" in line for line in server.lines))
            server.signal(signal.SIGINT)
        *_, last, _ = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "stopping"
        assert server.end() == 128 + (signal.SIGINT if second else signal.SIGTERM)


def test_a_fault_of_the_engine_ends_all_answers_and_the_server() -> None:
    with scripted("--seconds_per_token", 0.05) as server:
        with streaming(server, max_tokens=120) as lines:
            response = post(server, prompt=BREAKS)
            *_, last, _ = lines
        assert json.loads(last.removeprefix("data: "))["error"]["code"] == "failed"
        assert (response.status_code, response.json()["error"]["code"]) == (500, "failed")
        assert server.end() == 1 and server.lines[-1] == "RuntimeError: the prompt breaks the engine"


def test_a_port_in_use_is_reported() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with pytest.raises(UserError, match=f"^--serve {port} --host 127.0.0.1: cannot listen there: .*in use.*; "):
            serve(MODEL, ServingSettings(port=port))


@pytest.mark.parametrize("host", ["no.such.host.invalid", "192.0.2.1", "", "a" * 70])
def test_a_host_of_another_machine_is_reported(host: str) -> None:
    with pytest.raises(UserError, match=f"--serve 0 --host {host}: cannot listen there: .*; give another port"):
        serve(MODEL, ServingSettings(port=0, host=host))


@pytest.mark.parametrize(
    "origin", ["", "localhost", "http://", "http://a/", "http://a/b", "http://a b", "null", "a.b:80"]
)
def test_what_is_not_an_origin_is_refused(origin: str) -> None:
    with pytest.raises(UserError, match=f"^--cors_origins {re.escape(origin)}: is not an origin; give it as a browser"):
        ServingSettings(port=0, cors_origins=("http://good:3000", "*", "tauri://localhost", origin))


@pytest.mark.parametrize("port", [-1, 65536])
def test_an_invalid_port_is_refused(port: int) -> None:
    with pytest.raises(UserError, match=f"^--serve {port}: is not a port; give one from 1 to 65535"):
        ServingSettings(port=port)


def test_a_package_that_is_missing_is_told_of(monkeypatch: pytest.MonkeyPatch) -> None:
    check_packages()
    monkeypatch.setattr(settings, "PACKAGES", ("starlette", "no_such_package"))
    with pytest.raises(UserError, match=r"\(no_such_package\); pip install -r requirements-serve.txt"):
        check_packages()


@pytest.mark.parametrize(
    ("field", "n_tokens"), [({}, 14), ({"special_tokens": None}, 14), ({"special_tokens": True}, 2)]
)
def test_special_tokens_that_a_prompt_spells_count_when_asked(field, n_tokens):
    request = CompletionRequest(model="scripted", prompt="a<|endoftext|>", max_tokens=1, **field)
    (prompt,) = parse_completion(request, MODEL).prompts
    assert (len(prompt.tokens), EOS_ID in prompt.tokens) == (n_tokens, n_tokens == 2)


def test_the_log_counts_special_tokens_that_prompts_spell_and_that_do_not_count() -> None:
    """In a line at the first, tenth, hundredth ... request; not for prompts that are refused, or are ids."""
    with scripted() as server:
        for fields in ({"special_tokens": True}, {"prompt": [EOS_ID]}, {"n": 0}, {"max_tokens": 128}):
            post(server, **{"prompt": "a<|endoftext|>", **fields})
        assert server.lines[1:] == []
        for _ in range(12):
            assert post(server, prompt=["<|endoftext|>a<|endoftext|>", "<|end|>", "<|endoftext|>"]).status_code == 200
        (first, tenth) = server.lines[1:]
        assert first == (
            "warning: prompts spell the special token <|endoftext|>, read as plain characters; times: 3, requests: 1; "
            'a request with "special_tokens": true makes it count'
        )
        assert "times: 30, requests: 10;" in tenth


def test_the_log_has_lines_of_its_own_for_each_special_token(capsys: pytest.CaptureFixture[str]) -> None:
    backend = tokenizers.Tokenizer(models.WordLevel({"a": 0}))
    backend.add_special_tokens(["<|user|>", "<|bot|>"])
    spelled, tokenizer = SpelledTokens(), Tokenizer(backend)
    for _ in range(1234):
        spelled.add(["<|user|> hi"], tokenizer)
    spelled.add(["hi <|bot|>", "<|bot|>"], tokenizer)
    spelled.add(["<|user|><|bot|>"], tokenizer.reading_special_tokens)
    found = re.findall(r"token (\S+),.* times: ([0-9,]+), requests: ([0-9,]+);", capsys.readouterr().err)
    of_users = [("<|user|>", number, number) for number in ("1", "10", "100", "1,000")]
    assert found == [*of_users, ("<|bot|>", "2", "1")]
