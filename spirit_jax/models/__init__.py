"""Pure networks: arrays in, arrays out; no files and no configuration parsing."""
