"""Rollouts: a version gets the traffic of a service in steps, each of which is analysed."""
