"""Train state, objective, optimizer step, loop, metrics and checkpoints of a run."""
