"""Wiring: the order of the steps, their parameters and their placement."""
