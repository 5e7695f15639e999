"""The server's OpenAPI document: its paths, and their requests and answers by the models of ``schema``."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from goemotions.serving import schema
from goemotions.serving.service import NAME

JSON = "application/json"
V1_PREDICT = f"/v1/models/{NAME}:predict"
FAILURES = {
    400: "The request is malformed; the error names the field",
    408: "The body came too slowly",
    413: "The body is too large, or holds too many texts",
    415: "The body has another content type, or is compressed",
    429: "Too much waits; Retry-After says how many seconds to wait",
    500: "The server failed; its log says why",
    503: "The server cannot answer now",
    504: "The answer took too long",
}


def _versioned(version: str, action: str = "") -> list[str]:
    return [f"/v2/models/{NAME}{action}", f"/v2/models/{NAME}/versions/{version}{action}"]


def metadata(version: str) -> list[str]:
    """The paths that describe the model."""
    return _versioned(version)


def ready(version: str) -> list[str]:
    """The paths that say whether the model is ready."""
    return [f"/v1/models/{NAME}", *_versioned(version, "/ready")]


def infer(version: str) -> list[str]:
    """The paths of V2 inference."""
    return _versioned(version, "/infer")


def document(version: str) -> dict[str, Any]:
    """OpenAPI 3.1."""
    paths = {
        "/v2/health/live": _get("Is the process alive?", schema.V2Live, may_be_unready=True),
        "/v2/health/ready": _get("Is the server ready?", schema.V2Ready, may_be_unready=True),
        **{path: _get("Is the model ready?", schema.V1Model, may_be_unready=True) for path in ready(version)},
        "/v1/models": _get("The models of this server", schema.Models),
        "/v2": _get("The server", schema.V2Server),
        "/v2/models": _get("The models of this server", schema.Models),
        **{path: _get("The model: its tensors", schema.V2Metadata) for path in metadata(version)},
        V1_PREDICT: _post("Label texts (V1)", schema.V1Request, schema.V1Answer),
        **{path: _post("Label texts (V2, Open Inference)", schema.V2Request, schema.V2Answer) for path in infer(version)},
        "/metrics": {
            "get": {"summary": "Prometheus metrics", "responses": {"200": _answer("Metrics", {"type": "string"}, "text/plain")}}
        },
    }
    asked = (schema.V1Request, schema.V2Request)
    told = (
        *(schema.V1Answer, schema.V1Model, schema.Models, schema.Failure),
        *(schema.V2Answer, schema.V2Live, schema.V2Ready, schema.V2Server, schema.V2Metadata),
    )
    modes: Any = [*((model, "validation") for model in asked), *((model, "serialization") for model in told)]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "GoEmotions predictor", "version": version},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _get(summary: str, model: type[BaseModel], *, may_be_unready: bool = False) -> dict[str, Any]:
    responses = {"200": _answer("As it is", _reference(model))}
    if may_be_unready:
        responses["503"] = _answer("No", _reference(model))
    return {"get": {"summary": summary, "responses": responses}}


def _post(summary: str, asked: type[BaseModel], told: type[BaseModel]) -> dict[str, Any]:
    responses = {"200": _answer("An answer for each text, in order", _reference(told))}
    responses |= {str(status): _answer(text, _reference(schema.Failure)) for status, text in FAILURES.items()}
    body = {"required": True, "content": {JSON: {"schema": _reference(asked)}}}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


def _answer(text: str, content: dict[str, Any], media_type: str = JSON) -> dict[str, Any]:
    return {"description": text, "content": {media_type: {"schema": content}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
