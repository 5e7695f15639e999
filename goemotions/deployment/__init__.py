"""Registered versions on KServe InferenceServices."""
