"""Imports single modules of kserve: its package imports pandas, FastAPI and the client of Kubernetes, which serving does not need."""

from __future__ import annotations

import importlib.util
import sys
from typing import Any


def install() -> None:
    """Makes the package load itself when something of it is used, and not when one of its modules is imported."""
    spec = importlib.util.find_spec("kserve")
    if "kserve" in sys.modules or spec is None or spec.loader is None:
        return
    module, loader = importlib.util.module_from_spec(spec), spec.loader

    def load(name: str) -> Any:
        if name.startswith("__") or "__getattr__" not in vars(module):
            raise AttributeError(f"module 'kserve' has no attribute {name!r}", name=name, obj=module)
        del vars(module)["__getattr__"]
        loader.exec_module(module)
        return getattr(module, name)

    vars(module)["__getattr__"] = load
    sys.modules["kserve"] = module
