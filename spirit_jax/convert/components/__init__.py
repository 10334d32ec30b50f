"""The networks, one module each: reading the released config, the mapping table for both directions, and the JAX shapes."""
