"""A file server of this machine, with ranges, broken connections and wrong answers."""

from __future__ import annotations

import contextlib
import dataclasses
import re
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


@dataclasses.dataclass
class FileServer:
    """A running server.

    Attributes:
        url: its address.
        files: contents by path.
        has_ranges: whether it answers a request for a range with that range.
        bytes_per_answer: after which each connection breaks; None: never.
        says_length: whether answers tell their length.
        headers: are sent in place of those of the same name.
        status: is answered in place of 200 and 206.
        stall_seconds: how long an answer waits at its end.
        ranges: the range that each request asked for; empty: the whole file.
    """

    url: str = ""
    files: dict[str, bytes] = dataclasses.field(default_factory=dict)
    has_ranges: bool = True
    bytes_per_answer: int | None = None
    says_length: bool = True
    headers: dict[str, str] = dataclasses.field(default_factory=dict)
    status: int | None = None
    stall_seconds: float = 0.0
    ranges: list[str] = dataclasses.field(default_factory=list)

    def answer(self, request: BaseHTTPRequestHandler) -> None:
        """Answers a request."""
        content = self.files.get(request.path)
        asked = request.headers.get("Range", "")
        self.ranges.append(asked)
        if content is None:
            request.send_error(404)
            return
        begin = int(re.fullmatch(r"bytes=(\d+)-", asked)[1]) if asked and self.has_ranges else 0
        if begin >= len(content) > 0:
            request.send_error(416)
            return
        request.send_response(self.status or (206 if begin else 200))
        own = {"Content-Range": f"bytes {begin}-{len(content) - 1}/{len(content)}"} if begin else {}
        own |= {"Content-Length": str(len(content) - begin)} if self.says_length else {}
        for name, value in (own | self.headers).items():
            request.send_header(name, value)
        request.end_headers()
        request.wfile.write(content[begin:][: self.bytes_per_answer])
        request.wfile.flush()
        time.sleep(self.stall_seconds)


@contextlib.contextmanager
def serving_files() -> Iterator[FileServer]:
    """Starts a server on a free port; it ends with the context."""
    state = FileServer()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            state.answer(self)

        def log_message(self, *words: object) -> None:
            """Prints nothing."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        state.url = f"http://127.0.0.1:{server.server_port}"
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield state
        finally:
            server.shutdown()
            thread.join()
