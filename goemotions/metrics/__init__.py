"""Metrics, bootstrap intervals, calibration and thresholds: functions of NumPy arrays; NumPy is all they import."""
