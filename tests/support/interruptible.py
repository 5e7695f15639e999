"""A run of two steps, one after the other, as ``pipelines.kfp_local`` runs them; each leaves a file and takes a minute."""

import sys
from pathlib import Path

from kfp import dsl, local

from pipelines.kfp_local import stop_on_interrupt


@dsl.component
def step(folder: str, number: int) -> None:
    import time
    from pathlib import Path

    (Path(folder) / f"started-{number}").touch()
    time.sleep(60)


@dsl.pipeline
def two_steps(folder: str) -> None:
    with dsl.ParallelFor([1, 2], parallelism=1) as number:
        step(folder=folder, number=number)


if __name__ == "__main__":
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(Path(sys.argv[1]) / "root"))
    with stop_on_interrupt():
        two_steps(folder=sys.argv[1])
