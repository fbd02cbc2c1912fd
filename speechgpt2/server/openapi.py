"""The description of the REST routes: `/openapi.json` for programs, and `/docs`, a page of it for people.

Requests are described by the models that validate them. The page is plain HTML without scripts: nothing is loaded from
elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from html import escape
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi
from pydantic.json_schema import models_json_schema

from speechgpt2.server.audio_files import FILE_FORMATS
from speechgpt2.server.chat_completions import ChatRequest
from speechgpt2.server.realtime_websocket import ClientSecretRequest
from speechgpt2.server.responses_api import ResponsesRequest
from speechgpt2.server.schema import NoEffect, WireModel
from speechgpt2.server.speech_api import SpeechRequest
from speechgpt2.server.transcription_api import TranscriptionRequest

Schema = dict[str, Any]
JSON, EVENTS, TEXT, SDP = "application/json", "text/event-stream", "text/plain", "application/sdp"
FORM = "multipart/form-data"
REFERENCE = "#/components/schemas/"

# The body of each POST request: its media types, and the model that validates it.
REQUESTS: dict[str, tuple[tuple[str, ...], type[WireModel] | None]] = {
    "/v1/chat/completions": ((JSON,), ChatRequest),
    "/v1/responses": ((JSON,), ResponsesRequest),
    "/v1/audio/speech": ((JSON,), SpeechRequest),
    "/v1/audio/transcriptions": ((FORM,), TranscriptionRequest),
    "/v1/realtime/client_secrets": ((JSON,), ClientSecretRequest),
    "/v1/realtime/calls": ((SDP, FORM), None),
    "/v1/realtime/calls/{id}/hangup": ((), None),
}
# What each route answers with: the status, and per media type the keys of the JSON object that are always there.
RESPONSES: dict[str, tuple[int, dict[str, str]]] = {
    "/v1/chat/completions": (200, {JSON: "id object created model choices usage", EVENTS: ""}),
    "/v1/responses": (200, {JSON: "id object created_at status model output usage", EVENTS: ""}),
    "/v1/audio/speech": (200, {**{kind: "" for kind, *_ in FILE_FORMATS.values()}, EVENTS: ""}),
    "/v1/audio/transcriptions": (200, {JSON: "text usage", TEXT: "", "text/vtt": "", EVENTS: ""}),
    "/v1/realtime/client_secrets": (200, {JSON: "value expires_at session"}),
    "/v1/realtime/calls": (201, {SDP: ""}),
    "/v1/realtime/calls/{id}/hangup": (200, {}),
    "/v1/models": (200, {JSON: "object data"}),
    "/v1/models/{name}": (200, {JSON: "id object created owned_by"}),
    "/v1/voices": (200, {JSON: "object data"}),
    "/v1/personas": (200, {JSON: "object data"}),
    "/v1/sessions": (200, {JSON: "object data"}),
    "/v1/sessions/{id}": (200, {JSON: "id object"}),
    "/health": (200, {JSON: "status"}),
    "/ready": (200, {JSON: "status free_slots"}),
    "/metrics": (200, {TEXT: ""}),
    "/page-config": (200, {JSON: "model needs_key voices personas styles examples defaults saves_sessions keep_days"}),
}
ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type", "param", "code"],
            "properties": {
                "message": {"type": "string"},
                "type": {"type": "string"},
                "param": {"type": ["string", "null"], "description": "The field that is wrong."},
                "code": {"type": "string"},
            },
        }
    },
}


def describe(app: FastAPI) -> Schema:
    """Return the OpenAPI description of an application's routes."""
    schema = get_openapi(title="speechgpt2", version=version("speechgpt2"), routes=app.routes)
    described = {
        path: methods for path, methods in schema["paths"].items() if path.startswith("/v1/") or path in RESPONSES
    }
    schema["paths"] = described
    schemas = {**_request_schemas(), "Error": ERROR}
    schema["components"] = {
        "schemas": schemas,
        "securitySchemes": {"key": {"type": "http", "scheme": "bearer", "description": "An API key of the server."}},
    }
    for path, methods in schema["paths"].items():
        for method, operation in methods.items():
            operation.update(_operation(path, method))
    return schema


def _operation(path: str, method: str) -> Schema:
    """Return what is known of a route besides its path and its docstring."""
    status, contents = RESPONSES.get(path, (200, {}))
    content = {kind: {"schema": _response_schema(keys)} for kind, keys in contents.items()}
    operation: Schema = {"responses": {str(status): {"description": "Success.", "content": content}}}
    if path.startswith("/v1/"):
        error = {"description": "Failure.", "content": {JSON: {"schema": {"$ref": REFERENCE + "Error"}}}}
        operation["responses"]["default"] = error
        operation["security"] = [{"key": []}, {}]
    kinds, model = REQUESTS.get(path, ((), None))
    if method == "post" and kinds:
        body = {"$ref": REFERENCE + model.__name__} if model else {"type": "string", "description": "An SDP offer."}
        operation["requestBody"] = {"required": True, "content": {kind: {"schema": body} for kind in kinds}}
    return operation


def _response_schema(keys: str) -> Schema:
    return {"type": "object", "required": keys.split()} if keys else {"type": "string"}


def _request_schemas() -> dict[str, Schema]:
    """Return the schemas of all requests, with what has no effect marked."""
    models = [model for _, model in REQUESTS.values() if model is not None]
    _, found = models_json_schema([(model, "validation") for model in models], ref_template=REFERENCE + "{model}")
    schemas: dict[str, Schema] = found["$defs"]
    for model in _models(WireModel):
        for name, reason in _without_effect(model):
            if model.__name__ in schemas:
                schemas[model.__name__]["properties"][name]["description"] = f"Has no effect: {reason}."
    upload = schemas[TranscriptionRequest.__name__]
    upload["properties"] = {"file": {"type": "string", "format": "binary"}, **upload["properties"]}
    upload["required"] = ["file", *upload["required"]]
    return schemas


def _models(parent: type[WireModel]) -> Iterator[type[WireModel]]:
    for model in parent.__subclasses__():
        yield model
        yield from _models(model)


def _without_effect(model: type[WireModel]) -> Iterator[tuple[str, str]]:
    for name, field in model.model_fields.items():
        yield from ((name, mark.reason) for mark in field.metadata if isinstance(mark, NoEffect))


# the page


HEAD = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>speechgpt2: the REST routes</title><link rel="stylesheet" href="docs.css"></head>
<body><h1>The REST routes</h1>
<p>In OpenAI's form. For programs: <a href="openapi.json">openapi.json</a>. Realtime sessions: WebSocket
<code>/v1/realtime</code>.</p>
"""


def to_html(schema: Schema) -> str:
    """Format a description as a page: the routes, then the objects that their fields name."""
    schemas = schema["components"]["schemas"]
    routes = (
        _route(f"{method.upper()} {path}", operation, schemas)
        for path, methods in schema["paths"].items()
        for method, operation in methods.items()
    )
    requests = {model.__name__ for _, model in REQUESTS.values() if model is not None}
    objects = (_object(name, found) for name, found in sorted(schemas.items()) if name not in requests)
    return f"{HEAD}{''.join(routes)}<h1>Objects</h1>{''.join(objects)}</body></html>"


def _route(name: str, operation: Schema, schemas: dict[str, Schema]) -> str:
    text = re.sub(r"^`[^`]*`[:.]?", "", operation.get("description", "")).strip()  # the route, which the heading has
    answers = [kind for answer in operation["responses"].values() for kind in answer.get("content", {})]
    bodies = operation.get("requestBody", {}).get("content", {})
    fields = "".join(
        f"<p>Takes {escape(kind)}.</p>{_fields(schemas.get(_name(body['schema']), {}))}"
        for kind, body in bodies.items()
    )
    answer = f"<p>Answers with {', '.join(dict.fromkeys(answers))}.</p>" if answers else ""
    paragraph = f"<p>{escape(text[:1].upper() + text[1:])}</p>" if text else ""
    return f"<section><h2><code>{escape(name)}</code></h2>{paragraph}{fields}{answer}</section>"


def _object(name: str, schema: Schema) -> str:
    text = escape(schema.get("description", "").split("\n\n")[0])
    return f'<section id="{escape(name)}"><h2>{escape(name)}</h2><p>{text}</p>{_fields(schema)}</section>'


def _name(schema: Schema) -> str:
    """Return the name of the schema that a reference leads to; "" if there is no reference."""
    return str(schema.get("$ref", "")).removeprefix(REFERENCE)


def _fields(schema: Schema) -> str:
    """Format the fields of an object as a table."""
    rows = "".join(
        f"<tr><td><code>{escape(name)}</code>{' *' if name in schema.get('required', []) else ''}</td>"
        f"<td>{_type(field)}</td><td>{escape(_remark(field))}</td></tr>"
        for name, field in schema.get("properties", {}).items()
    )
    return f"<table><tr><th>* required</th><th>type</th><th></th></tr>{rows}</table>" if rows else ""


def _type(field: Schema) -> str:
    """Describe the type of a field in a few words, as HTML."""
    if options := field.get("anyOf", field.get("oneOf")):
        return " or ".join(dict.fromkeys(_type(option) for option in options if option != {"type": "null"}))
    if "enum" in field or "const" in field:
        return escape(" | ".join(str(value) for value in field.get("enum", [field.get("const")])))
    if name := _name(field):
        return f'<a href="#{escape(name)}">{escape(name)}</a>'
    if field.get("type") == "array":
        return f"array of {_type(field.get('items', {}))}"
    return escape(str(field.get("type", "any")))


LIMITS = {"minimum": "at least {}", "maximum": "at most {}", "maxLength": "at most {} characters"}


def _remark(field: Schema) -> str:
    """Describe what a field means, its limits and its default."""
    parts = [field["description"]] if "description" in field else []
    parts += [words.format(field[key]) for key, words in LIMITS.items() if key in field]
    parts += [f"default {field['default']}"] if field.get("default") not in (None, "", [], {}) else []
    return "; ".join(parts)
