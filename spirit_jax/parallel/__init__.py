"""Mesh and sharding rules, shared by training, generation, encoding and conversion."""
