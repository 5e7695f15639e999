"""After the deployment: drift of the traffic, reasons to train again, and the analysis of a rollout."""
