"""Corpora, unit records, and the way from records to training batches: NumPy only, loader processes never start JAX."""
