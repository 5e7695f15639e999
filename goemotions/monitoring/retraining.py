"""When a model is trained again: if there is new data, drift, a champion that is too old, or a reason that a person gives.

The versions of the registered model are the memory. A version has the digest of its data and the reasons of its training as tags,
whether it became the champion or not. So a reason that has led to a version which the gate refused does not train again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from goemotions import defaults, strict_json
from goemotions.errors import BadArgument, ModelError
from goemotions.evaluation import drift
from goemotions.evaluation.drift import DriftReport
from goemotions.registry import model_registry, promotion, tracking
from goemotions.registry.bundle import VARIANTS
from goemotions.registry.model_registry import Version

DAY = 86_400.0
# In characters, of what a person gives as a reason; of a longer one the beginning is shown.
LONGEST_REASON = 500
# Of the MLflow run of a pipeline run, beside ``tracking.DECISION_TAG``: the kinds of the reasons, and the decision in words.
KINDS_TAG, SENTENCE_TAG = "retraining.reasons", "retraining.why"

Kind = Literal["first", "data", "drift", "age", "manual"]


@dataclass(frozen=True)
class Reason:
    """Why a model is trained.

    Attributes:
        kind: ``first`` if there is no champion, or which of the four reasons.
        detail: the reason in words.
        key: what distinguishes it from another reason of its kind: the data's digest, the drift report, or the words of a person.
    """

    kind: Kind
    detail: str
    key: str = ""


@dataclass(frozen=True)
class Decision:
    """The reasons to train, none if the run ends here, and what was looked at and is no reason.

    ``at`` is when it was decided, in seconds since the epoch; 0 in decisions from before that was recorded.
    """

    reasons: Sequence[Reason]
    dismissed: Sequence[str] = ()
    at: float = 0.0

    @property
    def train(self) -> bool:
        return bool(self.reasons)

    @property
    def kinds(self) -> str:
        """The kinds of the reasons, separated by commas; empty if there are none."""
        return ", ".join(reason.kind for reason in self.reasons)

    def __str__(self) -> str:
        if self.train:
            return f"training, because {'; '.join(reason.detail for reason in self.reasons)}"
        return f"skipped: {'; '.join(self.dismissed)}"

    def to_json(self) -> str:
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Decision:
        content = strict_json.parse(text, "the decision")
        strict_json.require(content, cls, "the decision")
        reasons = [Reason(one["kind"], one["detail"], one.get("key", "")) for one in content["reasons"]]
        return cls(reasons, content.get("dismissed", ()), content.get("at", 0.0))


@dataclass(frozen=True)
class Policy:
    """Limits of the reasons.

    Raises:
        BadArgument: one is no number of days.

    Attributes:
        max_age_days: a champion that is as old is a reason, unless a version is younger; 0: age is no reason.
        drift_cooldown_days: on unchanged data, drift is a reason only if each version is older that was trained on this data because of
            drift, or that did not become the champion.
    """

    max_age_days: float = defaults.MAX_AGE_DAYS
    drift_cooldown_days: float = defaults.DRIFT_COOLDOWN_DAYS

    def __post_init__(self) -> None:
        for name, days in vars(self).items():
            # Against a negative number, or one that is none, every champion is too old.
            if not 0 <= days < math.inf:
                raise BadArgument(f"{name} is a number of days, not {days:g}")


@dataclass(frozen=True)
class _History:
    """The champions and all versions of a registered model, at a time in seconds since the epoch."""

    champions: list[Version]
    versions: list[Version]
    now: float

    @classmethod
    def read(cls, model_name: str, now: float) -> _History:
        try:
            versions = model_registry.versions(model_name)
        except ModelError:
            return cls([], [], now)
        champions = (promotion.champion(model_name, variant) for variant in VARIANTS)
        return cls([champion for champion in champions if champion], versions, now)

    def days(self, version: Version) -> float:
        """Its age since the decision to train it, which the clock of this decision has made, too; otherwise by that of MLflow.

        If this clock is years ahead of MLflow's, each new version is as old, and would be a reason to train the next one.
        """
        decided = _decision(version).at
        return (self.now - (decided if 0 < decided <= self.now else version.created)) / DAY

    def trained_for(self, kind: Kind, key: str) -> Version | None:
        """The newest version that was trained for a reason."""
        return self.newest([version for version in self.versions if (kind, key) in _recorded(version)])

    def attempts(self) -> list[Version]:
        """The versions that were trained because of drift, or did not become the champion."""
        champions = {champion.number for champion in self.champions}
        return [one for one in self.versions if one.number not in champions or "drift" in {kind for kind, _ in _recorded(one)}]

    def newest(self, versions: Sequence[Version]) -> Version | None:
        return max(versions, key=lambda version: version.created, default=None)


def decide(
    digest: str,
    report: DriftReport | None = None,
    manual: str = "",
    *,
    model_name: str = defaults.MODEL_NAME,
    policy: Policy = Policy(),
    now: float | None = None,
) -> Decision:
    """Decides whether a model is trained again.

    Args:
        digest: of the Dataset that it would be trained on.
        report: the newest drift report; None if there is none.
        manual: a person's reason in words, or empty; the same words train once.
        model_name: name of the registered model.
        policy: limits.
        now: the time in seconds since the epoch; None for the clock's.

    Raises:
        TrackingError: MLflow does not respond.
    """
    now = time.time() if now is None else now
    history = _History.read(model_name, now)
    if not history.champions:
        return Decision([Reason("first", f"{model_name} has no champion")], at=now)
    considered = (
        _data(history, digest),
        _drift(history, digest, report, policy.drift_cooldown_days),
        _age(history, policy.max_age_days),
        *([_manual(history, manual)] if manual else []),
    )
    reasons = [one for one in considered if isinstance(one, Reason)]
    return Decision(reasons, [one for one in considered if not isinstance(one, Reason)], now)


def decide_run(pipeline_run: str, digest: str, drift_location: str, manual: str, model_name: str, policy: Policy) -> Decision:
    """Decides for a pipeline run and logs the decision to its MLflow run, which ends if nothing is trained.

    A step that is retried decides nothing again: it returns what was logged.

    Args:
        pipeline_run: id of the pipeline run.
        digest, manual, model_name, policy: as ``decide`` takes them.
        drift_location: folder or S3 prefix of the newest drift report; nothing needs to be there.

    Raises:
        TrackingError: MLflow does not respond.
    """
    run = tracking.get_or_create_run(pipeline_run)
    if logged := tracking.run_tags(run.run_id).get(tracking.DECISION_TAG):
        return Decision.from_json(logged)
    report = drift.find_report(drift_location)
    decision = decide(digest, report, manual, model_name=model_name, policy=policy)
    run.set_tags({tracking.DECISION_TAG: decision.to_json(), KINDS_TAG: decision.kinds or "none", SENTENCE_TAG: str(decision)})
    run.log_parameters({"retraining_reasons": decision.kinds or "none"})
    if not decision.train:
        run.finish()
    return decision


def _data(history: _History, digest: str) -> Reason | str:
    others = [champion for champion in history.champions if _digest(champion) != digest]
    if not others:
        return f"the data is unchanged since version {history.champions[0].number} (digest {digest[:12]})"
    trained = history.newest([version for version in history.versions if _digest(version) == digest])
    if trained:
        return f"the data (digest {digest[:12]}) is that of version {trained.number}, which did not replace version {others[0].number}"
    return Reason("data", f"the data is new: digest {digest[:12]}, the champion's is {_digest(others[0])[:12]}", digest)


def _drift(history: _History, digest: str, report: DriftReport | None, cooldown_days: float) -> Reason | str:
    if report is None:
        return "there is no drift report that can be read: no traffic was compared, or the report is damaged"
    subject = f"the drift report {f'up to {report.end}' if report.end else f'of {report.source}'}"
    champion = next((one for one in history.champions if one.number == report.version), None)
    if champion is None:
        return f"{subject} is of version {report.version}, which is no champion"
    if report.ended is not None and report.ended < champion.created:
        return (
            f"{subject} is from before version {report.version} was registered: it is of another registry, or the clocks differ"
        )
    if not report.drifted:
        return f"{subject} has no drift ({report.rows:,} texts)"
    # Batch outputs have no time: another report is one with other figures.
    key = f"{report.version} {report.end or hashlib.sha256(repr(list(report.tests)).encode()).hexdigest()[:12]}"
    if trained := history.trained_for("drift", key):
        return f"version {trained.number} was trained because of {subject}"
    on_this_data = history.newest([version for version in history.attempts() if _digest(version) == digest])
    if on_this_data and (days := history.days(on_this_data)) < cooldown_days:
        return (
            f"{subject} has drift, but version {on_this_data.number} was trained on this data {days:.0f} days ago, which is less than "
            f"{cooldown_days:g}"
        )
    return Reason("drift", f"{subject} has drift ({len(report.alarms)} of {len(report.tests)} tests)", key)


def _age(history: _History, max_age_days: float) -> Reason | str:
    oldest, newest = min(history.champions, key=lambda champion: champion.created), history.newest(history.versions)
    days = history.days(oldest)
    if days < 0:
        return (
            f"version {oldest.number} was registered {-days:.0f} days after this run by the clock of MLflow: the clocks differ"
        )
    if not max_age_days or days < max_age_days:
        return f"version {oldest.number} is {days:.0f} days old"
    if newest and history.days(newest) < max_age_days:
        return (
            f"version {oldest.number} is {days:.0f} days old, but version {newest.number}, which did not replace it, is "
            f"{history.days(newest):.0f} days old"
        )
    return Reason("age", f"version {oldest.number} is {days:.0f} days old: the limit is {max_age_days:g}")


def _manual(history: _History, manual: str) -> Reason | str:
    # MLflow cuts long tags.
    key = manual if len(manual) <= LONGEST_REASON else hashlib.sha256(manual.encode()).hexdigest()
    if trained := history.trained_for("manual", key):
        return f"version {trained.number} was trained for the reason {manual[:LONGEST_REASON]!r}: give another one"
    return Reason("manual", f"the reason given is {manual[:LONGEST_REASON]!r}", key)


def _digest(version: Version) -> str:
    return version.tags.get("dataset_digest", "")


def _recorded(version: Version) -> set[tuple[str, str]]:
    """Kind and key of the reasons for which a version was trained."""
    return {(reason.kind, reason.key) for reason in _decision(version).reasons}


def _decision(version: Version) -> Decision:
    """The decision to train a version; one without reasons for versions that nobody decided on."""
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return Decision.from_json(version.tags[tracking.DECISION_TAG])
    return Decision(())
