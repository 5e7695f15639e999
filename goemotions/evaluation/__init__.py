"""Scored splits, and what is derived from them: metrics, thresholds, winners and the promotion gate."""
