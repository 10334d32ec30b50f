"""One module for each network: reads the released config, and holds the mapping table and the JAX shapes."""
