"""The predictor server: the only place that imports kserve."""
