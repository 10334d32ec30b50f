"""Implementations for CPUs, each with the signature of its formula in `spirit_jax.kernels.reference`.

They were measured with XLA:CPU on two cores with AVX-512. What makes them faster is mostly the order of dimensions,
because XLA:CPU copies operands that it does not like, and working sets that stay in a core's cache.
"""
