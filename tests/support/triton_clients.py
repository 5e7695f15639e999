"""Calls of Triton's own clients (tritonclient http, http.aio, grpc, grpc.aio) to a server, as JSON; run in an environment of its own.

    python triton_clients.py HTTP_PORT GRPC_PORT MODEL TEXT...

Prints an object with the name of each call and what it returned: probabilities, true, or the message of its error.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import tritonclient.grpc as grpc
import tritonclient.grpc.aio as grpc_aio
import tritonclient.http as http
import tritonclient.http.aio as http_aio
from tritonclient.utils import InferenceServerException

COMPRESSIONS = ("gzip", "deflate")
OPTIONS = {
    "request_id": "q",
    "priority": 1,
    "timeout": 5_000_000,
    "sequence_id": 7,
    "sequence_start": True,
    "sequence_end": True,
}


def text_input(module: Any, texts: list[str], shape: list[int], **options: Any) -> Any:
    given = module.InferInput("text", shape, "BYTES")
    given.set_data_from_numpy(np.array([text.encode() for text in texts], dtype=np.object_).reshape(shape), **options)
    return given


def rows(result: Any) -> Any:
    return result.as_numpy("probabilities").tolist()


async def outcome(call: Callable[[], Any], show: Callable[[Any], Any]) -> Any:
    """What a call returned, as ``show`` has it, or how it failed; of a streaming call, its first response."""
    try:
        returned = call()
        return show(await returned if inspect.isawaitable(returned) else returned)
    except InferenceServerException as error:
        return f"InferenceServerException {error.status()}: {error.message()}"


def common(client: Any, model: str) -> dict[str, tuple[Callable[[], Any], Callable[[Any], Any]]]:
    """The calls that all clients have besides ``infer``."""
    return {
        "is_server_live": (client.is_server_live, bool),
        "is_server_ready": (client.is_server_ready, bool),
        "is_model_ready": (lambda: client.is_model_ready(model), bool),
        "get_server_metadata": (client.get_server_metadata, named),
        "get_model_metadata": (lambda: client.get_model_metadata(model), named),
        "get_model_config": (lambda: client.get_model_config(model), named),
        "get_inference_statistics": (lambda: client.get_inference_statistics(model), named),
        "is_model_ready, unknown": (lambda: client.is_model_ready("unknown"), bool),
        "get_model_metadata, unknown": (lambda: client.get_model_metadata("unknown"), named),
    }


def named(answer: Any) -> str:
    return str(answer["name"] if isinstance(answer, dict) else answer.name)


def of_http(client: Any, model: str, texts: list[str]) -> dict[str, Any]:
    """The calls of a client over HTTP, synchronous or not."""
    shape = [len(texts)]
    binary, plain = (text_input(http, texts, shape, binary_data=is_binary) for is_binary in (True, False))
    column = text_input(http, texts, [len(texts), 1])
    outputs = [http.InferRequestedOutput("probabilities", binary_data=is_binary) for is_binary in (True, False)]
    calls = {
        "infer": (lambda: client.infer(model, [binary]), rows),
        "infer, JSON": (lambda: client.infer(model, [plain]), rows),
        "infer, column": (lambda: client.infer(model, [column]), rows),
        "infer, binary outputs": (lambda: client.infer(model, [binary], outputs=[outputs[0]]), rows),
        "infer, JSON outputs": (lambda: client.infer(model, [binary], outputs=[outputs[1]]), rows),
        "infer, options": (lambda: client.infer(model, [binary], **OPTIONS), rows),
        "infer, headers": (lambda: client.infer(model, [binary], headers={"x-tag": "1"}), rows),
        "infer, parameters": (lambda: client.infer(model, [binary], parameters={"top_k": 2}), rows),
    }
    for name in COMPRESSIONS:
        compressed = {"request_compression_algorithm": name, "response_compression_algorithm": name}
        calls[f"infer, {name}"] = (lambda options=compressed: client.infer(model, [binary], **options), rows)
    return common(client, model) | calls


def of_grpc(client: Any, model: str, texts: list[str]) -> dict[str, Any]:
    """The calls of a client over gRPC, synchronous or not."""
    given = text_input(grpc, texts, [len(texts)])
    column = text_input(grpc, texts, [len(texts), 1])
    outputs = [grpc.InferRequestedOutput("probabilities")]
    calls = {
        "infer": (lambda: client.infer(model, [given]), rows),
        "infer, column": (lambda: client.infer(model, [column]), rows),
        "infer, outputs": (lambda: client.infer(model, [given], outputs=outputs), rows),
        "infer, options": (lambda: client.infer(model, [given], **OPTIONS), rows),
        "infer, headers": (lambda: client.infer(model, [given], headers={"x-tag": "1"}), rows),
        "infer, parameters": (lambda: client.infer(model, [given], parameters={"top_k": 2, "threshold": 0.5}), rows),
    }
    for name in COMPRESSIONS:
        calls[f"infer, {name}"] = (lambda name=name: client.infer(model, [given], compression_algorithm=name), rows)
    return common(client, model) | calls


async def main(http_port: str, grpc_port: str, model: str, *given: str) -> None:
    texts, places = list(given), (f"127.0.0.1:{http_port}", f"127.0.0.1:{grpc_port}")
    printed: dict[str, Any] = {}
    with http.InferenceServerClient(places[0]) as client:
        for name, call in of_http(client, model, texts).items():
            printed[f"http: {name}"] = await outcome(*call)
        printed["http: async_infer"] = rows(client.async_infer(model, [text_input(http, texts, [len(texts)])]).get_result())
    async with http_aio.InferenceServerClient(places[0]) as client:
        for name, call in of_http(client, model, texts).items():
            printed[f"http.aio: {name}"] = await outcome(*call)
    with grpc.InferenceServerClient(places[1]) as client:
        for name, call in of_grpc(client, model, texts).items():
            printed[f"grpc: {name}"] = await outcome(*call)
    async with grpc_aio.InferenceServerClient(places[1]) as client:
        for name, call in of_grpc(client, model, texts).items():
            printed[f"grpc.aio: {name}"] = await outcome(*call)
    print(json.dumps(printed))


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
