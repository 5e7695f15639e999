"""KServe's model server around a predictor, under the model name ``goemotions``."""

from __future__ import annotations

import asyncio
import functools
import sys
from typing import Any

# KServe reads the command line while it is imported; ours is not for it.
_arguments, sys.argv = sys.argv, sys.argv[:1]
import kserve.model_server  # noqa: E402
from kserve.errors import InvalidInput  # noqa: E402
from kserve.protocol.rest.server import RESTServer  # noqa: E402

sys.argv = _arguments

from goemotions.errors import RequestError  # noqa: E402
from goemotions.predictor import Options, Predictor  # noqa: E402

NAME = "goemotions"


class GoEmotionsModel(kserve.Model):  # type: ignore[misc]
    """Answers V1 requests: ``{"instances": [text, ...], "parameters": {...}}``."""

    def __init__(self, predictor: Predictor, version: str) -> None:
        super().__init__(NAME)
        self._predictor = predictor
        self._version = version
        # One text before the first caller's: the engine allocates its buffers then.
        predictor.predict(["warm-up"])
        self.ready = True

    def validate(self, payload: Any) -> Any:
        """Leaves the checks to ``predict``, whose messages name the field."""
        return payload

    async def predict(
        self, payload: Any, headers: dict[str, str] | None = None, response_headers: Any = None
    ) -> dict[str, Any]:
        try:
            texts, options = parse(payload)
        except RequestError as error:
            raise InvalidInput(str(error)) from error
        # The engine computes for milliseconds; the event loop answers health checks meanwhile.
        predictions = await asyncio.to_thread(self._predictor.predict, texts, options)
        return {"predictions": predictions, "model_name": NAME, "model_version": self._version}


def parse(payload: Any) -> tuple[list[str], Options]:
    """Checks a V1 request.

    Raises:
        RequestError: names the field that is missing or wrong.
    """
    if not isinstance(payload, dict):
        raise RequestError('the body must be an object with the field "instances"')
    instances = payload.get("instances")
    if not isinstance(instances, list) or not instances:
        raise RequestError('"instances" must be a list of at least one text')
    for position, text in enumerate(instances):
        if not isinstance(text, str):
            raise RequestError(f'"instances"[{position}] must be a string')
    return instances, Options.of(payload.get("parameters"))


def serve(predictor: Predictor, version: str, *, host: str, port: int) -> None:
    """Serves until SIGTERM or SIGINT."""
    # ModelServer binds every interface and has no option for it.
    kserve.model_server.RESTServer = functools.partial(_server_on, host)
    kserve.ModelServer(http_port=port, enable_grpc=False, workers=1).start([GoEmotionsModel(predictor, version)])


def _server_on(host: str, *arguments: Any, **options: Any) -> RESTServer:
    server = RESTServer(*arguments, **options)
    server.config.host = host
    return server
