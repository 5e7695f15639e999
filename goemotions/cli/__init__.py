"""The command line `goemotions`."""
