"""Train state, optimiser, step, loop, metrics and checkpoints of a run."""
