"""Cost of a compiled program on chips that this machine need not have: memory, FLOPs, collectives and expected time."""
