"""Weights in 8 bits: integers in -127..127 and one scale for each output channel. Products stay in floats."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

CONTRACTED = {
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
"""Axes of each weight of a Llama that share a scale: those that its product sums over, counted from the last axis, so
that they hold for one layer and for stacked layers. The embedding has a scale for each token."""


def quantize(name: str, weight: Float[Array, "..."]) -> dict[str, Array]:
    """Integers and scales of the weight with this name. The largest value of each channel becomes 127 or -127."""
    weight = jnp.asarray(weight, jnp.float32)
    largest = jnp.max(jnp.abs(weight), CONTRACTED[name], keepdims=True)
    scale = jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / 127
    return {"int8": jnp.round(weight / scale).astype(jnp.int8), "scale": scale}


def is_quantized(node: Any) -> bool:
    """Whether a node of a tree of parameters is a weight in 8 bits."""
    return isinstance(node, Mapping) and "int8" in node


def to_float(weight: Any, dtype: Any) -> Float[Array, "..."]:
    """A weight, in floats or in 8 bits, in a float type."""
    if is_quantized(weight):
        return weight["int8"].astype(dtype) * weight["scale"].astype(dtype)
    return weight.astype(dtype)


def tree_to_float(tree: Any, dtype: Any) -> Any:
    """A tree of parameters whose weights in 8 bits are floats again; other arrays stay as they are."""
    return jax.tree.map(lambda node: to_float(node, dtype) if is_quantized(node) else node, tree, is_leaf=is_quantized)
