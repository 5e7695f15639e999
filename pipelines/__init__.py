"""The pipelines: the order of the steps, their parameters, and how they run on this machine and on a cluster."""
