"""What a compiled program will cost on chips that need not exist here: memory, FLOPs, collectives and expected time."""
