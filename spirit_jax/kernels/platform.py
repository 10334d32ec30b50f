"""Which platform a function is being compiled for."""

import jax


def platform() -> str:
    """`cpu`, `gpu` or `tpu`: the platform of the mesh in force (`jax.set_mesh`), else of JAX's first device.

    The mesh comes first so that a program compiled ahead of time on a CPU for a TPU gets what a TPU gets.
    """
    device = jax.sharding.get_abstract_mesh().abstract_device
    return jax.default_backend() if device is None else device.platform
