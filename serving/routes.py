"""The endpoints of the server."""

from __future__ import annotations

import asyncio
from collections.abc import Callable

from prometheus_client import CONTENT_TYPE_LATEST
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.chat import parse_chat
from serving.chat_page import get_chat_page
from serving.completions import (
    CHAT,
    COMPLETION,
    CompletionTask,
    EventsResponse,
    ResponseForm,
    Service,
    whole_response,
)
from serving.errors import not_json, unknown_model, unknown_query
from serving.openapi import openapi_document
from serving.protocol import Chat, ChatRequest, CompletionRequest, Health, Model, ModelList, SamplingFields
from serving.request import SamplingRequest, parse_completion, read_request

JSON_TYPE = "application/json"


def _service(request: Request) -> Service:
    return request.app.state.service


def _check_model(name: str, service: Service) -> None:
    if name != service.model.name:
        raise unknown_model(name, service.model.name)


def _check_query(request: Request) -> None:
    for name in request.query_params:
        raise unknown_query(name)


async def create_completion(request: Request) -> Response:
    """POST /v1/completions."""
    return await _answer(request, _parse_completion, COMPLETION)


async def create_chat_completion(request: Request) -> Response:
    """POST /v1/chat/completions."""
    return await _answer(request, _parse_chat, CHAT)


async def _answer(
    request: Request, parse: Callable[[bytes, Service], tuple[SamplingFields, SamplingRequest]], form: ResponseForm
) -> Response:
    service = _service(request)
    service.queue.check_open()
    _check_query(request)
    body, content_type = await request.body(), request.headers.get("content-type", "")
    if content_type.partition(";")[0].strip().lower() != JSON_TYPE:
        raise not_json(content_type)
    # In a thread, as a long prompt takes a while to encode.
    fields, sampling_request = await asyncio.to_thread(parse, body, service)
    task = CompletionTask(service, sampling_request, form)
    if fields.stream:
        return EventsResponse(task, bool(fields.stream_options and fields.stream_options.include_usage))
    return await whole_response(task, request)


def _parse_completion(body: bytes, service: Service) -> tuple[CompletionRequest, SamplingRequest]:
    fields = read_request(body)
    _check_model(fields.model, service)
    request = parse_completion(fields, service.model)
    if not fields.special_tokens:
        prompts = fields.prompt if isinstance(fields.prompt, list) else [fields.prompt]
        service.spelled.add([text for text in prompts if isinstance(text, str)], service.model.tokenizer)
    return fields, request


def _parse_chat(body: bytes, service: Service) -> tuple[ChatRequest, SamplingRequest]:
    fields = read_request(body, ChatRequest)
    _check_model(fields.model, service)
    return fields, parse_chat(fields, service.model)


def _model(service: Service) -> Model:
    model = service.model
    chat = Chat(template=model.template.name, has_system=model.template.has_system, settings=model.chat_settings)
    return Model(id=model.name, created=service.started, n_ctx=model.engine.n_ctx, chat=chat)


async def list_models(request: Request) -> Response:
    """GET /v1/models."""
    _check_query(request)
    return JSONResponse(ModelList(data=[_model(_service(request))]).model_dump())


async def get_model(request: Request) -> Response:
    """GET /v1/models/{model}."""
    _check_query(request)
    service = _service(request)
    _check_model(request.path_params["model"], service)
    return JSONResponse(_model(service).model_dump())


async def get_health(request: Request) -> Response:
    """GET /healthz."""
    _service(request).queue.check_open()
    return JSONResponse(Health().model_dump())


async def get_metrics(request: Request) -> Response:
    """GET /metrics."""
    return Response(_service(request).metrics.text(), headers={"Content-Type": CONTENT_TYPE_LATEST})


async def get_openapi(request: Request) -> Response:
    """GET /openapi.json."""
    return JSONResponse(openapi_document(_service(request).model, request.app.state.has_key))


ROUTES = [
    Route("/v1/completions", create_completion, methods=["POST"]),
    Route("/v1/chat/completions", create_chat_completion, methods=["POST"]),
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
    Route("/healthz", get_health, methods=["GET"]),
    Route("/metrics", get_metrics, methods=["GET"]),
    Route("/openapi.json", get_openapi, methods=["GET"]),
    Route("/", get_chat_page, methods=["GET"]),
]
