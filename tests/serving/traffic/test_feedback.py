"""From a request to a row of train: a server with a request log whose store hangs, feedback to its answers, and what is made of it."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
import pyarrow.parquet as pq
import pytest
from click.testing import CliRunner
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from goemotions.cli.main import commands
from goemotions.data.dataset import load_dataset
from tests.support.object_store import Behaviour, running
from tests.support.servers import PREDICT, Server, serving


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("log")


@pytest.fixture(scope="module")
def server(bundle: Path, folder: Path) -> Iterator[Server]:
    """It logs every answer, into files that are complete after a second; a write to its store gets no response."""
    over = threading.Event()
    with (
        pytest.MonkeyPatch.context() as environment,
        running(Behaviour(late=lambda _: (over.wait(60) and 0.0) or 0.0)) as store,
    ):
        for name, value in {"AWS_ENDPOINT_URL": store.url, "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b"}.items():
            environment.setenv(name, value)
        options = ("--log-share", "1", "--log-store", "s3://b/", "--log-folder", str(folder), "--log-seconds", "1")
        limits = ("--answer-seconds", "5", "--peer-feedback", "8")
        with serving(bundle, folder / "serve.log", *options, *limits) as started:
            yield started
            started.process.terminate()
            # The store still hangs.
            started.process.wait(timeout=20)
        over.set()


def predict(server: Server, *texts: str, **headers: str) -> tuple[str, list[dict[str, Any]]]:
    """The id of an answer, and its predictions."""
    status, received, body = server.request("POST", PREDICT, json.dumps({"instances": texts}), **headers)
    assert status == 200, body
    return received["x-request-id"], json.loads(body)["predictions"]


def give(server: Server, **fields: Any) -> tuple[int, Any]:
    status, _, body = server.request("POST", "/v1/feedback", json.dumps(fields))
    return status, json.loads(body)


def test_an_answer_has_the_id_of_its_request_or_a_new_one(server: Server) -> None:
    assert predict(server, "a", x_request_id="0f3b-of-the-gateway")[0] == "0f3b-of-the-gateway"
    assert len({predict(server, "a", x_request_id="no id!")[0], predict(server, "a")[0], predict(server, "a")[0]}) == 3
    status, headers, _ = server.request("POST", PREDICT, "{", x_request_id="0f3b-of-the-gateway")
    assert (status, headers["x-request-id"]) == (400, "0f3b-of-the-gateway")
    with grpc.insecure_channel(f"127.0.0.1:{server.grpc_port}") as channel:
        request = pb.ModelInferRequest(model_name="goemotions", inputs=[{"name": "text", "datatype": "BYTES", "shape": [1]}])
        request.inputs[0].contents.bytes_contents.append(b"a")
        _, call = stubs.GRPCInferenceServiceStub(channel).ModelInfer.with_call(
            request, metadata=(("x-request-id", "0f3b-of-the-gateway"),)
        )
        assert dict(call.trailing_metadata())["x-request-id"] == "0f3b-of-the-gateway"


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"labels": ["glee"]}, "id: field required"),
        ({"id": "short", "labels": ["glee"]}, "id: string should match pattern"),
        ({"id": "0123456789", "labels": []}, "labels: list should have at least 1 item"),
        ({"id": "0123456789", "labels": ["joy"]}, "labels: the model has no label 'joy'"),
        ({"id": "0123456789", "labels": ["glee"], "index": -1}, "index: input should be greater than or equal to 0"),
        ({"id": "0123456789", "labels": ["glee"], "comment": "no"}, "comment: there is no such field"),
        ({"id": "0123456789", "labels": ["glee"], "user": "jo@example.org"}, "user: string should match pattern"),
    ],
)
def test_feedback_that_is_none_is_refused(server: Server, fields: dict[str, Any], message: str) -> None:
    status, answer = give(server, **fields)
    assert status == 400
    assert message in answer["error"]


def everything_in(folder: Path) -> str:
    """What the log and its segments hold, and then the Parquet files, which segments may have become meanwhile."""
    parts = []
    for path in [*folder.glob("*.log"), *folder.glob("*.jsonl")]:
        with contextlib.suppress(FileNotFoundError):
            parts.append(path.read_text())
    return "".join([*parts, *(str(pq.read_table(path).to_pylist()) for path in folder.rglob("[!.]*.parquet"))])


@pytest.mark.fault("request-log-store-away")
def test_feedback_becomes_a_row_of_train(server: Server, folder: Path, source: Path, tmp_path: Path) -> None:
    texts = ["we saw the old lake, writes jo@example.org", "the quiet storm again"]
    request_id, _ = predict(server, *texts)
    other, predictions = predict(server, "a sparrow under the table, said Anna Karenina")
    assert give(server, id=request_id, index=1, labels=["scorn", "dread"]) == (
        200,
        {"id": request_id, "index": 1, "logged": True},
    )
    assert give(server, id=other, labels=predictions[0]["labels"] or ["pity"], user="user-0001")[0] == 200
    assert give(server, id="0123456789abcdef", labels=["glee"])[0] == 200
    deadline = time.monotonic() + 30
    while not (
        any(folder.rglob("feedback-*.parquet")) and server.metrics()['goemotions_request_log_rows_total{kind="feedback"}'] == 3
    ):
        assert time.monotonic() < deadline
        predict(server, "the store hangs, and answers come")
        time.sleep(0.1)
    time.sleep(1.2)
    made, dataset = tmp_path / "made", tmp_path / "dataset"
    for arguments in (
        ["data", "from-feedback", "--log", str(folder), "--append-to", str(source), "--output", str(made)],
        ["ingest", "--source", str(made), "--output", str(dataset)],
    ):
        ended = CliRunner().invoke(commands, arguments)
        assert ended.exit_code == 0, ended.output
    splits, info = load_dataset(dataset)
    rows = {row["text"]: row for row in splits["train"] if row["id"].startswith("feedback-")}
    assert {info["labels"][label] for label in rows["the quiet storm again"]["labels"]} == {"scorn", "dread"}
    assert rows["the quiet storm again"]["id"] == f"feedback-{request_id}-1"
    assert "a sparrow under the table, said [NAME]" in rows
    assert len(rows) == 2
    assert not any(row["id"].startswith("feedback-") for split in ("validation", "test") for row in splits[split])
    written = everything_in(folder)
    assert "[NAME]" in written
    assert "jo@example.org" not in written
    assert "Karenina" not in written


@pytest.mark.fault("request-log-repeated-feedback")
def test_an_address_that_sends_too_much_feedback_is_refused_whatever_its_headers_say(server: Server) -> None:
    for number in range(9):
        body = json.dumps({"id": f"0123456789-{number}", "labels": ["glee"]})
        status, headers, answer = server.request("POST", "/v1/feedback", body, x_forwarded_for=f"10.0.0.{number}")
    assert (status, json.loads(answer)) == (429, {"error": "too much feedback from this address: at most 8 per minute"})
    assert 0 < int(headers["retry-after"]) <= 60
    assert predict(server, "and predictions come")[0]
    counted = server.metrics()
    assert counted['goemotions_rejected_requests_total{reason="feedback"}'] >= 1
    assert counted['goemotions_rejected_requests_total{reason="overloaded"}'] == 0
    assert 'goemotions_requests_total{outcome="overload",protocol="feedback"}' not in counted
