"""The server's OpenAPI document: its paths, with the models of ``schema``, and KServe's own for health and metadata."""

from __future__ import annotations

from typing import Any

from kserve.protocol.rest import v2_datamodels as v2
from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from goemotions.serving.protocols import schema

JSON = "application/json"
ERRORS = {
    400: "The request is malformed; the error names the field",
    408: "The body arrived too slowly",
    413: "The body is too large, or holds too many texts",
    415: "The body has another content type or encoding",
    429: "The server is overloaded; Retry-After says how many seconds to wait",
    500: "The server failed; see its log",
    503: "The engine stopped",
    504: "Scoring took too long",
}
FEEDBACK_PATH = "/v1/feedback"
REQUESTS = (schema.V1Request, schema.V1ExplainRequest, schema.V2Request, schema.FeedbackRequest)
RESPONSES = (
    *(schema.V1Response, schema.V1ExplainResponse, schema.V2Response, schema.FeedbackResponse, schema.ErrorResponse),
    *(v2.ServerLiveResponse, v2.ServerReadyResponse, v2.ServerMetadataResponse),
    *(v2.ListModelsResponse, v2.ModelReadyResponse, v2.ModelMetadataResponse),
)


def v1_path(name: str) -> str:
    """The V1 path of a model: its readiness; with ``:predict``, inference."""
    return f"/v1/models/{name}"


def v2_paths(name: str, version: str, action: str = "") -> list[str]:
    """The two V2 paths of an action on a model, without and with its version; no action: its metadata."""
    return [f"/v2/models/{name}{action}", f"/v2/models/{name}/versions/{version}{action}"]


def document(name: str, version: str) -> dict[str, Any]:
    """The OpenAPI 3.1 document."""
    model_ready = _get("Is the model ready?", v2.ModelReadyResponse, 503)
    infer = _post("Label texts (V2, Open Inference)", schema.V2Request, schema.V2Response)
    paths = {
        "/v2/health/live": _get("Is the process alive?", v2.ServerLiveResponse, 503),
        "/v2/health/ready": _get("Is the server ready?", v2.ServerReadyResponse, 503),
        **dict.fromkeys([v1_path(name), *v2_paths(name, version, "/ready")], model_ready),
        "/v1/models": _get("The models of this server", v2.ListModelsResponse),
        "/v2": _get("The server", v2.ServerMetadataResponse),
        "/v2/models": _get("The models of this server", v2.ListModelsResponse),
        **dict.fromkeys(v2_paths(name, version), _get("The model: its tensors", v2.ModelMetadataResponse)),
        f"{v1_path(name)}:predict": _post("Label texts (V1)", schema.V1Request, schema.V1Response),
        f"{v1_path(name)}:explain": _post("Explain labels (V1)", schema.V1ExplainRequest, schema.V1ExplainResponse),
        **dict.fromkeys(v2_paths(name, version, "/infer"), infer),
        FEEDBACK_PATH: _feedback(),
        "/metrics": {
            "get": {
                "summary": "Prometheus metrics",
                "responses": {"200": _content("Metrics", {"type": "string"}, "text/plain")},
            }
        },
    }
    modes: Any = [*((model, "validation") for model in REQUESTS), *((model, "serialization") for model in RESPONSES)]
    _, definitions = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    return {
        "openapi": "3.1.0",
        "info": {"title": "GoEmotions predictor", "version": version},
        "paths": paths,
        "components": {"schemas": definitions["$defs"]},
    }


def _get(summary: str, model: type[BaseModel], *statuses: int) -> dict[str, Any]:
    """A GET operation that responds with 200 or one of the other statuses, each with the same model."""
    responses = {
        str(status): _content("OK" if status == 200 else "Not ready", _reference(model)) for status in (200, *statuses)
    }
    return {"get": {"summary": summary, "responses": responses}}


def _post(summary: str, request: type[BaseModel], response: type[BaseModel]) -> dict[str, Any]:
    responses = {"200": _content("One prediction per text, in order", _reference(response))}
    responses |= {str(status): _content(text, _reference(schema.ErrorResponse)) for status, text in ERRORS.items()}
    body = {"required": True, "content": {JSON: {"schema": _reference(request)}}}
    return {"post": {"summary": summary, "requestBody": body, "responses": responses}}


def _feedback() -> dict[str, Any]:
    operation = _post("Labels of a user for a text that was answered", schema.FeedbackRequest, schema.FeedbackResponse)
    operation["post"]["responses"] |= {
        "200": _content("The feedback was received", _reference(schema.FeedbackResponse)),
        "404": _content("The server keeps no request log", _reference(schema.ErrorResponse)),
    }
    return operation


def _content(text: str, content: dict[str, Any], media_type: str = JSON) -> dict[str, Any]:
    return {"description": text, "content": {media_type: {"schema": content}}}


def _reference(model: type[BaseModel]) -> dict[str, str]:
    return {"$ref": f"#/components/schemas/{model.__name__}"}
