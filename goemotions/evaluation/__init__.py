"""Scored splits and what is concluded from them: metrics, thresholds, winners and the promotion gate."""
