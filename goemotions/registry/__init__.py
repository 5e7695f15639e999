"""Bundles and their versions in MLflow: tracking, registration and promotion."""
