"""Conversion of released PyTorch checkpoints to spirit_jax checkpoint directories and back, bit for bit.

`formats` reads and writes files, `components` holds one mapping table for each network, `verification` compares both
sides, and `plans` and `jobs` apply the tables to whole trees. `command` is the command line.
"""
