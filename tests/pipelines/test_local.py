"""The end of a run on this machine by a signal."""

import functools
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from goemotions.errors import ModelError
from pipelines import local
from tests.support import interruptible

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_run_that_is_ended_leaves_no_step(number: signal.Signals, tmp_path: Path) -> None:
    command = [sys.executable, "-m", interruptible.__name__, str(tmp_path)]
    # If the tests run in the background, SIGINT is ignored in child processes by default.
    heed = functools.partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True, preexec_fn=heed)
    while not (tmp_path / "started-1").exists():
        assert process.poll() is None
        time.sleep(0.1)
    process.send_signal(number)
    output = "".join(process.communicate(timeout=60))
    assert process.returncode == 128 + number
    assert "SUCCESS" not in output
    assert not [one for one in psutil.process_iter() if str(tmp_path) in " ".join(_arguments(one))]
    assert not (tmp_path / "started-2").exists()


@pytest.mark.fault("weights-unusable")
def test_weights_that_cannot_be_used_are_refused_before_the_first_step(weights: Callable[[str], str], tmp_path: Path) -> None:
    """The others would be trained first, for hours."""
    folder = Path(shutil.copytree(weights("distilbert"), tmp_path / "weights"))
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(ModelError, match=r"weights holds no usable weights: pickles and scripts are never read"):
        local.run(tmp_path / "stack", data="sample", models=["minilm", "distilbert"], weights={"distilbert": str(folder)})
    assert not (tmp_path / "stack").exists()


@pytest.mark.parametrize("error", ["errors.DataError", "registry.mlflow_client.Absent"])
def test_the_error_of_a_step_is_that_of_its_run(error: str, tmp_path: Path) -> None:
    """KFP itself says only that a step failed."""
    module, _, name = error.rpartition(".")
    code = f"from goemotions.{module} import {name}\nraise {name}('what is wrong: what to do')"
    with (tmp_path / "last.log").open("w") as log:
        subprocess.run([sys.executable, "-c", code], cwd=ROOT, stderr=log, check=False)
    assert str(local.failure(tmp_path / "last.log")) == f"what is wrong: what to do (the log is {tmp_path / 'last.log'})"


def _arguments(process: psutil.Process) -> list[str]:
    try:
        return process.cmdline()
    except psutil.Error:
        return []
