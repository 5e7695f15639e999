"""The predictor server: one bundle behind V1, V2 and gRPC. The only place that imports kserve."""

from goemotions.serving import lazy_kserve

lazy_kserve.install()
