"""What a step used: its own processor time and that of its children, one step after the other, across attempts."""

import subprocess
import sys
import time
from pathlib import Path

import pytest

from goemotions import usage
from goemotions.usage import Usage

BURN = "import time\nwhile time.process_time() < 0.3: pass"


def burn(seconds: float) -> None:
    start = time.process_time()
    while time.process_time() - start < seconds:
        pass


def test_a_step_counts_its_children_and_ends_where_the_next_begins(tmp_path: Path) -> None:
    usage.end_step(tmp_path, "before")
    burn(0.1)
    subprocess.run([sys.executable, "-c", BURN], check=True)
    usage.end_step(tmp_path, "first")
    usage.end_step(tmp_path, "second")
    steps = usage.read(tmp_path)
    assert list(steps) == ["before", "first", "second"]
    assert steps["first"].cpu_seconds >= 0.4
    assert steps["first"].wall_seconds >= 0.4
    assert steps["first"].memory_gb_seconds > 0
    assert (steps["first"].gpu_seconds, steps["first"].device) == (0.0, "cpu")
    assert 0 <= steps["second"].cpu_seconds < 0.1


def test_a_process_counts_from_its_start(tmp_path: Path) -> None:
    code = f"{BURN}\nfrom goemotions import usage, storage\nfrom pathlib import Path\nusage.end_step(Path({str(tmp_path)!r}), 'one')"
    subprocess.run([sys.executable, "-c", code], check=True)
    assert usage.read(tmp_path)["one"].cpu_seconds >= 0.3
    assert usage.read(tmp_path)["one"].wall_seconds >= 0.3


def test_a_resumed_step_counts_its_earlier_attempts_once(tmp_path: Path) -> None:
    usage.end_step(tmp_path, "before")
    for checkpoint in (Usage(100, 200, 50), Usage(300, 600, 150), Usage(200, 400, 100)):
        usage.continue_from(checkpoint)
    usage.end_step(tmp_path, "train")
    usage.end_step(tmp_path, "next")
    steps = usage.read(tmp_path)
    assert 600 <= steps["train"].cpu_seconds < 610
    assert steps["train"].gpu_seconds == 150
    assert steps["next"].cpu_seconds < 10


def test_a_step_on_a_gpu_holds_it_from_its_start_to_its_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    time.sleep(0.05)
    usage.end_step(tmp_path, "on the CPU")
    monkeypatch.setattr(usage, "_gpu", lambda: "NVIDIA L4")
    usage.end_step(tmp_path, "first")
    time.sleep(0.05)
    usage.end_step(tmp_path, "second")
    steps = usage.read(tmp_path)
    assert (steps["on the CPU"].gpu_seconds, steps["on the CPU"].device) == (0, "cpu")
    for name in ("first", "second"):
        assert steps[name].gpu_seconds == pytest.approx(steps[name].wall_seconds)
        assert steps[name].device == "NVIDIA L4"


@pytest.mark.parametrize("content", [None, "", "[]", '{"train": 1}', '{"train": {"cpu_seconds": 1, "unknown": 2}}'])
def test_a_folder_of_another_version_is_read(tmp_path: Path, content: str | None) -> None:
    if content is not None:
        (tmp_path / usage.FILE).write_text(content)
    expected = {"train": Usage(cpu_seconds=1)} if content and "unknown" in content else {}
    assert usage.read(tmp_path) == expected
