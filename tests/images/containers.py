"""The built images, run the way a restricted namespace runs them."""

from __future__ import annotations

import functools
import os
import subprocess
from typing import Any

import pytest

# A uid that no image defines, a read-only root, and no privileges. The tests run the health check themselves.
RESTRICTED = [
    *("--user", "12345:0", "--read-only", "--tmpfs", "/tmp"),
    *("--cap-drop", "ALL", "--security-opt", "no-new-privileges", "--no-healthcheck"),
]


@functools.cache
def engine() -> str:
    """docker or podman, whichever is running; buildah builds images but runs none."""
    named = os.environ.get("ENGINE")
    for candidate in [named] if named in ("docker", "podman") else ["docker", "podman"]:
        try:
            if subprocess.run([candidate, "info"], capture_output=True, check=False).returncode == 0:
                return candidate
        except FileNotFoundError:
            continue
    pytest.fail("neither docker nor podman is running: start one of them to test the images")


def engine_output(*arguments: str) -> str:
    """The output of an engine command; its exit code must be 0."""
    done = subprocess.run([engine(), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{' '.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout.strip()


@functools.cache
def image(name: str) -> str:
    """The full name of this commit's image; the test fails if it is not built."""
    full_name = subprocess.run(["images/image.sh", "name", name], capture_output=True, text=True, check=True).stdout.strip()
    if subprocess.run([engine(), "image", "inspect", full_name], capture_output=True, check=False).returncode:
        pytest.fail(f"{engine()} has no image {full_name}: build this commit's by `make images`")
    return full_name


def run(name: str, *command: str, options: tuple[str, ...] = ("--network", "none")) -> str:
    """The output of a command in a restricted container."""
    return engine_output("run", "--rm", *RESTRICTED, *options, "--entrypoint", command[0], image(name), *command[1:])


def inspect(kind: str, name: str, template: str) -> Any:
    return engine_output(kind, "inspect", "--format", template, name)
