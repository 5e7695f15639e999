"""Training runs: the loop, its losses and optimizers, checkpoints and distillation."""
