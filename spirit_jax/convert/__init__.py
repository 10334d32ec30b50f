"""Released PyTorch checkpoints to our checkpoint directory and back: `convert.py` runs it, one table a component says what maps to what."""
