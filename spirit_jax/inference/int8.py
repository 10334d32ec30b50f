"""Weights in 8 bits for generation (`models.quantized`). Norms stay in floats."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spirit_jax.models.quantized import CONTRACTED, is_quantized, quantize


def quantize_leaf(path: tuple, weight: Float[Array, "..."]) -> Any:
    """Return the 8-bit form of the parameter at a path of the tree, or of one layer of it; a norm stays as it is."""
    name = path[-1].key
    return quantize(name, weight) if name in CONTRACTED else weight


def dequantize(tree: Any, dtype: Any, after: Array | None = None) -> Any:
    """Return the tree with every array in `dtype`, 8-bit ones multiplied by their scales.

    Args:
        after: convert 8-bit weights only once this array has been computed. Unrolled layers pass their input; otherwise
            XLA converts all layers before a decode loop, or when a prefill starts, and keeps them in memory.
    """
    # Both bounds leave every integer as it is, because none is below -127, but XLA does not know that. XLA:CPU drops an
    # optimization_barrier.
    low = None if after is None else jnp.where(jnp.ravel(after)[0] > 0, -127, -128).astype(jnp.int8)

    def leaf(node: Any) -> Array:
        if not is_quantized(node):
            return node.astype(dtype)
        integers = node["int8"] if low is None else jnp.maximum(node["int8"], low)
        return integers.astype(dtype) * node["scale"].astype(dtype)

    return jax.tree.map(leaf, tree, is_leaf=is_quantized)
