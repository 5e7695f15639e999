"""Metrics, intervals, calibration and thresholds: functions of arrays, with no knowledge of files or models."""
