"""Ensemble distillation: teachers are trained first, and their mean probability becomes a share of each target.

The soft targets are those of Hinton et al. 2015 (arXiv 1503.02531); teachers of the student's own architecture are those of
Furlanello et al. 2018 (born-again networks, arXiv 1805.04770). Teachers of other profiles are in ``teachers.py``.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import numpy as np

from goemotions.models import engines
from goemotions.models.profiles import Profile
from goemotions.models.records import RunRecord
from goemotions.storage import store
from goemotions.training import distributed
from goemotions.training.batches import TokenizedSplit
from goemotions.training.loop import TrainingLoop

Rows = Sequence[list[int]]
# Trains a profile from a seed; checkpoints go to a location.
FitNetwork = Callable[[Profile, int, TokenizedSplit, str], TrainingLoop]


def train_teachers(
    fit: FitNetwork, profile: Profile, train: TokenizedSplit, transfer: Rows, seed: int, location: str
) -> tuple[np.ndarray | None, list[RunRecord]]:
    """Trains a profile's own teachers one after the other.

    Args:
        fit: trains one network.
        profile, seed: the student's; teachers have the following seeds.
        train: the train split, which each teacher is trained on.
        transfer: token ids of the m texts of the transfer set.
        location: folder or S3 prefix of the student's checkpoints, below which those of the teachers go; empty for none.

    Returns:
        Their mean probabilities of the train split and the transfer set, float32 [n + m, labels], and the record of each; None if
        the profile has none.
    """
    probabilities, records = [], []
    for number in range(1, profile.hyperparameters.teachers + 1):
        teacher_location = location and store.join(location, f"teacher-{number}")
        teacher = fit(profile.as_teacher(), seed + number, train, teacher_location)
        probabilities.append(score(teacher, [*train.rows, *transfer]))
        records.append(teacher.record())
    return np.mean(probabilities, axis=0) if probabilities else None, records


def score(teacher: TrainingLoop, rows: Rows) -> np.ndarray:
    """Returns a teacher's probabilities of n tokenized texts, float32 [n, labels], in every process."""
    return distributed.on_first(functools.partial(engines.score_ids, teacher.engine(teacher.precision), rows))


def blend(profile: Profile, train: TokenizedSplit, transfer: Rows, probabilities: np.ndarray) -> TokenizedSplit:
    """Returns what a student is trained on, from the teachers' mean probabilities, float32 [n + m, labels].

    It is the n rows of train with targets of which a share is that mean, and the m texts of the transfer set, whose target it is.
    """
    weight = profile.hyperparameters.distillation_weight
    of_train, of_transfer = np.split(probabilities, [len(train.rows)])
    targets = np.concatenate([(1 - weight) * train.labels + weight * of_train, of_transfer])
    return TokenizedSplit([*train.rows, *transfer], targets.astype(np.float32))
