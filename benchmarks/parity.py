"""Compares the probabilities of the same texts over every protocol, one by one, in batches and from many clients."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import grpc
import numpy as np
import orjson
from kserve.protocol.grpc import grpc_predict_v2_pb2 as pb
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as stubs

from benchmarks import load

INFER = "/v2/models/goemotions/infer"
# How the texts are sent: description, texts per request, concurrent clients.
WAYS = (("one by one", 1, 1), ("in batches of 32", 32, 1), ("from 32 clients", 1, 32))


def differences(
    port: int, grpc_port: int, texts: Sequence[str], labels: Sequence[str], expected: np.ndarray
) -> Iterator[tuple[str, float]]:
    """Per protocol and way of sending, the largest difference in probability to ``expected``, float32 [n, labels]."""
    protocols: dict[str, Callable[[list[list[str]], int], np.ndarray]] = {
        "V1": lambda batches, clients: _v1(port, batches, clients, labels),
        "V2": lambda batches, clients: _v2(port, batches, clients, len(labels)),
        "gRPC": lambda batches, clients: _grpc(grpc_port, batches, clients, len(labels)),
    }
    for protocol, send in protocols.items():
        for way, size, clients in WAYS:
            batches = [list(texts[start : start + size]) for start in range(0, len(texts), size)]
            yield f"{protocol}, {way}", float(np.abs(send(batches, clients) - expected).max())


def _v1(port: int, batches: list[list[str]], clients: int, labels: Sequence[str]) -> np.ndarray:
    wire = [load.post(orjson.dumps({"instances": batch, "parameters": {"all_scores": True}})) for batch in batches]
    predictions = [
        prediction for body in load.responses(port, wire, clients=clients) for prediction in orjson.loads(body)["predictions"]
    ]
    return np.array([[prediction["scores"][label] for label in labels] for prediction in predictions])


def _v2(port: int, batches: list[list[str]], clients: int, labels: int) -> np.ndarray:
    bodies = [{"inputs": [{"name": "text", "datatype": "BYTES", "shape": [len(batch)], "data": batch}]} for batch in batches]
    wire = [load.post(orjson.dumps(body), INFER) for body in bodies]
    tensors = [orjson.loads(body)["outputs"][0]["data"] for body in load.responses(port, wire, clients=clients)]
    return np.concatenate([np.array(data).reshape(-1, labels) for data in tensors])


def _grpc(port: int, batches: list[list[str]], clients: int, labels: int) -> np.ndarray:
    with grpc.insecure_channel(f"{load.HOST}:{port}") as channel, ThreadPoolExecutor(clients) as pool:
        stub = stubs.GRPCInferenceServiceStub(channel)

        def infer(batch: list[str]) -> Any:
            message = pb.ModelInferRequest(model_name="goemotions")
            tensor = message.inputs.add(name="text", datatype="BYTES", shape=[len(batch)])
            tensor.contents.bytes_contents.extend(text.encode() for text in batch)
            return stub.ModelInfer(message).outputs[0].contents.fp32_contents

        return np.concatenate([np.array(data).reshape(-1, labels) for data in pool.map(infer, batches)])
