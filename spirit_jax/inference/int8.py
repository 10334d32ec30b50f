"""Weights in 8 bits: each output channel of a matrix as integers in -127..127 and one scale; products stay in floats."""

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
"""Axes of each weight, of one layer or of all stacked, that share a scale: those that a product sums over. The embedding has a
scale for each token. Norms stay as they are."""


def _is_quantised(node: Any) -> bool:
    return isinstance(node, dict) and "int8" in node


def dense(tree: Any, dtype: Any, after: Array | None = None) -> Any:
    """The tree with every array in `dtype`, int8 ones multiplied by their scales.

    Args:
        after: int8 weights become dense only when this has been computed. For layers that stand apart, what each gets: XLA
            would make all of them dense before a decode loop, or at a prefill's start, and keep them.
    """
    # No integer is below -127, so neither bound changes one, but XLA does not know; XLA:CPU drops an optimization_barrier.
    low = None if after is None else jnp.where(jnp.ravel(after)[0] > 0, -127, -128).astype(jnp.int8)

    def leaf(node: Any) -> Array:
        if not _is_quantised(node):
            return node.astype(dtype)
        integers = node["int8"] if low is None else jnp.maximum(node["int8"], low)
        return integers.astype(dtype) * node["scale"].astype(dtype)

    return jax.tree.map(leaf, tree, is_leaf=_is_quantised)


def _quantise(weight: Float[Array, "..."], axes: tuple[int, ...]) -> dict[str, Array]:
    """Integers and scales of one weight; the largest of each channel becomes +-127."""
    weight = jnp.asarray(weight, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(weight), axes, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
    return {"int8": jnp.round(weight / scale).astype(jnp.int8), "scale": scale}


def quantise_leaf(path: tuple, weight: Float[Array, "..."]) -> Any:
    """What becomes of the parameter at a path of the tree, or of a layer of it: a matrix its integers and scales, a norm itself."""
    axes = _CONTRACTED.get(path[-1].key)
    return weight if axes is None else _quantise(weight, axes)
