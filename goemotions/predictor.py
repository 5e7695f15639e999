"""The loader that older bundles name in their MLmodel: ``mlflow.pyfunc.load_model`` imports it."""

from goemotions.prediction.predictor import _load_pyfunc as _load_pyfunc
