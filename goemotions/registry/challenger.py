"""A challenger, and its comparison with the champion: on the same rows of validation, and by latency in one process."""

from __future__ import annotations

import contextlib
import functools
import inspect
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from typing import Any

from goemotions import strict_json
from goemotions.data.dataset import as_folder, ingest, load_dataset
from goemotions.errors import DataError, PromotionRefused, SourceUnreachable, StorageError
from goemotions.evaluation import gate, latency
from goemotions.evaluation.gate import Verdict
from goemotions.evaluation.predictions import Predictions
from goemotions.evaluation.selection import CandidateScores, latency_limit
from goemotions.models import engines
from goemotions.models.engines import Engine
from goemotions.registry import bundle, model_registry, tracking, trust
from goemotions.registry.bundle import SERVING, Bundle, Variant
from goemotions.registry.candidates import stored_scores
from goemotions.registry.model_registry import Version
from goemotions.storage.temporary import temporary_folder


@dataclass(frozen=True)
class Challenger:
    """What the gate needs of a model that may become champion: its scores, its engine when it is needed, its MLflow run."""

    scores: CandidateScores
    load_engine: Callable[[], Engine]
    run_id: str


@dataclass(frozen=True)
class GateOptions:
    """How a challenger is compared with the champion, as ``promotion.promote`` takes it."""

    dataset: str
    latency_budget_ms: float
    quality_tolerance: float


@dataclass(frozen=True)
class Comparison:
    """The scores of a challenger and of the champion on the same validation rows, and the gate's verdict on the challenger."""

    challenger: CandidateScores
    champion: CandidateScores
    verdict: Verdict


@contextlib.contextmanager
def of_version(model_name: str, reference: str) -> Iterator[tuple[Challenger, Variant, Version]]:
    """A version as a challenger, by its alias or number; its bundle is on this machine for as long as the block lasts.

    Raises:
        ModelError: there is no such version.
        UntrustedBundle: its bundle is not one that `register` stored (``trust``).
    """
    version = model_registry.get_version(model_name, reference)
    with _fetched(version, trust.variant_of(reference)) as candidate:
        load_engine = functools.partial(candidate.load_engine, threads=1)
        yield Challenger(stored_scores(candidate), load_engine, version.run_id), candidate.metadata.variant, version


def compare(challenger: Challenger, variant: Variant, champion: Version | None, options: GateOptions) -> Comparison | None:
    """Compares a challenger with the champion; None if there is no champion.

    If the variant has a latency budget, the engines of both are timed in turns. A champion that was scored on other data is scored
    on the challenger's.

    Raises:
        PromotionRefused: the challenger's data is needed and was not found.
    """
    if champion is None:
        return None
    limit = latency_limit(variant, options.latency_budget_ms)
    with _fetched(champion, variant) as loaded:
        ours, theirs = challenger.scores, stored_scores(loaded)
        if theirs.validation.digest != ours.validation.digest and theirs.validation.names == ours.validation.names:
            theirs = replace(theirs, validation=_score_again(loaded, champion, challenger, options.dataset))
        if limit is not None:
            our_latency, their_latency = latency.measure([challenger.load_engine(), loaded.load_engine(threads=1)])
            ours, theirs = replace(ours, latency=our_latency), replace(theirs, latency=their_latency)
    verdict = gate.compare(
        ours, theirs, latency_budget_ms=limit, quality_tolerance=options.quality_tolerance, serving=SERVING[variant]
    )
    return Comparison(ours, theirs, verdict)


@contextlib.contextmanager
def _fetched(version: Version, variant: str = "") -> Iterator[Bundle]:
    location = str(trust.require_source(version, variant))
    model_registry.require_bundle(version)
    with temporary_folder() as scratch:
        trust.fetch(location, scratch, version)
        yield bundle.load(scratch, is_verified=True)


def _score_again(loaded: Bundle, champion: Version, challenger: Challenger, dataset: str) -> Predictions:
    """A champion's predictions on the validation rows of its challenger.

    Raises:
        PromotionRefused: the challenger's data was not found.
    """
    rows = challenger.scores.validation
    try:
        options: dict[str, Any] = {}
        if not dataset:
            dataset, options = _recorded_source(challenger.run_id)
        with as_folder(dataset, **options) as folder:
            splits, info = load_dataset(folder, ("validation",))
            if info["digest"] != rows.digest:
                raise DataError(f"{dataset} has the digest {info['digest'][:12]}, the challenger's data {rows.digest[:12]}")
            engine = loaded.load_engine()
            probabilities, _ = engines.score(engine, splits["validation"]["text"][:])
    except (DataError, SourceUnreachable, StorageError) as error:
        raise PromotionRefused(
            f"version {champion.number} was scored on other data than its challenger, whose data is needed to compare them: give "
            "its Dataset folder, s3:// prefix or source by --dataset (make promote DATASET=)"
            f"; {error}"
        ) from error
    return replace(rows, probabilities=probabilities, **asdict(engine.computation))


def _recorded_source(run_id: str) -> tuple[str, dict[str, Any]]:
    """The source of the data of a model's run, and the options of its ``ingest``, as that step tagged the pipeline run.

    Raises:
        DataError: the run has no such tag.
    """
    tags = tracking.pipeline_run_tags(run_id)
    if not (source := tags.get(tracking.SOURCE_TAG)):
        raise DataError("its run in MLflow does not say where the data is")
    name = f"the tag {tracking.INGEST_TAG} of the run"
    options = strict_json.parse(tags.get(tracking.INGEST_TAG, "{}"), name)
    strict_json.require(options, dict[str, Any], name)
    known = inspect.signature(ingest).parameters
    for option, value in options.items():
        if option not in known or known[option].kind != inspect.Parameter.KEYWORD_ONLY:
            raise DataError(f"{name} has the unknown option {option[:100]!r}")
        strict_json.require(value, type(known[option].default), f"{name}: {option}")
    return source, options
