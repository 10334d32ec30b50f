"""Comparison of both sides of a conversion: every tensor, and the outputs of the networks."""
