"""The page at the root of the server, to talk with the model in a browser."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from pathlib import Path

from starlette.requests import Request
from starlette.responses import HTMLResponse, Response

FILE = Path(__file__).with_name("chat_page.html")


def _hash_of(tag: str, page: str) -> str:
    """Returns the hash by which a browser knows the one element of a kind that the page holds.

    Source: W3C, Content Security Policy Level 3, section 2.3.1.
    """
    (content,) = re.findall(f"<{tag}>(.*?)</{tag}>", page, re.DOTALL)
    return f"'sha256-{base64.b64encode(hashlib.sha256(content.encode()).digest()).decode()}'"


@functools.cache
def _page() -> tuple[str, dict[str, str]]:
    """Returns the page and its headers, which let it ask this server and nobody else."""
    page = FILE.read_text(encoding="utf-8")
    policy = (
        f"default-src 'none'; script-src {_hash_of('script', page)}; style-src {_hash_of('style', page)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
    )
    headers = {"Content-Security-Policy": policy, "Referrer-Policy": "no-referrer", "Cache-Control": "no-cache"}
    return page, headers | {"X-Content-Type-Options": "nosniff"}


async def get_chat_page(request: Request) -> Response:
    """GET /."""
    page, headers = _page()
    return HTMLResponse(page, headers=headers)
