"""Clears the variables of the caller's shell that the tests depend on; each test sets what it needs.

Importing it is enough, and has to come before the libraries that read these variables once, when they are imported.
"""

from __future__ import annotations

import os

PREFIXES = ("AWS_", "GOEMOTIONS_", "HF_", "KF_PIPELINES_", "KUBE", "MLFLOW_", "TRANSFORMERS_")

for name in [name for name in os.environ if name.startswith(PREFIXES)]:
    del os.environ[name]
