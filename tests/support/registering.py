"""A process that registers pipeline runs, one after the other, and prints when each is done; for the tests that kill it at random.

Arguments: the Dataset folder, the store, the name of the registered model, and ``run=folder`` for each run.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from goemotions.errors import WorkflowError
from goemotions.registry import registration
from goemotions.registry.candidates import CandidateArtifacts
from goemotions.storage import lock

# If a process is killed while it holds the lock, the others wait for this long.
lock.LEASE_SECONDS = 10.0


def main(dataset: str, store: str, model: str, *jobs: str) -> None:
    for run, _, folder in (job.partition("=") for job in jobs):
        parts = {"cpu": [CandidateArtifacts.below(Path(folder), "cpu")]}
        try:
            registration.register(Path(dataset), parts, store=store, pipeline_run=run, model_name=model, auto_promote=True)
        except WorkflowError as error:
            print(f"failed {run} {error}", flush=True)
        else:
            print(f"done {run}", flush=True)


if __name__ == "__main__":
    logging.disable(logging.INFO)
    main(*sys.argv[1:])
