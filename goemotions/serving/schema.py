"""The JSON of inference requests and responses: requests are validated against these models, and the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options


def _integer(value: Any) -> Any:
    """JSON has one type of number, in which 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Must come last in an annotation: pydantic leaves bounds that follow it out of the OpenAPI document.
INTEGER = BeforeValidator(_integer)
Probability = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Tolerant(BaseModel):
    """Fields that Open Inference clients add beyond the protocol are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Parameters(_Strict):
    """How labels are chosen."""

    top_k: Annotated[int, Field(ge=1, description="Most labels per text; the best are kept."), INTEGER] | None = None
    threshold: Annotated[
        Probability | Literal["tuned"],
        Field(description='The least probability of a label, or "tuned": each label has the threshold that was fitted for it.'),
    ] = "tuned"
    all_scores: Annotated[bool, Field(description="Scores of all labels, not only of the chosen ones.")] = False

    def options(self) -> Options:
        return Options(self.top_k, self.threshold, self.all_scores)


class V1Request(_Strict):
    instances: Annotated[list[str], Field(min_length=1, description="The texts.", examples=[["thank you so much!"]])]
    parameters: Parameters | None = None


class V1Prediction(BaseModel):
    labels: Annotated[list[str], Field(description="The chosen labels, best first.")]
    scores: Annotated[
        dict[str, float], Field(description="Probabilities of the chosen labels; with all_scores, of all labels.")
    ]
    truncated: Annotated[bool, Field(description="Whether the text exceeded the model's maximum length and was cut.")]


class V1Response(BaseModel):
    predictions: list[V1Prediction]
    model_name: str
    model_version: str


class V2InputTensor(_Tolerant):
    name: Literal["text"]
    datatype: Literal["BYTES"]
    shape: Annotated[list[Annotated[int, Field(ge=0), INTEGER]], Field(min_length=1, max_length=2, description="[n] or [n, 1]")]
    parameters: dict[str, Any] = {}
    data: list[str] | None = None


class V2RequestedOutput(_Tolerant):
    name: Literal["probabilities", "labels"]
    parameters: dict[str, Any] = {}


class V2Request(_Tolerant):
    id: str | None = None
    parameters: Annotated[dict[str, Any], Field(description="top_k and threshold, which apply to the tensor of labels.")] = {}
    inputs: Annotated[list[V2InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[V2RequestedOutput], Field(description="The requested tensors; both if empty.")] = []


class V2OutputTensor(BaseModel):
    name: Literal["probabilities", "labels"]
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class V2Response(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[V2OutputTensor]
    parameters: Annotated[dict[str, Any] | None, Field(description='"truncated": positions of the texts that were cut.')] = None


class ErrorResponse(BaseModel):
    error: str


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: bytes) -> Model:
    """Parses and validates the JSON of a request.

    Raises:
        RequestError: 400 if it is not JSON, or a field is missing or wrong. The message names the field and never quotes the body.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _request_error(error) from error


def validate(model: type[Model], content: Any) -> Model:
    """Validates content that is parsed already; raises as ``parse`` does."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _request_error(error) from error


def _request_error(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return RequestError("the body is not valid JSON")
    field = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    return RequestError(f"{field or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}")
