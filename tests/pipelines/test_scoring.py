"""The batch scoring pipeline: its compiled form, and the same definition run step by step on the local stack."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from kfp import local

from goemotions.storage import store
from pipelines import placement, scoring
from pipelines.package import compile_pipeline
from tests.support.documents import yaml_documents

PLACE = "s3://goemotions/tests/batch"


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Any], dict[str, Any]]:
    path = tmp_path_factory.mktemp("batch") / "scoring.yaml"
    compile_pipeline(path, "goemotions-trainer:abc", "abc", scoring.scoring)
    spec, platform = yaml_documents(path.read_text())
    return spec, platform["platforms"]["kubernetes"]["deploymentSpec"]["executors"]


def test_every_step_has_an_image_credentials_and_a_timeout(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    spec, platform = compiled
    parameters = spec["root"]["inputDefinitions"]["parameters"]
    assert parameters["image"]["defaultValue"] == "goemotions-trainer:abc"
    assert [name for name, one in parameters.items() if not one.get("description")] == []
    assert {name for name, one in parameters.items() if not one.get("isOptional")} == {"input", "output"}
    steps = {"exec-plan-scoring", "exec-score", "exec-finish-scoring"}
    assert set(platform) == set(spec["deploymentSpec"]["executors"]) == steps
    for name in steps:
        container = spec["deploymentSpec"]["executors"][name]["container"]
        assert "{{$.inputs.parameters" in container["image"]
        assert "pip install" not in str(container)
        assert container["resources"]["resourceMemoryLimit"]
        assert {pair["envVar"] for pair in platform[name]["secretAsEnv"][0]["keyToEnv"]} == set(placement.VARIABLES)
        assert int(platform[name]["activeDeadlineSeconds"]) > 0


def test_shares_are_scored_in_parallel_and_the_last_step_waits_for_all(compiled: tuple[dict[str, Any], dict[str, Any]]) -> None:
    tasks = compiled[0]["root"]["dag"]["tasks"]
    loop = next(task for task in tasks.values() if "parameterIterator" in task)
    assert "iteratorPolicy" not in loop
    assert loop["dependentTasks"] == ["plan-scoring"]
    (waited,) = tasks["finish-scoring"]["dependentTasks"]
    assert tasks[waited] is loop


@pytest.fixture
def stored(whole: Path, stack: Path, tmp_path: Path) -> str:
    folder = tmp_path / "in"
    folder.mkdir()
    pq.write_table(pa.table({"n": range(70), "body": ["a lake", "storm"] * 35}), folder / "a.parquet")
    store.put(folder, f"{PLACE}/in/")
    store.put(whole, f"{PLACE}/bundle/")
    return f"{PLACE}/in/"


# KFP warns that names and resources have no effect on this machine.
@pytest.mark.filterwarnings("ignore:.*have no effect", "ignore:You may be attem:RuntimeWarning")
def test_the_pipeline_scores_s3_to_s3(stored: str, tmp_path: Path) -> None:
    local.init(local.SubprocessRunner(use_venv=False), pipeline_root=str(tmp_path / "runs"))
    output = f"{PLACE}/out/"
    for _ in range(2):
        scoring.scoring(
            input=stored, output=output, version=f"{PLACE}/bundle/", column="body", shard_rows=15, pods=2, threads=1
        )
    scored = pq.read_table(store.fetch(output, tmp_path / "out"))
    assert scored["n"].to_pylist() == list(range(70))
    assert sorted(path.name for path in (tmp_path / "out").glob("part-*")) == [f"part-{n:06d}.parquet" for n in range(5)]
    assert (tmp_path / "out" / "_scored.json").exists()
