"""Weights in 8 bits: integers in -127..127 and one scale for each output channel. Products stay in floats."""

from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_CONTRACTED = {
    "embed_tokens": (-1,),
    "lm_head": (-2,),
    "q_proj": (-3,),
    "k_proj": (-3,),
    "v_proj": (-3,),
    "o_proj": (-3, -2),
    "gate_proj": (-2,),
    "up_proj": (-2,),
    "down_proj": (-2,),
}
"""Axes of each weight that share a scale: those that its product sums over, counted from the last axis, so that they
hold for one layer and for stacked layers. The embedding has a scale for each token. Norms stay in floats."""


def quantize_leaf(path: tuple, weight: Float[Array, "..."]) -> Any:
    """Return the 8-bit form of the parameter at a path of the tree, or of one layer of it; a norm stays as it is."""
    axes = _CONTRACTED.get(path[-1].key)
    return weight if axes is None else _quantize(weight, axes)


def _quantize(weight: Float[Array, "..."], axes: tuple[int, ...]) -> dict[str, Array]:
    """Return integers and scales of one weight. The largest value of each channel becomes 127 or -127."""
    weight = jnp.asarray(weight, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(weight), axes, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
    return {"int8": jnp.round(weight / scale).astype(jnp.int8), "scale": scale}


def _is_quantized(node: Any) -> bool:
    return isinstance(node, dict) and "int8" in node


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
        if not _is_quantized(node):
            return node.astype(dtype)
        integers = node["int8"] if low is None else jnp.maximum(node["int8"], low)
        return integers.astype(dtype) * node["scale"].astype(dtype)

    return jax.tree.map(leaf, tree, is_leaf=_is_quantized)
