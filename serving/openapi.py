"""The OpenAPI description of the server."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.model import ServedModel
from serving.protocol import (
    EMPTY_VALUES,
    NEUTRAL_VALUES,
    ChatCompletion,
    ChatCompletionChunk,
    ChatRequest,
    Completion,
    CompletionRequest,
    ErrorResponse,
    Health,
    Model,
    ModelList,
)

Schema = dict[str, Any]

REF_TEMPLATE = "#/components/schemas/{model}"
REQUEST_MODELS: tuple[type[BaseModel], ...] = (CompletionRequest, ChatRequest)
RESPONSE_MODELS: tuple[type[BaseModel], ...] = (
    Completion,
    ChatCompletion,
    ChatCompletionChunk,
    ErrorResponse,
    Health,
    Model,
    ModelList,
)
ERRORS = {
    400: "A field is invalid, or the body is not a JSON object.",
    401: "The key is missing or wrong.",
    404: "The model is not served.",
    408: "The headers or the body did not arrive in time.",
    413: "The body is too large.",
    415: "The content type is not application/json.",
    429: "Too many sequences are running or waiting; Retry-After says when to try again.",
    500: "The server has failed.",
    503: "The server is shutting down, or the answer took too long; Retry-After says when to try again.",
}
RETRYABLE = {429, 503}


def openapi_document(model: ServedModel, has_key: bool) -> Schema:
    """Returns the OpenAPI document for a server of this model."""
    components: Schema = {"schemas": _schemas(model)}
    described = {
        "openapi": "3.2.0",
        "info": {
            "title": "Neomesh",
            "version": "1",
            "description": "Completions of texts and chats in the format of OpenAI's API.",
        },
        "paths": _paths(has_key),
        "components": components,
    }
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def _schemas(model: ServedModel) -> Schema:
    """Returns the schemas of all objects, with the limits of this model."""
    requests = [(one, "validation") for one in REQUEST_MODELS]
    responses = [(one, "serialization") for one in RESPONSE_MODELS]
    _, schema = models_json_schema([*requests, *responses], ref_template=REF_TEMPLATE)
    schemas = schema["$defs"]
    neutral = {name: {"enum": [*EMPTY_VALUES, *values]} for name, values in NEUTRAL_VALUES.items()}
    for name in (kind.__name__ for kind in REQUEST_MODELS):
        fields = schemas[name]["properties"] = neutral | schemas[name]["properties"]
        fields["model"]["enum"] = [model.name]
        _bound_integers(fields["max_tokens"], model.engine.n_ctx)
    _bound_integers(schemas["CompletionRequest"]["properties"]["prompt"], model.tokenizer.n_vocab - 1)
    _bound_integers(schemas["ChatRequest"]["properties"]["max_completion_tokens"], model.engine.n_ctx)
    for name in ("CompletionRequest", "ChatRequest", "StreamOptions", "Message"):
        schemas[name]["additionalProperties"] = {"enum": [*EMPTY_VALUES]}
    return schemas


def _bound_integers(schema: Schema, maximum: int) -> None:
    if schema.get("type") == "integer":
        schema["maximum"] = maximum
    for inner in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]:
        _bound_integers(inner, maximum)


def _paths(has_key: bool) -> Schema:
    guarded = (401,) if has_key else ()
    errors = (400, *guarded, 404, 408, 413, 415, 429, 500, 503)
    completion = _operation("create_completion", "Create a completion", _answer(Completion, Completion), errors)
    completion["requestBody"] = {"required": True, "content": _json(CompletionRequest)}
    chat = _answer(ChatCompletion, ChatCompletionChunk)
    chat_completion = _operation("create_chat_completion", "Answer a conversation", chat, errors)
    chat_completion["requestBody"] = {"required": True, "content": _json(ChatRequest)}
    model = _operation("get_model", "Get the model", _json(Model), (400, *guarded, 404))
    model["parameters"] = [{"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}]
    health = _operation("get_health", "Check whether the server is ready", _json(Health), (500, 503))
    health["security"] = []
    metrics = {"text/plain": {"schema": {"type": "string"}}}
    this_document = {"application/json": {"schema": {"type": "object"}}}
    return {
        "/v1/completions": {"post": completion},
        "/v1/chat/completions": {"post": chat_completion},
        "/v1/models": {"get": _operation("list_models", "List the models", _json(ModelList), (400, *guarded))},
        "/v1/models/{model}": {"get": model},
        "/healthz": {"get": health},
        "/metrics": {"get": _operation("get_metrics", "Get the metrics for Prometheus", metrics, guarded)},
        "/openapi.json": {"get": _operation("get_openapi", "Get this document", this_document, guarded)},
    }


def _operation(name: str, summary: str, content: Schema, errors: tuple[int, ...]) -> Schema:
    responses = {
        "200": {"description": "Success.", "content": content},
        **{str(status): _error(status) for status in errors},
    }
    return {"operationId": name, "summary": summary, "responses": responses}


def _answer(whole: type[BaseModel], event: type[BaseModel]) -> Schema:
    """Returns the content of an answer, whole or as server-sent events."""
    return {**_json(whole), "text/event-stream": {"itemSchema": _event(event)}}


def _event(part: type[BaseModel]) -> Schema:
    """Returns the schema of a server-sent event: a part of the answer, an error, or the end."""
    payloads = [
        {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(model)}
        for model in (part, ErrorResponse)
    ]
    return {"type": "object", "properties": {"data": {"anyOf": [*payloads, {"const": "[DONE]"}]}}, "required": ["data"]}


def _error(status: int) -> Schema:
    response = {"description": ERRORS[status], "content": _json(ErrorResponse)}
    if status in RETRYABLE:
        response["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return response


def _json(model: type[BaseModel]) -> Schema:
    return {"application/json": {"schema": _reference(model)}}


def _reference(model: type[BaseModel]) -> Schema:
    return {"$ref": REF_TEMPLATE.format(model=model.__name__)}
