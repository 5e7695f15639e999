"""The name that bundles of before give as their loader: `mlflow.pyfunc.load_model` imports it."""

from goemotions.prediction.predictor import _load_pyfunc as _load_pyfunc
