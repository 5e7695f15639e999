"""Measurements behind the choices, each a command."""
