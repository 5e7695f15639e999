"""From the texts of all requests to batches of the engine."""
