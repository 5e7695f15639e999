"""Sources become a validated Dataset folder."""
