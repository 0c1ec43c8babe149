"""`/openapi.json`: what the gateway answers to, for people, code generators and fuzzers. Pure.

Bodies of models are described as far as our own rules go: what they check is exact here, and what passes through to the endpoint
is named with its type and left open. The models that a key may ask for are in its page.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from actors.settings import QUALITIES
from runtime.gateway.asks import OPERATORS_OWN, Extras
from runtime.gateway.batch_rules import LEAST_KEEP_S, MOST_KEEP_S, BatchAsk

__all__ = ["openapi_page"]

Schema = dict[str, Any]
STRING: Schema = {"type": "string"}
NO_KEY: Schema = {"security": []}
COUNT: Schema = {"type": ["integer", "null"], "minimum": 1, "maximum": 1_000_000}
SECONDS: Schema = {"type": ["integer", "null"]}
OPEN: Schema = {"type": "object"}
ID: Schema = {
    "name": "id",
    "in": "path",
    "required": True,
    "schema": {"type": "string", "pattern": "^[A-Za-z0-9_-]{1,64}$"},
}
ERRORS = {
    400: "The request is wrong; `param` names the field",
    401: "No key, or one that is not known",
    403: "The key may not do this",
    404: "There is no such thing for this key",
    405: "Another method is expected",
    408: "The body did not arrive in time",
    409: "Too late for that",
    413: "Too large",
    415: "The body is encoded",
    422: "The endpoint refuses the request",
    429: "A budget, a rate limit, or too much at once; see Retry-After",
    500: "Something went wrong inside the gateway",
    502: "An endpoint refuses the gateway, or answers what cannot be used",
    503: "No tier can answer now; see Retry-After",
    504: "No tier answered in time",
}


MADE = "$response.body#/id"
LINKS: dict[str, Schema] = {
    "createFile": {
        "retrieve": {"operationId": "retrieveFile", "parameters": {"id": MADE}},
        "download": {"operationId": "downloadFile", "parameters": {"id": MADE}},
        "delete": {"operationId": "deleteFile", "parameters": {"id": MADE}},
        "carryOut": {
            "operationId": "createBatch",
            "requestBody": {"input_file_id": MADE, "endpoint": "/v1/chat/completions", "completion_window": "24h"},
        },
    },
    "createBatch": {
        "retrieve": {"operationId": "retrieveBatch", "parameters": {"id": MADE}},
        "cancel": {"operationId": "cancelBatch", "parameters": {"id": MADE}},
    },
}
"""What can be done with an answer: for generators and fuzzers."""


def openapi_page(version: str, models: Sequence[str], *, metrics: bool = False) -> dict[str, Any]:
    """The page for a caller who may use `models`."""
    asked = {"schema": {"type": "string"}, "in": "header", "required": False}
    headers = [
        {**asked, "name": "x-raycade-min-quality", "schema": {"enum": list(QUALITIES)}},
        {
            **asked,
            "name": "x-raycade-deadline",
            "description": "Seconds",
            "schema": {"type": "number", "exclusiveMinimum": 0},
        },
    ]

    def asks(id: str, summary: str, body: Schema, answer: Schema, streamed: bool) -> Schema:
        content: Schema = {"application/json": {"schema": answer}}
        if streamed:
            content["text/event-stream"] = {}
        operation = _operation(id, summary, answer, (400, 404, 408, 413, 415, 422, 429, 500, 502, 503, 504))
        operation["responses"]["200"]["content"] = content
        return operation | {
            "parameters": headers,
            "requestBody": {"required": True, "content": {"application/json": {"schema": body}}},
        }

    files, batches = (404, 429, 503), (404, 429, 503)
    paths: dict[str, dict[str, Any]] = {
        "/v1/chat/completions": {
            "post": asks("createChatCompletion", "A chat, plain or streamed", _chat(models), _answer("choices"), True)
        },
        "/v1/completions": {
            "post": asks("createCompletion", "A completion of a text", _completion(models), _answer("choices"), True)
        },
        "/v1/embeddings": {
            "post": asks("createEmbedding", "Embeddings of texts", _embedding(models), _answer("data"), False)
        },
        "/v1/responses": {"post": asks("createResponse", "A response", _response(models), _answer("output"), True)},
        "/v1/models": {"get": _operation("listModels", "What `model` may be", _list(MODEL), ())},
        "/v1/models/{model}": {
            "get": _operation("retrieveModel", "One of them", MODEL, (404,))
            | {"parameters": [{"name": "model", "in": "path", "required": True, "schema": _of(models)}]}
        },
        "/v1/files": {
            "post": _operation("createFile", "Upload a file for a batch", FILE, (400, 408, 413, 415, 429, 503))
            | {"requestBody": {"required": True, "content": {"multipart/form-data": {"schema": UPLOAD}}}},
            "get": _operation("listFiles", "Files of this key, the newest first", _list(FILE), (400, *files))
            | {"parameters": [*_paged(10_000), _query("order", {"enum": ["asc", "desc"]}), _query("purpose", STRING)]},
        },
        "/v1/files/{id}": {
            "get": _operation("retrieveFile", "A file", FILE, files) | {"parameters": [ID]},
            "delete": _operation("deleteFile", "Delete a file", DELETED, files) | {"parameters": [ID]},
        },
        "/v1/files/{id}/content": {
            "get": _operation("downloadFile", "Download a file", {}, files, "application/octet-stream")
            | {"parameters": [ID]}
        },
        "/v1/batches": {
            "post": _operation(
                "createBatch", "Have a file of requests carried out", BATCH, (400, 408, 413, 415, *batches)
            )
            | {"requestBody": {"required": True, "content": {"application/json": {"schema": _schema_of(BatchAsk)}}}},
            "get": _operation("listBatches", "Batches of this key, the newest first", _list(BATCH), (400, *batches))
            | {"parameters": _paged(100)},
        },
        "/v1/batches/{id}": {"get": _operation("retrieveBatch", "A batch", BATCH, batches) | {"parameters": [ID]}},
        "/v1/batches/{id}/cancel": {
            "post": _operation("cancelBatch", "Cancel a batch; what was finished stays", BATCH, (409, *batches))
            | {"parameters": [ID]}
        },
        "/openapi.json": {"get": _operation("openapi", "This page", OPEN, (429,))},
        "/healthz": {"get": _operation("health", "The process answers", OPEN, ()) | NO_KEY},
        "/readyz": {"get": _operation("ready", "It takes requests", OPEN, (503,)) | NO_KEY},
    }
    if metrics:
        paths["/metrics"] = {"get": _operation("metrics", "Metrics for Prometheus", {}, (403, 503), "text/plain")}
        paths["/ui"] = {"get": _operation("ui", "A page that shows what is going on", {}, (), "text/html") | NO_KEY}
        paths["/ui/live"] = {"get": _operation("live", "What that page shows", {}, (403, 503))}
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Raycade",
            "version": version,
            "description": "An OpenAI-compatible gateway. Answers carry x-request-id, x-raycade-tier, x-raycade-attempts and "
            "x-raycade-cost-usd.",
        },
        "security": [{"key": []}],
        "paths": paths,
        "components": {"securitySchemes": {"key": {"type": "http", "scheme": "bearer"}}, "schemas": {"Error": ERROR}},
    }


def _operation(id: str, summary: str, answer: Schema, errors: Sequence[int], kind: str = "application/json") -> Schema:
    failed = {"application/json": {"schema": {"$ref": "#/components/schemas/Error"}}}
    # Whatever is asked for, a key can be wrong and the gateway full.
    known = sorted({401, 405, 429, *errors})
    done: Schema = {"description": "Done", "content": {kind: {"schema": answer}}}
    if id in LINKS:
        done["links"] = LINKS[id]
    return {
        "operationId": id,
        "summary": summary,
        "responses": {"200": done}
        | {str(status): {"description": ERRORS[status], "content": failed} for status in known},
    }


# -- requests ------------------------------------------------------------------------------------------------------


def _of(names: Sequence[str]) -> Schema:
    return {"type": "string", "enum": list(names)}


def _body(models: Sequence[str], required: Sequence[str], properties: Mapping[str, Schema]) -> Schema:
    model = {"anyOf": [_of(models), {"type": "null"}]}
    return {
        "type": "object",
        "required": list(required),
        "properties": {"model": model, "user": STRING, **properties, "raycade": _schema_of(Extras)},
        "propertyNames": {"not": {"enum": sorted(OPERATORS_OWN)}},
    }


SAMPLING: dict[str, Schema] = {
    "temperature": {"type": ["number", "null"], "minimum": 0, "maximum": 2},
    "top_p": {"type": ["number", "null"], "minimum": 0, "maximum": 1},
    "seed": {"type": ["integer", "null"], "minimum": -(2**63), "maximum": 2**63 - 1},
    "stream": {"type": ["boolean", "null"]},
}
STOPS: dict[str, Schema] = {
    **SAMPLING,
    "n": {"type": ["integer", "null"], "minimum": 1, "maximum": 16},
    "max_tokens": COUNT,
    "stop": {"anyOf": [STRING, {"type": "array", "items": STRING, "maxItems": 4}, {"type": "null"}]},
    "stream_options": {
        "anyOf": [{"type": "object", "properties": {"include_usage": {"type": "boolean"}}}, {"type": "null"}]
    },
}
PART: Schema = {"type": "object", "required": ["type"], "properties": {"type": STRING, "text": STRING}}
MESSAGE: Schema = {
    "type": "object",
    "required": ["role", "content"],
    "properties": {
        "role": {"enum": ["developer", "system", "user", "assistant", "tool", "function"]},
        "content": {"anyOf": [STRING, {"type": "array", "items": PART, "maxItems": 64}, {"type": "null"}]},
        "name": STRING,
        "tool_call_id": STRING,
        "tool_calls": {"type": "array", "items": OPEN},
    },
}
TEXTS: Schema = {
    "anyOf": [
        {"type": "string", "minLength": 1},
        {"type": "array", "items": {"type": "string", "minLength": 1}, "minItems": 1, "maxItems": 2048},
    ]
}


def _chat(models: Sequence[str]) -> Schema:
    return _body(
        models,
        ["messages"],
        {
            "messages": {"type": "array", "items": MESSAGE, "minItems": 1},
            **STOPS,
            "max_completion_tokens": COUNT,
            "tools": {"type": "array", "items": OPEN},
            "response_format": {"anyOf": [{"type": "object", "required": ["type"]}, {"type": "null"}]},
            "logprobs": {"type": ["boolean", "null"]},
            "metadata": {"type": ["object", "null"]},
        },
    )


def _completion(models: Sequence[str]) -> Schema:
    return _body(models, ["prompt"], {"prompt": TEXTS, **STOPS})


def _embedding(models: Sequence[str]) -> Schema:
    form: Schema = {"enum": ["float", "base64"]}
    return _body(models, ["input"], {"input": TEXTS, "dimensions": COUNT, "encoding_format": form})


def _response(models: Sequence[str]) -> Schema:
    said: Schema = {"anyOf": [{"type": "string", "minLength": 1}, {"type": "array", "items": MESSAGE, "minItems": 1}]}
    return _body(models, ["input"], {"input": said, "instructions": STRING, "max_output_tokens": COUNT, **SAMPLING})


UPLOAD: Schema = {
    "type": "object",
    "required": ["purpose", "file"],
    "properties": {
        "purpose": {"type": "string", "enum": ["batch"]},
        "file": {"type": "string", "format": "binary"},
        "expires_after[anchor]": {"type": "string", "enum": ["created_at"]},
        "expires_after[seconds]": {"type": "integer", "minimum": LEAST_KEEP_S, "maximum": MOST_KEEP_S},
    },
    "dependentRequired": {
        "expires_after[anchor]": ["expires_after[seconds]"],
        "expires_after[seconds]": ["expires_after[anchor]"],
    },
    "additionalProperties": False,
}


def _query(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "query", "required": False, "schema": schema}


def _paged(most: int) -> list[Schema]:
    return [_query("after", STRING), _query("limit", {"type": "integer", "minimum": 1, "maximum": most})]


def _schema_of(model: Any) -> Schema:
    """A pydantic model's schema without references, which would point elsewhere here."""
    schema: Schema = model.model_json_schema()
    definitions = schema.pop("$defs", {})

    def resolved(value: Any) -> Any:
        if isinstance(value, dict):
            if "$ref" in value:
                return resolved(definitions[value["$ref"].rpartition("/")[2]])
            return {name: resolved(part) for name, part in value.items()}
        return [resolved(part) for part in value] if isinstance(value, list) else value

    plain: Schema = resolved(schema)
    return plain


# -- answers -------------------------------------------------------------------------------------------------------


def _answer(field: str) -> Schema:
    return {"type": "object", "required": [field], "properties": {"object": STRING, field: {"type": "array"}}}


def _list(item: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["object", "data"],
        "properties": {
            "object": {"const": "list"},
            "data": {"type": "array", "items": item},
            "has_more": {"type": "boolean"},
        },
    }


ERROR: Schema = {
    "type": "object",
    "required": ["error"],
    "properties": {
        "error": {
            "type": "object",
            "required": ["message", "type"],
            "properties": {
                "message": STRING,
                "type": {"type": ["string", "null"]},
                "param": {"type": ["string", "null"]},
                "code": {"type": ["string", "integer", "null"]},
            },
        }
    },
}
MODEL: Schema = {
    "type": "object",
    "required": ["id", "object"],
    "properties": {"id": STRING, "object": {"const": "model"}, "created": {"type": "integer"}, "owned_by": STRING},
}
FILE: Schema = {
    "type": "object",
    "required": ["id", "object", "bytes", "created_at", "filename", "purpose"],
    "properties": {
        "id": STRING,
        "object": {"const": "file"},
        "bytes": {"type": "integer", "minimum": 0},
        "created_at": {"type": "integer"},
        "expires_at": SECONDS,
        "filename": STRING,
        "purpose": {"enum": ["batch", "batch_output"]},
        "status": STRING,
    },
}
DELETED: Schema = {
    "type": "object",
    "required": ["id", "deleted"],
    "properties": {"id": STRING, "object": {"const": "file"}, "deleted": {"const": True}},
}
BATCH: Schema = {
    "type": "object",
    "required": ["id", "object", "endpoint", "status", "input_file_id", "created_at", "request_counts"],
    "properties": {
        "id": STRING,
        "object": {"const": "batch"},
        "endpoint": STRING,
        "status": {
            "enum": [
                "validating",
                "failed",
                "in_progress",
                "finalizing",
                "completed",
                "expired",
                "cancelling",
                "cancelled",
            ]
        },
        "input_file_id": STRING,
        "output_file_id": {"type": ["string", "null"]},
        "error_file_id": {"type": ["string", "null"]},
        "created_at": {"type": "integer"},
        "expires_at": SECONDS,
        "request_counts": {
            "type": "object",
            "required": ["total", "completed", "failed"],
            "properties": {name: {"type": "integer", "minimum": 0} for name in ("total", "completed", "failed")},
        },
        "errors": {"type": ["object", "null"]},
        "metadata": {"type": ["object", "null"]},
    },
}
