"""Weights in 8 or 4 bits: integers and scales. Products stay in floats, and so do norms.

8 bits: integers in -127..127, and a float32 scale for each output channel:

    {"int8": int8 [the weight's shape], "scale": float32 [the weight's shape, 1 in place of the inputs]}

4 bits: integers in -7..7, and a bfloat16 scale for each group of 32 inputs of an output. A byte holds two neighboring
inputs. The embedding and the head keep 8 bits, because every token depends on them and they are few:

    {"int4": int8 [half as many inputs], "scale": bfloat16 [a 32nd of the inputs]}

Both are symmetric: the largest value of a scale becomes the largest integer or its negative, and 0 stays 0.
"""

import math
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spirit_jax.models.llama_config import LlamaConfig, Quantization
from spirit_jax.models.lora_config import TARGETS

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
"""Axes of each weight of a Llama that its product sums over, counted from the last axis, so that they hold for one
layer and for stacked layers. The embedding has a scale for each token."""

GROUP = 32
"""Inputs that share a scale in 4 bits. A number of inputs that it does not divide has groups of the largest divisor of
both."""
_SMALLEST_GROUP = 4


def check_fits(model: LlamaConfig, kind: Quantization | None) -> None:
    """Check that the weights of a network can have this form.

    Raises:
        ValueError: an unknown form, or a width that 4 bits cannot divide into groups.
    """
    if kind not in (None, "int8", "int4"):
        raise ValueError(f"quantize must be int8 or int4, found {kind!r}")
    widths = {"hidden_size": model.hidden_size, "intermediate_size": model.intermediate_size}
    for name, width in (widths | {"head_size": model.head_size}).items():
        if kind == "int4" and width % _SMALLEST_GROUP:
            raise ValueError(f"quantize int4 needs widths that {_SMALLEST_GROUP} divides; {name} is {width}")


def quantize(name: str, weight: Float[Array, "..."], kind: Quantization) -> dict[str, Array]:
    """Integers and scales of the weight with this name."""
    weight = jnp.asarray(weight, jnp.float32)
    if kind == "int4" and name in TARGETS:
        return _quantize_int4(weight, weight.ndim + CONTRACTED[name][-1])
    scale = _scale(weight, CONTRACTED[name], 127)
    return {"int8": jnp.round(weight / scale).astype(jnp.int8), "scale": scale}


def _scale(weight: Float[Array, "..."], axes: tuple[int, ...], most: int) -> Float[Array, "..."]:
    """The step between integers that gives the largest of the values along some axes the integer `most`."""
    largest = jnp.max(jnp.abs(weight), axes, keepdims=True)
    return jnp.maximum(largest, jnp.finfo(jnp.float32).tiny) / most


def _quantize_int4(weight: Float[Array, "..."], axis: int) -> dict[str, Array]:
    """A weight in 4 bits, with its groups along this axis."""
    before, inputs, after = weight.shape[:axis], weight.shape[axis], weight.shape[axis + 1 :]
    size = math.gcd(inputs, GROUP)
    grouped = weight.reshape(*before, inputs // size, size, *after)
    scale = _scale(grouped, (axis + 1,), 7).astype(jnp.bfloat16)
    # The integers belong to the scale as it is stored, so that its rounding costs nothing.
    integers = jnp.clip(jnp.round(grouped / scale.astype(jnp.float32)), -7, 7).astype(jnp.int8)
    pairs = jnp.moveaxis(integers.reshape(*before, inputs // 2, 2, *after), axis + 1, 0)
    return {"int4": (pairs[0] & 15) | (pairs[1] << 4), "scale": jnp.squeeze(scale, axis + 1)}


def quantize_leaf(path: tuple, weight: Float[Array, "..."], kind: Quantization) -> Any:
    """The quantized form of the parameter at a path of the tree, or of one layer of it; a norm stays as it is."""
    name = path[-1].key
    return quantize(name, weight, kind) if name in CONTRACTED else weight


def quantize_tree(params: Any, kind: Quantization) -> Any:
    """The quantized form of a tree of parameters."""
    return jax.tree_util.tree_map_with_path(lambda path, weight: quantize_leaf(path, weight, kind), params)


def is_quantized(node: Any) -> bool:
    """Whether a node of a tree of parameters is a quantized weight."""
    return isinstance(node, Mapping) and ("int8" in node or "int4" in node)


def find_kind(params: Any) -> Quantization | None:
    """The form of a tree of parameters: that of its narrowest weight; None for floats."""
    nodes = [node for node in jax.tree.leaves(params, is_leaf=is_quantized) if is_quantized(node)]
    if not nodes:
        return None
    return "int4" if any("int4" in node for node in nodes) else "int8"


def split_inputs(weight: Mapping[str, Array], dtype: Any) -> tuple[Float[Array, "..."], Float[Array, "..."], int]:
    """The values of the even and of the odd inputs of a weight in 4 bits, and the axis of its inputs."""
    packed, scale = weight["int4"], weight["scale"]
    axis = next(axis for axis, size in enumerate(scale.shape) if size != packed.shape[axis])
    bytes_of_groups = packed.reshape(*scale.shape[: axis + 1], -1, *scale.shape[axis + 1 :])
    scale = jnp.expand_dims(scale, axis + 1).astype(dtype)
    even, odd = ((bytes_of_groups << 4) >> 4).astype(dtype), (bytes_of_groups >> 4).astype(dtype)
    return (even * scale).reshape(packed.shape), (odd * scale).reshape(packed.shape), axis


def to_float(weight: Any, dtype: Any) -> Float[Array, "..."]:
    """A weight, quantized or not, in a float type."""
    if not is_quantized(weight):
        return weight.astype(dtype)
    if "int8" in weight:
        return weight["int8"].astype(dtype) * weight["scale"].astype(dtype)
    even, odd, axis = split_inputs(weight, dtype)
    return jnp.stack([even, odd], axis + 1).reshape(*even.shape[:axis], -1, *even.shape[axis + 1 :])


def dequantize(tree: Any, dtype: Any) -> Any:
    """A tree of parameters with every array in a float type."""
    return jax.tree.map(lambda node: to_float(node, dtype), tree, is_leaf=is_quantized)
