"""Requests that get no answer, and what is sent instead: OpenAI's error objects."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serving.protocol import CompletionRequest, Error, ErrorAnswer

CLIENT_GONE = 499  # nobody reads it; only the statistics show it
RETRY_SECONDS = 1
SHOWN_CHARACTERS = 60
_UNIONS = {"prompt", "stop"}  # where each member of the union has its own complaint, which says little


class Refusal(Exception):
    """A request that gets no answer, with what the client is told.

    Attributes:
        status: of HTTP.
        headers: of the answer.
    """

    def __init__(self, status: int, error: Error, headers: Mapping[str, str] | None = None) -> None:
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = dict(headers or {})

    def answer(self) -> ErrorAnswer:
        """What is told."""
        return ErrorAnswer(error=self.error)

    def response(self) -> JSONResponse:
        """What is sent."""
        return JSONResponse(self.answer().model_dump(), self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> Refusal:
    """400: what the client can mend."""
    return Refusal(400, Error(message=message, type="invalid_request_error", param=param, code=code))


def wrong_key() -> Refusal:
    """401, whether there is no key or another one."""
    message = "Authorization: is not this server's key; send `Authorization: Bearer KEY`"
    error = Error(message=message, type="invalid_request_error", param=None, code="invalid_api_key")
    return Refusal(401, error, {"WWW-Authenticate": "Bearer"})


def unknown_model(name: str, known: str) -> Refusal:
    """404: another model than the one that is served."""
    message = f"model = {_shown(name)}: is not served here; give {known}"
    return Refusal(404, Error(message=message, type="invalid_request_error", param="model", code="model_not_found"))


def slow_body(seconds: float) -> Refusal:
    """408: the body does not come."""
    message = f"the body: did not come within {seconds:g} seconds; send it again"
    error = Error(message=message, type="invalid_request_error", param=None, code="slow_body")
    return Refusal(408, error, {"Connection": "close"})


def large_body(limit_bytes: int) -> Refusal:
    """413: the body is larger than what is read."""
    message = f"the body: is larger than {limit_bytes} bytes; ask for less at a time"
    error = Error(message=message, type="invalid_request_error", param=None, code="request_too_large")
    return Refusal(413, error, {"Connection": "close"})


def not_json(content_type: str) -> Refusal:
    """415: a body of another type, as a page in a browser may send without asking."""
    message = f"Content-Type = {_shown(content_type)}: is not application/json; send JSON, and say so"
    return Refusal(415, Error(message=message, type="invalid_request_error", param=None, code="not_json"))


def full(n_open: int, n_most: int) -> Refusal:
    """429: too many sequences are being written or wait."""
    message = f"the queue: {n_open} of {n_most} sequences are being written or wait; ask again later"
    error = Error(message=message, type="rate_limit_error", param=None, code="queue_full")
    return Refusal(429, error, {"Retry-After": str(RETRY_SECONDS)})


def broken() -> Refusal:
    """500: a fault of the program; the server's log holds it."""
    message = "the server: has failed; its log says why"
    return Refusal(500, Error(message=message, type="server_error", param=None, code="failed"))


def stopping() -> Refusal:
    """503: the server finishes what runs, and takes no more."""
    message = "the server: is being stopped; ask again later"
    error = Error(message=message, type="server_error", param=None, code="stopping")
    return Refusal(503, error, {"Retry-After": str(RETRY_SECONDS), "Connection": "close"})


def late(seconds: float) -> Refusal:
    """503: so many others are served that the answer was not done in time."""
    message = f"the answer: took more than {seconds:g} seconds; ask again later, or for fewer tokens"
    error = Error(message=message, type="server_error", param=None, code="late")
    return Refusal(503, error, {"Retry-After": str(RETRY_SECONDS)})


def _shown(value: object) -> str:
    """A value as a message may hold it: short, and printable whatever the client has sent."""
    if isinstance(value, (list, dict)):
        return "[...]" if isinstance(value, list) else "{...}"
    text = ascii(value[: SHOWN_CHARACTERS + 1]) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def invalid(error: ValidationError) -> Refusal:
    """400: the first thing that is wrong with a request's fields, and what is allowed."""
    first = error.errors(include_url=False, include_context=False)[0]
    if not first["loc"]:
        return bad_request(f"the body: {first['msg']}; send an object as JSON", code="invalid_body")
    param = ".".join(map(str, first["loc"][:1] if first["loc"][0] in _UNIONS else first["loc"]))[:SHOWN_CHARACTERS]
    if first["type"] == "extra_forbidden":
        return bad_request(f"{_shown(param)}: is no field of a request; leave it out", param, "unknown_field")
    problem = "is none of what it can be" if param in _UNIONS else first["msg"]
    if first["type"] == "missing":
        return bad_request(f"{param}: is missing; give {_allowed(first['loc'])}", param)
    return bad_request(f"{param} = {_shown(first['input'])}: {problem}; give {_allowed(first['loc'])}", param)


def _allowed(place: tuple[int | str, ...]) -> str:
    """What the schema says of the field at a place."""
    fields: Mapping[str, object] = CompletionRequest.model_fields
    described = fields[str(place[0])].description
    assert described is not None, "every field of a request tells what it may hold"
    return described


async def of_http(request: Request, error: Exception) -> JSONResponse:
    """The answer to a path or a method that is not there."""
    assert isinstance(error, HTTPException)
    what = f"{request.method} {_shown(request.url.path)}"
    answer = Error(
        message=f"{what}: {error.detail}; see /openapi.json",
        type="invalid_request_error",
        param=None,
        code="unknown_path",
    )
    return Refusal(error.status_code, answer, error.headers).response()


async def of_refusal(request: Request, error: Exception) -> JSONResponse:
    """The answer to what is refused."""
    assert isinstance(error, Refusal)
    return error.response()


async def of_departure(request: Request, error: Exception) -> Response:
    """What stands for an answer to a client that has gone before all of its body was there."""
    return Response(status_code=CLIENT_GONE)


async def of_fault(request: Request, error: Exception) -> JSONResponse:
    """The answer where the program fails; the fault itself goes to the log."""
    return broken().response()


EXCEPTION_HANDLERS = {
    HTTPException: of_http,
    Refusal: of_refusal,
    ClientDisconnect: of_departure,
    Exception: of_fault,
}
