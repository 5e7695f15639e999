"""The JSON of inference requests and responses: requests are validated against these models, and the OpenAPI document shows them."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeVar

import numpy as np
import orjson
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PlainValidator, ValidationError, WithJsonSchema
from pydantic_core import PydanticCustomError

from goemotions import defaults
from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options
from goemotions.serving.limits import Limits
from goemotions.serving.protocols.request_ids import ID


def _integer(value: Any) -> Any:
    """JSON has one type of number, in which 3.0 is an integer."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _threshold(value: Any) -> Any:
    if value == "tuned" or (isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= 1):
        return value
    raise PydanticCustomError("threshold", 'must be "tuned" or a number from 0 to 1')


def _flatten(value: Any) -> Any:
    """The strings of a nested tensor, [["a"], ["b"]] for the shape [2, 1]."""
    if isinstance(value, list) and all(isinstance(row, list) and len(row) == 1 for row in value):
        return [row[0] for row in value]
    return value


# Must come last in an annotation: pydantic leaves bounds that follow it out of the OpenAPI document.
INTEGER = BeforeValidator(_integer)
ThresholdField = Annotated[
    float | Literal["tuned"],
    PlainValidator(_threshold),
    WithJsonSchema({"anyOf": [{"type": "number", "minimum": 0, "maximum": 1}, {"const": "tuned", "type": "string"}]}),
]
STRINGS = {"type": "array", "items": {"type": "string"}}
ROWS = {"type": "array", "items": STRINGS | {"minItems": 1, "maxItems": 1}}
Strings = Annotated[list[str], Field(fail_fast=True), BeforeValidator(_flatten), WithJsonSchema({"anyOf": [STRINGS, ROWS]})]
MAX_FIELDS = 64
MAX_CHARACTERS = 200
# Of words in one text of an explanation.
MAX_REMOVALS = 128
# A value of a client that this server does not use.
Ignored = Annotated[Any, Field(description="Accepted, without effect.")]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")


class _Tolerant(BaseModel):
    """Fields that Open Inference clients add beyond the protocol are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore")


class _OfClients(_Strict):
    """Parameters that the clients of Triton, MLServer and KServe add to a request, a tensor or an output."""

    content_type: Ignored = None
    headers: Ignored = None
    priority: Ignored = None
    timeout: Ignored = None
    sequence_id: Ignored = None
    sequence_start: Ignored = None
    sequence_end: Ignored = None
    triton_enable_empty_final_response: Ignored = None


class LabelParameters(_OfClients):
    """How labels are chosen."""

    top_k: (
        Annotated[
            int, Field(ge=1, description="Scores of so many labels, the best; those over their thresholds are chosen."), INTEGER
        ]
        | None
    ) = None
    threshold: Annotated[
        ThresholdField,
        Field(description='The least probability of a label, or "tuned": each label has the threshold that was fitted for it.'),
    ] = "tuned"


class Parameters(LabelParameters):
    """How labels are chosen, and whose scores are returned."""

    all_scores: Annotated[bool, Field(description="Scores of all labels, not only of the chosen ones.")] = False

    def options(self) -> Options:
        return Options(self.top_k, self.threshold, self.all_scores)


class ExplainParameters(Parameters):
    """How labels are chosen, and how finely a long text is explained."""

    removals: Annotated[
        int,
        Field(ge=1, le=MAX_REMOVALS, description="Removals of words per text; with fewer than words, neighbours share one."),
        INTEGER,
    ] = defaults.REMOVALS


class V2Parameters(LabelParameters):
    """Parameters of a V2 request. There is no ``all_scores``, because the tensor of probabilities has all labels."""

    binary_data_output: bool = False

    def options(self) -> Options:
        return Options(self.top_k, self.threshold)


class InputParameters(_OfClients):
    binary_data_size: int | None = None


class OutputParameters(_OfClients):
    binary_data: bool | None = None


class V1Request(_Strict):
    instances: Annotated[
        list[str], Field(fail_fast=True, min_length=1, description="The texts.", examples=[["thank you so much!"]])
    ]
    parameters: Parameters | None = None


class V1ExplainRequest(V1Request):
    parameters: ExplainParameters | None = None


class V1Prediction(BaseModel):
    labels: Annotated[list[str], Field(description="The chosen labels, best first.")]
    scores: Annotated[
        dict[str, float],
        Field(description="Probabilities of the chosen labels; with top_k, of the k best; with all_scores, of all labels."),
    ]
    truncated: Annotated[bool, Field(description="Whether the text exceeded the model's maximum length and was cut.")]


class V1Response(BaseModel):
    predictions: list[V1Prediction]
    model_name: str
    model_version: str


class V1Word(BaseModel):
    text: str
    start: Annotated[int, Field(description="Its first character in the text, counted from 0.")]
    end: Annotated[int, Field(description="The character after its last one.")]
    group: Annotated[int, Field(description="Words of the same group were removed together.")]


class V1Explanation(BaseModel):
    words: Annotated[list[V1Word], Field(description="The words, punctuation and emoji that the model reads.")]
    contributions: Annotated[
        dict[str, list[float]],
        Field(description="Per chosen label and word: how far the probability falls without the word; below 0, it rises."),
    ]


class V1ExplainResponse(V1Response):
    explanations: list[V1Explanation]


class V2InputTensor(_Tolerant):
    # Codecs of clients name the only tensor themselves (MLServer's StringRequestCodec: input-1).
    name: Annotated[str, Field(max_length=MAX_CHARACTERS, description='"text"; any other name is the same.')]
    datatype: Literal["BYTES"]
    shape: Annotated[
        list[Annotated[int, Field(ge=0), INTEGER]],
        Field(fail_fast=True, min_length=1, max_length=2, description="[n] or [n, 1]"),
    ]
    parameters: InputParameters | None = None
    data: Strings | None = None


class V2RequestedOutput(_Tolerant):
    name: Literal["probabilities", "labels"]
    parameters: OutputParameters | None = None


class V2Request(_Tolerant):
    id: Annotated[str, Field(max_length=MAX_CHARACTERS)] | None = None
    parameters: V2Parameters | None = None
    inputs: Annotated[list[V2InputTensor], Field(fail_fast=True, min_length=1, max_length=1)]
    outputs: (
        Annotated[
            list[V2RequestedOutput],
            Field(fail_fast=True, max_length=MAX_FIELDS, description="The requested tensors; both if empty."),
        ]
        | None
    ) = None


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


class FeedbackRequest(_Strict):
    id: Annotated[str, Field(pattern=f"^{ID.pattern}$", description="The x-request-id of the answer.")]
    index: Annotated[int, Field(ge=0, lt=2**31, description="The position of the text in its request."), INTEGER] = 0
    labels: Annotated[
        list[str],
        Field(fail_fast=True, min_length=1, max_length=1000, description="The labels that are right for the text."),
    ]
    user: Annotated[str, Field(pattern=f"^({ID.pattern})?$", description="Who says so, a pseudonym: one vote per text.")] = ""


class FeedbackResponse(BaseModel):
    id: str
    index: int
    logged: Annotated[
        bool,
        Field(description="False if the answer is not in the log, which has a share of the requests; the labels are not kept."),
    ]


class ErrorResponse(BaseModel):
    error: str


Model = TypeVar("Model", bound=BaseModel)


def parse(model: type[Model], body: bytes, limits: Limits | None = None) -> Model:
    """Parses and validates the JSON of a request. Counts are checked before anything else, and the first error ends the validation.

    Raises:
        RequestError: 400 if it is not JSON, or a field is missing or wrong; 413 for too many texts. The message names the field
            and never quotes the body.
    """
    limits = limits or Limits()
    _check_values(body, limits)
    try:
        content = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise RequestError("the body is not valid JSON") from error
    _check_counts(content, limits)
    return validate(model, content)


def validate(model: type[Model], content: Any, field: str = "") -> Model:
    """Validates content that is parsed already, the value of a field; raises as ``parse`` does."""
    try:
        return model.model_validate(content)
    except ValidationError as error:
        raise _request_error(error, field) from error


def shorten(text: str) -> str:
    """A name or message that may hold text of a caller, in bounded length."""
    return text if len(text) <= MAX_CHARACTERS else f"{text[:MAX_CHARACTERS]}..."


def _check_values(body: bytes, limits: Limits) -> None:
    """Values, arrays and objects, before the parser makes each in one go and everything else waits; those in strings do not count."""
    most = limits.values
    if len(body) <= most or _values(body) <= most:
        return
    # Without escaped characters, every second piece is outside strings. The last piece is the rest of a body with too many strings.
    pieces = body.replace(rb"\\", b"").replace(rb"\"", b"").split(b'"', 4 * most)
    if _values(b"".join(pieces[::2])) > most:
        raise RequestError(f"the body has more than {most:,} values: send at most {limits.texts} texts", 413)


def _values(body: bytes) -> int:
    """NumPy releases the lock of the interpreter while it counts."""
    characters = np.frombuffer(body, np.uint8)
    return sum(int(np.count_nonzero(characters == separator)) for separator in b",[{")


def _check_counts(content: Any, limits: Limits) -> None:
    """Texts, and fields of each object that rejects unknown ones."""
    if not isinstance(content, dict):
        return
    inputs = content.get("inputs")
    tensor = inputs[0] if isinstance(inputs, list) and inputs and isinstance(inputs[0], dict) else {}
    for texts in (content.get("instances"), tensor.get("data")):
        if isinstance(texts, list):
            limits.check_texts(len(texts))
    for fields in (content, content.get("parameters"), tensor.get("parameters")):
        if isinstance(fields, dict) and len(fields) > MAX_FIELDS:
            raise RequestError(f"an object of the request has more than {MAX_FIELDS} fields")


# Errors whose own messages name classes of this library, or say less than the field's type.
MESSAGES = {
    "extra_forbidden": "there is no such field or parameter",
    "model_type": "input should be an object",
    "model_attributes_type": "input should be an object",
    "dict_type": "input should be an object",
    "list_type": "input should be a valid array",
}


def _request_error(error: ValidationError, field: str) -> RequestError:
    first = error.errors(include_url=False, include_input=False)[0]
    path = "".join(f"[{part}]" if isinstance(part, int) else f".{shorten(part)}" for part in first["loc"])
    name = f"{field}{path}" if field else path.lstrip(".")
    message = MESSAGES.get(first["type"], first["msg"])
    return RequestError(f"{name or 'the body'}: {message[0].lower()}{message[1:]}")
