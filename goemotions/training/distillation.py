"""Ensemble distillation: teachers are trained first, and their mean probability becomes a share of each target.

The soft targets are those of Hinton et al. 2015 (arXiv 1503.02531); teachers of the student's own architecture are those of
Furlanello et al. 2018 (born-again networks, arXiv 1805.04770).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from goemotions.models import engines
from goemotions.models.profiles import Profile
from goemotions.models.records import RunRecord
from goemotions.storage import store
from goemotions.training import distributed
from goemotions.training.batches import TokenizedSplit
from goemotions.training.loop import TrainingLoop

# Trains a profile from a seed; checkpoints go to a location.
FitNetwork = Callable[[Profile, int, TokenizedSplit, str], TrainingLoop]


def teach(
    fit: FitNetwork, profile: Profile, train: TokenizedSplit, seed: int, location: str
) -> tuple[TokenizedSplit, list[RunRecord]]:
    """Trains the teachers of a profile one after the other, and blends their probabilities into the targets.

    Args:
        fit: trains one network.
        profile: the student's.
        train: the train split; also what each teacher is trained on.
        seed: the student's; teachers have the following ones.
        location: folder or S3 prefix of the student's checkpoints, below which those of the teachers go; empty for none.

    Returns:
        The train split with blended targets, float32 [n, labels], and the record of each teacher; of a profile without teachers, the
        split as it is.
    """
    hyperparameters = profile.hyperparameters
    if not hyperparameters.teachers:
        return train, []
    teacher_profile = profile.changed(teachers=0, epochs=hyperparameters.teacher_epochs)
    probabilities, records = [], []
    for number in range(1, hyperparameters.teachers + 1):
        teacher_location = location and store.join(location, f"teacher-{number}")
        teacher = fit(teacher_profile, seed + number, train, teacher_location)
        score = functools.partial(engines.score_ids, teacher.engine(teacher.precision), train.rows)
        probabilities.append(distributed.on_first(score))
        records.append(teacher.record())
    weight = hyperparameters.distillation_weight
    blended = (1 - weight) * train.labels + weight * np.mean(probabilities, axis=0)
    return TokenizedSplit(train.rows, blended.astype(np.float32)), records
