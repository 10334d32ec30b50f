"""One training run, from its config to its last step: what the command `train` does."""
