"""Programs of the machine that some tests need."""

from __future__ import annotations

import os
import shutil
from typing import NoReturn

import pytest


def program(*names: str, why: str) -> str:
    """The first of these programs that is installed; without one, the test is skipped by ``missing``."""
    return next((path for path in map(shutil.which, names) if path), None) or missing(f"{names[0]} is not installed: {why}")


def missing(message: str) -> NoReturn:
    """Skips the test, or fails it if ``CI`` is set, because no test may be skipped there."""
    if os.environ.get("CI"):
        pytest.fail(message)
    pytest.skip(message)
