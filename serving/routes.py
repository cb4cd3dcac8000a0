"""The endpoints of the server."""

from __future__ import annotations

import asyncio

from prometheus_client import CONTENT_TYPE_LATEST
from pydantic import ValidationError
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from serving.completions import CompletionTask, EventsResponse, Service, whole_response
from serving.errors import invalid, not_json, unknown_model
from serving.openapi import openapi_document
from serving.protocol import CompletionRequest, Health, Model, ModelList
from serving.request import parse_request

JSON_TYPE = "application/json"


def _service(request: Request) -> Service:
    return request.app.state.service


def _check_model(name: str, service: Service) -> None:
    if name != service.model.name:
        raise unknown_model(name, service.model.name)


async def create_completion(request: Request) -> Response:
    """POST /v1/completions."""
    service = _service(request)
    service.queue.check_open()
    fields = _parse(request.headers.get("content-type", ""), await request.body())
    _check_model(fields.model, service)
    # In a thread, as a long prompt takes a while to encode.
    sampling_request = await asyncio.to_thread(parse_request, fields, service.model)
    task = CompletionTask(service, sampling_request)
    if fields.stream:
        return EventsResponse(task, bool(fields.stream_options and fields.stream_options.include_usage))
    return await whole_response(task, request)


def _parse(content_type: str, body: bytes) -> CompletionRequest:
    if content_type.partition(";")[0].strip().lower() != JSON_TYPE:
        raise not_json(content_type)
    try:
        return CompletionRequest.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from error


def _model(service: Service) -> Model:
    return Model(id=service.model.name, created=service.started)


async def list_models(request: Request) -> Response:
    """GET /v1/models."""
    return JSONResponse(ModelList(data=[_model(_service(request))]).model_dump())


async def get_model(request: Request) -> Response:
    """GET /v1/models/{model}."""
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
    Route("/v1/models", list_models, methods=["GET"]),
    Route("/v1/models/{model:path}", get_model, methods=["GET"]),
    Route("/healthz", get_health, methods=["GET"]),
    Route("/metrics", get_metrics, methods=["GET"]),
    Route("/openapi.json", get_openapi, methods=["GET"]),
]
