"""The JSON of the protocols: what a request may hold, and what an answer holds. Requests are checked by it, and OpenAPI shows it."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, ValidationError

from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options


def _whole(value: Any) -> Any:
    """JSON has one kind of numbers: there, 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


# Last in an annotation: a bound that came after it would not be shown in the document.
WHOLE = BeforeValidator(_whole)
Share = Annotated[float, Field(ge=0, le=1, allow_inf_nan=False)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Tolerant(BaseModel):
    """What Open Inference clients add beyond the protocol is left alone."""

    model_config = ConfigDict(strict=True, extra="ignore")


class Parameters(_Strict):
    """How labels are chosen."""

    top_k: Annotated[int, Field(ge=1, description="At most so many labels, the best ones."), WHOLE] | None = None
    threshold: Annotated[
        Share | Literal["tuned"],
        Field(description='Labels of at least this probability; "tuned": each label by the threshold fitted for it.'),
    ] = "tuned"
    all_scores: Annotated[bool, Field(description="Scores of all labels, not only of the chosen ones.")] = False

    def options(self) -> Options:
        return Options(self.top_k, self.threshold, self.all_scores)


class V1Request(_Strict):
    instances: Annotated[list[str], Field(min_length=1, description="The texts.", examples=[["thank you so much!"]])]
    parameters: Parameters | None = None


class V1Prediction(BaseModel):
    labels: Annotated[list[str], Field(description="The chosen labels, best first.")]
    scores: Annotated[dict[str, float], Field(description="Their probabilities, or all with all_scores.")]
    truncated: Annotated[bool, Field(description="Whether the text was longer than the model reads.")]


class V1Answer(BaseModel):
    predictions: list[V1Prediction]
    model_name: str
    model_version: str


class V1Model(BaseModel):
    name: str
    ready: bool


class Models(BaseModel):
    models: list[str]


class V2InputTensor(_Tolerant):
    name: Literal["text"]
    datatype: Literal["BYTES"]
    shape: Annotated[list[Annotated[int, Field(ge=0), WHOLE]], Field(min_length=1, max_length=2, description="[n] or [n, 1]")]
    parameters: dict[str, Any] = {}
    data: list[str] | None = None


class V2RequestedOutput(_Tolerant):
    name: Literal["probabilities", "labels"]
    parameters: dict[str, Any] = {}


class V2Request(_Tolerant):
    id: str | None = None
    parameters: Annotated[dict[str, Any], Field(description="top_k and threshold, for the tensor of labels.")] = {}
    inputs: Annotated[list[V2InputTensor], Field(min_length=1, max_length=1)]
    outputs: Annotated[list[V2RequestedOutput], Field(description="The tensors wanted; none named: both.")] = []


class V2OutputTensor(BaseModel):
    name: Literal["probabilities", "labels"]
    datatype: Literal["FP32", "BYTES"]
    shape: list[int]
    parameters: dict[str, Any] | None = None
    data: list[Any] | None = None


class V2Answer(BaseModel):
    model_name: str
    model_version: str
    id: str | None = None
    outputs: list[V2OutputTensor]
    parameters: Annotated[
        dict[str, Any] | None, Field(description='"truncated": positions of texts longer than the model reads.')
    ] = None


class V2Live(BaseModel):
    live: bool


class V2Ready(BaseModel):
    ready: bool


class V2Server(BaseModel):
    name: str
    version: str
    extensions: list[str]


class V2TensorMetadata(BaseModel):
    name: str
    datatype: str
    shape: list[int]


class V2Metadata(BaseModel):
    name: str
    versions: list[str]
    platform: str
    inputs: list[V2TensorMetadata]
    outputs: list[V2TensorMetadata]


class Failure(BaseModel):
    error: str


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: bytes) -> Model:
    """A request from its JSON.

    Raises:
        RequestError: it is not JSON, or a field is missing or wrong; the message names the field and never quotes the body.
    """
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise _named(error) from error


def check(model: type[Model], content: Any) -> Model:
    """The same for what is parsed already."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _named(error) from error


def _named(error: ValidationError) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    if first["type"] == "json_invalid":
        return RequestError("the body is not valid JSON")
    place = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in first["loc"]).lstrip(".")
    return RequestError(f"{place or 'the body'}: {first['msg'][0].lower()}{first['msg'][1:]}")
