"""Drift: the traffic of a served version against the reference that its bundle carries."""
