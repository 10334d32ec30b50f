"""spirit_jax: train, convert, run and study Spirit LM in JAX."""
