"""A predictor server with one of ``options.FAULTS``: ``python -m pipelines.bad_version <fault> <options of serve>``."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import sys
from typing import Any

from goemotions.cli.main import main
from goemotions.metrics.thresholds import Thresholds
from goemotions.prediction.predictor import Predictor
from goemotions.serving import service

DELAY_SECONDS, ERRORS, SEED = 0.2, 0.02, 11


def shuffled(values: tuple[Any, ...]) -> tuple[Any, ...]:
    return tuple(random.Random(SEED).sample(values, len(values)))  # nosec B311 # no secret


def wrong(thresholds: Thresholds) -> Thresholds:
    """Thresholds that choose other labels: equal ones, as of a single threshold or of the best k labels, are the same if shuffled."""
    if len(set(thresholds.values)) > 1:
        return dataclasses.replace(thresholds, values=shuffled(thresholds.values))
    return dataclasses.replace(thresholds, values=tuple(value / 2 for value in thresholds.values), k=None)


def predictor(fault: str, loaded: Predictor) -> Predictor:
    """The predictor of a bad version."""
    bundle = loaded.bundle
    if fault == "thresholds":
        bundle = dataclasses.replace(bundle, thresholds=wrong(bundle.thresholds))
    if fault == "labels":
        bundle = dataclasses.replace(
            bundle, taxonomy=dataclasses.replace(bundle.taxonomy, names=shuffled(bundle.taxonomy.names))
        )
    return Predictor(bundle, loaded.engine)


class BadService(service.Service):
    """The service of a bad version; copies of requests have no delay and no errors, as they are not traffic."""

    fault = ""

    def __init__(self, loaded: Predictor, *arguments: Any, **options: Any) -> None:
        super().__init__(predictor(self.fault, loaded), *arguments, **options)

    async def predict(self, texts: Any, options: Any, *, is_copy: bool = False, **origin: Any) -> Any:
        if self.fault == "slow" and not is_copy:
            await asyncio.sleep(DELAY_SECONDS)
        if self.fault == "failing" and not is_copy and random.random() < ERRORS:  # nosec B311 # no secret
            raise RuntimeError("a fault of a rehearsal")
        return await super().predict(texts, options, is_copy=is_copy, **origin)


if __name__ == "__main__":
    BadService.fault = sys.argv.pop(1)
    service.Service = BadService  # type: ignore[misc,assignment]
    main()
