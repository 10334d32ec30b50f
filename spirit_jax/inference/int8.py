"""Weights in 8 bits: each output channel of a matrix as integers in -127..127 and one scale; products stay in floats."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import NamedSharding, PartitionSpec
from jaxtyping import Array, Float

_CONTRACTED = {
    "embed_tokens": (1,),
    "lm_head": (0,),
    "q_proj": (1,),
    "k_proj": (1,),
    "v_proj": (1,),
    "o_proj": (1, 2),
    "gate_proj": (1,),
    "up_proj": (1,),
    "down_proj": (1,),
}
"""Axes of each weight that share a scale: those that a product sums over (the first axis of a layer's weight is its layer).
The embedding has a scale for each token. Norms stay as they are."""


def _is_quantised(node: Any) -> bool:
    return isinstance(node, dict) and "int8" in node


def dense(tree: Any, dtype: Any) -> Any:
    """The tree with every array in `dtype`, int8 ones multiplied by their scales."""
    return jax.tree.map(
        lambda node: (
            node["int8"].astype(dtype) * node["scale"].astype(dtype) if _is_quantised(node) else node.astype(dtype)
        ),
        tree,
        is_leaf=_is_quantised,
    )


def _quantise(weight: Float[Array, "..."], axes: tuple[int, ...]) -> dict[str, Array]:
    """Integers and scales of one weight; the largest of each channel becomes +-127."""
    weight = jnp.asarray(weight, jnp.float32)
    scale = jnp.maximum(jnp.max(jnp.abs(weight), axes, keepdims=True), jnp.finfo(jnp.float32).tiny) / 127
    return {"int8": jnp.round(weight / scale).astype(jnp.int8), "scale": scale}


def quantise_leaf(path: tuple, weight: Float[Array, "..."]) -> Any:
    """What becomes of the parameter at a path of the tree: a matrix its integers and scales, a norm itself."""
    axes = _CONTRACTED.get(path[-1].key)
    return weight if axes is None else _quantise(weight, axes)


def quantise_params(params: Any, shardings: Any) -> Any:
    """A Llama's parameters with its matrices in int8, one array at a time, each put where `shardings` says.

    What is freed as it goes depends on the caller: load into the host's memory, then only int8 reaches the devices.
    """

    def leaf(path, weight, sharding):
        axes = _CONTRACTED.get(path[-1].key, ())
        spec = (*sharding.spec, *[None] * (weight.ndim - len(sharding.spec)))
        scales = PartitionSpec(*(None if axis in axes else part for axis, part in enumerate(spec)))
        places = {"int8": sharding, "scale": NamedSharding(sharding.mesh, scales)} if axes else sharding
        return jax.tree.map(lambda x, place: jax.device_put(np.asarray(x), place), quantise_leaf(path, weight), places)

    return jax.tree_util.tree_map_with_path(leaf, params, shardings)
