"""The JSON of requests: valid, or rejected with the name of the field."""

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError

from goemotions.errors import RequestError
from goemotions.prediction.predictor import Options
from goemotions.serving.protocols import schema


def request(**fields: Any) -> schema.V1Request:
    return schema.parse(schema.V1Request, json.dumps(fields).encode())


def test_absent_parameters_have_defaults() -> None:
    assert request(instances=["a"]).parameters is None
    assert request(instances=["a"], parameters=None).parameters is None
    assert schema.Parameters().options() == Options() == Options(None, "tuned", False)
    assert request(instances=["a"], parameters={"top_k": 3.0}).parameters.options().top_k == 3  # type: ignore[union-attr]
    given_all = request(instances=["a"], parameters={"top_k": 3, "threshold": 0, "all_scores": True}).parameters
    assert given_all is not None
    assert given_all.options() == Options(3, 0, True)


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        *((value, "parameters") for value in ([], "top_k", 3, False)),
        ({"topk": 3}, "parameters.topk"),
        ({"top_k": 3, "": 1}, "parameters"),
        *(({"top_k": value}, "parameters.top_k") for value in (0, -1, 0.0, 1.5, "3", True, [3], {}, 1e400)),
        *(
            ({"threshold": value}, "parameters.threshold")
            for value in (-0.1, 1.1, 10**400, float("nan"), float("inf"), "0.5", "best", True, None, [0.5], {})
        ),
        *(({"all_scores": value}, "parameters.all_scores") for value in (1, 0, "true", None, [])),
    ],
    ids=lambda value: str(value)[:40],
)
@pytest.mark.fault("http-wrong-field", "http-hostile-json")
def test_wrong_parameters_are_named(parameters: Any, named: str) -> None:
    with pytest.raises(RequestError) as rejected:
        request(instances=["a"], parameters=parameters)
    assert named in str(rejected.value) or "not valid JSON" in str(rejected.value)
    assert rejected.value.status == 400


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({}, "instances: field required"),
        ({"instances": "text"}, "instances: input should be a valid array"),
        ({"instances": {"0": "text"}}, "instances"),
        ({"instances": []}, "at least 1 item"),
        ({"instances": ["a", 5]}, "instances[1]: input should be a valid string"),
        ({"instances": ["a", None]}, "instances[1]"),
        ({"instances": [["a"]]}, "instances[0]"),
        ({"instances": ["a"], "signature": 1}, "signature"),
    ],
    ids=str,
)
@pytest.mark.fault("http-wrong-field", "http-no-instances", "http-not-a-string")
def test_wrong_instances_are_named(fields: dict[str, Any], named: str) -> None:
    with pytest.raises(RequestError) as rejected:
        request(**fields)
    assert named in str(rejected.value)


@pytest.mark.parametrize(
    "body",
    [
        *(b"", b"not json", b"{", b'{"instances": ["a"]} x', b"\xff\xfe", b'{"instances": ["\\ud800"]}'),
        *(
            b"[" * 1_500,
            b'{"instances": ' + b"[" * 1_500,
            b'{"instances": [' + b"9" * 10_000 + b"]}",
            b'{"instances": [NaN]}',
        ),
    ],
    ids=lambda body: repr(body[:30]),
)
@pytest.mark.fault("http-not-json", "http-hostile-json")
def test_a_broken_body_is_rejected_and_not_quoted(body: bytes) -> None:
    with pytest.raises(RequestError) as rejected:
        schema.parse(schema.V1Request, body)
    assert rejected.value.status == 400
    assert len(str(rejected.value)) < 80


@pytest.mark.fault("http-work-before-limits")
@pytest.mark.parametrize(
    ("model", "body", "status"),
    [
        (schema.V1Request, b'{"instances": [' + b"1," * 600 + b"1]}", 413),
        (schema.V2Request, b'{"inputs": [{"data": [' + b"1," * 600 + b"1]}]}", 413),
        (schema.V1Request, json.dumps({str(n): 1 for n in range(1000)}).encode(), 400),
        (schema.V1Request, json.dumps({"instances": ["a"], "parameters": {str(n): 1 for n in range(1000)}}).encode(), 400),
        (schema.V2Request, b'{"inputs": [' + b"{}," * 1000 + b"{}]}", 400),
    ],
)
def test_counts_are_checked_before_fields(model: Any, body: bytes, status: int) -> None:
    with pytest.raises(RequestError) as rejected:
        schema.parse(model, body)
    assert rejected.value.status == status
    cause = rejected.value.__cause__
    assert not isinstance(cause, ValidationError) or cause.error_count() <= 3


@pytest.mark.fault("http-work-before-limits")
@pytest.mark.parametrize(
    "body",
    [
        b'{"instances": [' + b"1," * 690_000 + b"1]}",
        b'{"instances": [' + b'"",' * 690_000 + b'""]}',
        b'{"instances": ' + b"[]," * 690_000 + b"[]]}",
        b'{"instances": ["\\\\", "\\"", ' + b"1," * 690_000,
        b"{" + b'"a":1,' * 290_000,
        b'{"instances": ' + b"[" * 690_000,
    ],
    ids=lambda body: repr(body[:40]),
)
def test_values_are_counted_before_they_are_parsed(body: bytes) -> None:
    with pytest.raises(RequestError, match="more than 2,024 values: send at most 512 texts") as rejected:
        schema.parse(schema.V1Request, body)
    assert rejected.value.status == 413


def test_what_is_in_a_text_is_not_counted_as_values() -> None:
    text = '[{,"' * 30_000 + "\\"
    assert request(instances=[text, "a"]).instances == [text, "a"]


def test_the_largest_request_has_fewer_values_than_the_limit() -> None:
    """A nested tensor, and as many parameters and outputs as are accepted, each with parameters."""
    ignored = {name: 1 for name in schema.InputParameters.model_fields if name != "binary_data_size"}
    outputs = [{"name": "labels", "parameters": ignored | {"binary_data": True}}] * schema.MAX_FIELDS
    tensor = {"name": "text", "datatype": "BYTES", "shape": [512, 1], "data": [["a,"]] * 512, "parameters": ignored}
    content = {str(number): number for number in range(60)} | {"id": "1", "inputs": [tensor], "outputs": outputs}
    parsed = schema.parse(schema.V2Request, json.dumps(content | {"parameters": ignored}).encode())
    assert parsed.inputs[0].data == ["a,"] * 512


@pytest.mark.fault("http-work-before-limits")
def test_the_first_wrong_item_ends_the_validation() -> None:
    with pytest.raises(RequestError, match=r"instances\[0\]") as rejected:
        schema.parse(schema.V1Request, b'{"instances": [' + b"1," * 500 + b"1]}")
    assert isinstance(rejected.value.__cause__, ValidationError)
    assert rejected.value.__cause__.error_count() == 1


@pytest.mark.fault("http-long-name")
@pytest.mark.parametrize(
    "fields", [{"instances": ["a"], "n" * 100_000: 1}, {"instances": ["a"], "parameters": {"n" * 100_000: 1}}]
)
def test_a_message_does_not_repeat_a_long_name(fields: dict[str, Any]) -> None:
    with pytest.raises(RequestError, match="nnnn") as rejected:
        request(**fields)
    assert len(str(rejected.value)) < 300


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)


@given(JSON | st.dictionaries(st.sampled_from(["top_k", "threshold", "all_scores", "other"]), JSON, max_size=4))
@settings(max_examples=50, deadline=None)
def test_parameters_are_valid_or_rejected_by_name(parameters: Any) -> None:
    with contextlib.suppress(RequestError):
        valid = schema.validate(schema.Parameters, parameters)
        assert valid.threshold == "tuned" or 0 <= valid.threshold <= 1
