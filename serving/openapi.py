"""The document that tells other programs what the server can be asked and what it answers."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from serving.model import ServedModel
from serving.protocol import Completion, CompletionRequest, ErrorAnswer, Health, Model, ModelList

Schema = dict[str, Any]

PLACE = "#/components/schemas/{model}"
REQUESTS: tuple[type[BaseModel], ...] = (CompletionRequest,)
ANSWERS: tuple[type[BaseModel], ...] = (Completion, ErrorAnswer, Health, Model, ModelList)
PROBLEMS = {
    400: "A field holds what it may not, or the body is no JSON object.",
    401: "The key is missing or wrong.",
    404: "Another model is served.",
    408: "The body did not come in time.",
    413: "The body is too large.",
    415: "The body is not said to be application/json.",
    429: "Too many sequences are being written or wait; Retry-After says when to ask again.",
    500: "The server has failed.",
    503: "The server is being stopped, or the answer took too long; Retry-After says when to ask again.",
}
RETRIED = {429, 503}
TEXT = {"schema": {"type": "string"}}


def document(model: ServedModel, has_key: bool) -> Schema:
    """OpenAPI's description of a server of one model."""
    components: Schema = {"schemas": _schemas(model)}
    described = {
        "openapi": "3.2.0",
        "info": {"title": "Neomesh", "version": "1", "description": "Completions, as OpenAI's API gives them."},
        "paths": _paths(has_key),
        "components": components,
    }
    if has_key:
        components["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        described["security"] = [{"key": []}]
    return described


def _schemas(model: ServedModel) -> Schema:
    """The objects, with the limits that this model sets."""
    asked = [(one, "validation") for one in REQUESTS]
    answered = [(one, "serialization") for one in ANSWERS]
    _, schema = models_json_schema([*asked, *answered], ref_template=PLACE)
    fields = schema["$defs"]["CompletionRequest"]["properties"]
    fields["model"]["enum"] = [model.name]
    _bound_integers(fields["prompt"], model.tokenizer.n_vocab - 1)
    _bound_integers(fields["max_tokens"], model.engine.n_ctx)
    return schema["$defs"]


def _bound_integers(schema: Schema, most: int) -> None:
    if schema.get("type") == "integer":
        schema["maximum"] = most
    for inner in [*schema.get("anyOf", ()), *([schema["items"]] if "items" in schema else ())]:
        _bound_integers(inner, most)


def _paths(has_key: bool) -> Schema:
    guarded = (401,) if has_key else ()
    name = {"name": "model", "in": "path", "required": True, "schema": {"type": "string"}}
    completion = _answer("What was written.", {**_json(Completion), "text/event-stream": {"itemSchema": _event()}})
    problems = (400, *guarded, 404, 408, 413, 415, 429, 500, 503)
    return {
        "/v1/completions": {
            "post": {
                **_operation("complete", "Go on with a text", completion, problems),
                "requestBody": {"required": True, "content": _json(CompletionRequest)},
            }
        },
        "/v1/models": {"get": _operation("list_models", "List the models", _answer("One.", _json(ModelList)), guarded)},
        "/v1/models/{model}": {
            "get": {
                **_operation("show_model", "Show a model", _answer("It.", _json(Model)), (*guarded, 404)),
                "parameters": [name],
            }
        },
        "/healthz": {
            "get": {
                **_operation("tell_health", "Whether it serves", _answer("It does.", _json(Health)), (500, 503)),
                "security": [],
            }
        },
        "/metrics": {
            "get": _operation(
                "tell_metrics", "Numbers for Prometheus", _answer("Its text format.", {"text/plain": TEXT}), guarded
            )
        },
        "/openapi.json": {
            "get": _operation(
                "show_document", "This", _answer("JSON.", {"application/json": {"schema": {"type": "object"}}}), guarded
            )
        },
    }


def _operation(name: str, summary: str, answer: Schema, problems: tuple[int, ...]) -> Schema:
    answers = {"200": answer, **{str(status): _problem(status) for status in problems}}
    return {"operationId": name, "summary": summary, "responses": answers}


def _event() -> Schema:
    """One of the server-sent events of an answer: a piece of it, why there is no more, or its end."""
    pieces = [
        {"type": "string", "contentMediaType": "application/json", "contentSchema": _reference(model)}
        for model in (Completion, ErrorAnswer)
    ]
    return {
        "type": "object",
        "properties": {"data": {"anyOf": [*pieces, {"const": "[DONE]"}]}},
        "required": ["data"],
    }


def _answer(description: str, content: Mapping[str, Schema]) -> Schema:
    return {"description": description, "content": dict(content)}


def _problem(status: int) -> Schema:
    answer = _answer(PROBLEMS[status], _json(ErrorAnswer))
    if status in RETRIED:
        answer["headers"] = {"Retry-After": {"description": "seconds", "schema": {"type": "integer"}}}
    return answer


def _json(model: type[BaseModel]) -> Schema:
    return {"application/json": {"schema": _reference(model)}}


def _reference(model: type[BaseModel]) -> Schema:
    return {"$ref": PLACE.format(model=model.__name__)}
