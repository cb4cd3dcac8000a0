"""Errors of requests, sent as OpenAI's error objects."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse, Response

from serving.protocol import NEUTRAL_VALUES, Error, ErrorResponse

CLIENT_CLOSED_REQUEST = 499  # nginx's code; seen in the metrics only
RETRY = {"Retry-After": "1"}  # seconds
SHOWN_CHARACTERS = 60
_UNIONS = {"prompt", "stop"}  # each member of the union has an error of its own, which says little
_WHOLE_FIELDS = {*_UNIONS, "logit_bias"}  # named without the place in them


class ApiError(Exception):
    """An error that ends a request, with its HTTP response.

    Attributes:
        status: the HTTP status.
        error: the error object that the client gets.
        headers: of the response.
    """

    def __init__(self, status: int, error: Error, headers: Mapping[str, str] | None = None) -> None:
        """Takes the parts of the response."""
        super().__init__(error.message)
        self.status = status
        self.error = error
        self.headers = dict(headers or {})

    def body(self) -> ErrorResponse:
        """Returns the body of the response."""
        return ErrorResponse(error=self.error)

    def response(self) -> JSONResponse:
        """Returns the whole response."""
        return JSONResponse(self.body().model_dump(), self.status, self.headers)


def bad_request(message: str, param: str | None = None, code: str = "invalid_value") -> ApiError:
    """400: an invalid request."""
    return _client_error(400, message, code, param)


def _client_error(
    status: int, message: str, code: str, param: str | None = None, headers: Mapping[str, str] | None = None
) -> ApiError:
    return ApiError(status, Error(message=message, type="invalid_request_error", param=param, code=code), headers)


def _server_error(status: int, message: str, code: str, headers: Mapping[str, str] | None = None) -> ApiError:
    return ApiError(status, Error(message=message, type="server_error", param=None, code=code), headers)


def wrong_key() -> ApiError:
    """401: a missing or wrong key."""
    message = "Authorization: is not this server's key; send `Authorization: Bearer KEY`"
    return _client_error(401, message, "invalid_api_key", headers={"WWW-Authenticate": "Bearer"})


def unknown_model(name: str, known: str) -> ApiError:
    """404: a model that is not served."""
    return _client_error(404, f"model = {_shown(name)}: is not served here; use {known}", "model_not_found", "model")


def body_timed_out(seconds: float) -> ApiError:
    """408: the body takes too long to arrive."""
    message = f"the body: did not arrive within {seconds:g} seconds; send it again"
    return _client_error(408, message, "slow_body", headers={"Connection": "close"})


def body_too_large(limit_bytes: int) -> ApiError:
    """413: the body exceeds the limit."""
    message = f"the body: is larger than {limit_bytes} bytes; send a smaller request"
    return _client_error(413, message, "request_too_large", headers={"Connection": "close"})


def not_json(content_type: str) -> ApiError:
    """415: a body of another type, which a web page in a browser may send without a preflight request."""
    message = f"Content-Type = {_shown(content_type)}: is not application/json; send JSON with that type"
    return _client_error(415, message, "not_json")


def not_http() -> ApiError:
    """400: bytes that are no request."""
    message = "the request: is not HTTP, or its head is too large; send HTTP/1.1 with less than 64 KiB of headers"
    return _client_error(400, message, "not_http")


def head_timed_out(seconds: float) -> ApiError:
    """408: the head of a request takes too long to arrive."""
    return _client_error(408, f"the headers: did not arrive within {seconds:g} seconds; send them again", "slow_head")


def too_many_connections(limit: int) -> ApiError:
    """503: no connection is idle and could be closed for another one."""
    message = f"the server: has {limit} connections in use; try again later"
    return _server_error(503, message, "too_many_connections", RETRY)


def queue_full(n_open: int, max_open: int) -> ApiError:
    """429: too many sequences are running or waiting."""
    message = f"the queue: {n_open} of {max_open} sequences are running or waiting; try again later"
    error = Error(message=message, type="rate_limit_error", param=None, code="queue_full")
    return ApiError(429, error, RETRY)


def failed() -> ApiError:
    """500: a fault of the program, which the server's log shows."""
    return _server_error(500, "the server: has failed; its log says why", "failed")


def stopping() -> ApiError:
    """503: the server finishes running requests and takes no new ones."""
    message = "the server: is shutting down; try again later"
    return _server_error(503, message, "stopping", {**RETRY, "Connection": "close"})


def timed_out(seconds: float) -> ApiError:
    """503: the answer was not finished in time."""
    message = f"the answer: took more than {seconds:g} seconds; try again later, or ask for fewer tokens"
    return _server_error(503, message, "late", RETRY)


def _shown(value: object) -> str:
    """Returns a value as messages show it: short and printable."""
    if isinstance(value, (list, dict)):
        return "[...]" if isinstance(value, list) else "{...}"
    text = ascii(value[: SHOWN_CHARACTERS + 1]) if isinstance(value, str) else str(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}..."


def not_an_object(reason: str) -> ApiError:
    """400: a body that is no JSON object."""
    return bad_request(f"the body: {reason}; send an object as JSON", code="invalid_body")


def too_many_parts(limit: int) -> ApiError:
    """400: a body that would take long to read."""
    message = f"the body: holds more than {limit} lists, objects and names; send several smaller requests"
    return bad_request(message, code="invalid_body")


def unknown_field(name: str, value: object) -> ApiError:
    """400: a field that is not a field of a request, or one that other servers have and this one does not support."""
    param = name[:SHOWN_CHARACTERS]
    if name.rpartition(".")[2] in NEUTRAL_VALUES:
        return bad_request(f"{param} = {_shown(value)}: is not supported; leave it out", param, "unsupported_field")
    return bad_request(f"{_shown(param)}: is not a field of a request; leave it out", param, "unknown_field")


def unknown_query(name: str) -> ApiError:
    """400: a parameter in the address."""
    param = name[:SHOWN_CHARACTERS]
    return bad_request(f"?{_shown(param)}: is not a parameter of this path; leave it out", param, "unknown_query")


def invalid(error: ValidationError, kind: type[BaseModel]) -> ApiError:
    """400: the first invalid field of a request of a kind, and what is allowed there."""
    first = error.errors(include_url=False, include_context=False)[0]
    loc = first["loc"][:1] if first["loc"][0] in _WHOLE_FIELDS else first["loc"]
    param = ".".join(map(str, loc))[:SHOWN_CHARACTERS]
    problem = "has the wrong type or value" if param in _UNIONS else first["msg"]
    if first["type"] == "missing":
        return bad_request(f"{param}: is missing; give {_allowed(first['loc'], kind)}", param)
    return bad_request(f"{param} = {_shown(first['input'])}: {problem}; give {_allowed(first['loc'], kind)}", param)


def _allowed(loc: tuple[int | str, ...], kind: type[BaseModel]) -> str:
    """Returns what the schema allows for the field at a location."""
    described = kind.model_fields[str(loc[0])].description
    assert described is not None, "every field of a request has a description"
    return described


async def handle_http_exception(request: Request, error: Exception) -> JSONResponse:
    """Responds to an unknown path or method with those that there are."""
    assert isinstance(error, HTTPException)
    known = [f"{'POST' if 'POST' in route.methods else 'GET'} {route.path_format}" for route in request.app.routes]
    offered = f"use {', '.join(known[:-1])} or {known[-1]}"
    message = f"{request.method} {_shown(request.url.path)}: {error.detail.lower()}; {offered}"
    return _client_error(error.status_code, message, "unknown_path", headers=error.headers).response()


async def handle_api_error(request: Request, error: Exception) -> JSONResponse:
    """Responds with an error."""
    assert isinstance(error, ApiError)
    return error.response()


async def handle_disconnect(request: Request, error: Exception) -> Response:
    """Responds to a client that disconnected before its body was complete; only the metrics see it."""
    return Response(status_code=CLIENT_CLOSED_REQUEST)


async def handle_fault(request: Request, error: Exception) -> JSONResponse:
    """Responds to a fault of the program, which goes to the log."""
    return failed().response()


EXCEPTION_HANDLERS = {
    HTTPException: handle_http_exception,
    ApiError: handle_api_error,
    ClientDisconnect: handle_disconnect,
    Exception: handle_fault,
}
