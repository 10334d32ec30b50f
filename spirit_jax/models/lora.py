"""Low-rank adaptation of a Llama (LoRA: Hu et al. 2021, arXiv 2106.09685).

The weights W of the base stay as they are. Beside each chosen projection, two small matrices are trained:

    y = x W + (alpha / rank) (dropout(x) A) B

A begins with small random values and B with zeros, so that training begins at the base. Dropout acts during training
only. `merge` adds the updates to the weights; the result is an ordinary Llama.

An adapter is a nested dict that mirrors the parameters of `models/llama.py`; the letters are those listed there, and R
is the rank:

    layers/self_attn/{q_proj, k_proj, v_proj}/{lora_a [L, D, R], lora_b [L, R, N or K, H]}
    layers/self_attn/o_proj/{lora_a [L, N, H, R], lora_b [L, R, D]}
    layers/mlp/{gate_proj, up_proj}/{lora_a [L, D, R], lora_b [L, R, F]}
    layers/mlp/down_proj/{lora_a [L, F, R], lora_b [L, R, D]}
    rows/embed_tokens [V - rows_from, D]
    rows/lm_head [D, V - rows_from]                (absent where the head is tied to embed_tokens)

The rows replace those of the base: new tokens have no meaning in the base, and an update of low rank cannot give each
of them one.
"""

import math
from collections.abc import Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array

from spirit_jax.models import llama
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.lora_config import TARGETS, LoraConfig


class _Leaf(NamedTuple):
    """One array of an adapter."""

    path: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[str | None, ...]


def _leaves(model: LlamaConfig, lora: LoraConfig) -> Iterator[_Leaf]:
    """Every array of an adapter, in the order of the table."""
    shapes, axes = llama.abstract_params(model), llama.logical_axes(model)
    for name in (name for name in TARGETS if name in lora.targets and lora.rank):
        group, inputs = TARGETS[name]
        path, cut = ("layers", group, name), inputs + 1
        shape, names = shapes["layers"][group][name].shape, axes["layers"][group][name]
        yield _Leaf((*path, "lora_a"), (*shape[:cut], lora.rank), (*names[:cut], None))
        yield _Leaf((*path, "lora_b"), (shape[0], lora.rank, *shape[cut:]), (names[0], None, *names[cut:]))
    if lora.rows_from is not None:
        for name, axis in row_axes(model).items():
            shape = list(shapes[name].shape)
            shape[axis] -= lora.rows_from
            # Any number of rows may be chosen, so that the devices need not divide them.
            names = [None if index == axis else names for index, names in enumerate(axes[name])]
            yield _Leaf(("rows", name), tuple(shape), tuple(names))


def row_axes(model: LlamaConfig) -> dict[str, int]:
    """The axis of ids in each array that has a row for each."""
    return {"embed_tokens": 0} if model.tie_word_embeddings else {"embed_tokens": 0, "lm_head": 1}


def _tree(leaves: Iterator[tuple[tuple[str, ...], Any]]) -> Params:
    tree: Params = {}
    for (*parents, name), value in leaves:
        node = tree
        for parent in parents:
            node = node.setdefault(parent, {})
        node[name] = value
    return tree


def check_fits(model: LlamaConfig, lora: LoraConfig) -> None:
    """Check that the rows that an adapter replaces exist.

    Raises:
        ValueError: `rows_from` lies beyond the vocabulary.
    """
    if lora.rows_from is not None and lora.rows_from >= model.vocab_size:
        raise ValueError(f"lora.rows_from {lora.rows_from} lies beyond the {model.vocab_size} rows of the embedding")


def logical_axes(model: LlamaConfig, lora: LoraConfig) -> Params:
    """The logical axes of each array of an adapter, as a tree of tuples; the rank is whole on every device."""
    return _tree((leaf.path, leaf.axes) for leaf in _leaves(model, lora))


def abstract_adapter(model: LlamaConfig, lora: LoraConfig) -> Params:
    """Shapes and dtypes of an adapter, which is always float32; takes no memory."""
    return _tree((leaf.path, jax.ShapeDtypeStruct(leaf.shape, jnp.float32)) for leaf in _leaves(model, lora))


def init_adapter(model: LlamaConfig, lora: LoraConfig, key: Array) -> Params:
    """A fresh adapter: A is uniform in +-1/sqrt(inputs), as PEFT draws it, B is zero, and so are the rows.

    `with_rows_of` then gives the rows the base's values.
    """

    def fresh(number: int, leaf: _Leaf) -> Array:
        if leaf.path[-1] != "lora_a":
            return jnp.zeros(leaf.shape, jnp.float32)
        bound = 1 / math.sqrt(math.prod(leaf.shape[1:-1]))
        return jax.random.uniform(jax.random.fold_in(key, number), leaf.shape, jnp.float32, -bound, bound)

    return _tree((leaf.path, fresh(number, leaf)) for number, leaf in enumerate(_leaves(model, lora)))


def with_rows_of(model: LlamaConfig, lora: LoraConfig, adapter: Params, base: Params) -> Params:
    """The adapter with the base's values in its rows."""
    if lora.rows_from is None:
        return adapter
    rows = {
        name: jax.lax.slice_in_dim(base[name], lora.rows_from, model.vocab_size, axis=axis).astype(jnp.float32)
        for name, axis in row_axes(model).items()
    }
    return {**adapter, "rows": rows}


def _with_rows(model: LlamaConfig, lora: LoraConfig, base: Params, adapter: Params) -> Params:
    """The base with the rows of the adapter in their places."""
    if lora.rows_from is None:
        return base
    replaced = {
        name: jax.lax.dynamic_update_slice_in_dim(
            base[name], adapter["rows"][name].astype(base[name].dtype), lora.rows_from, axis
        )
        for name, axis in row_axes(model).items()
    }
    return {**base, **replaced}


def variables(model: LlamaConfig, lora: LoraConfig, base: Params, adapter: Params) -> Params:
    """The variables of `llama.Llama` with this adapter: `Llama(model).apply(variables, tokens_bt)`.

    With a random key named "dropout", inputs of the updates are dropped. An adapter whose scale is 0 leaves the base
    bit for bit as it is.

    Returns:
        The collection "params", and `llama.ADAPTER` with `a`, `b` (times the scale) and `keep` of each updated weight.
    """
    found: Params = {"params": _with_rows(model, lora, base, adapter)}
    if lora.scale and lora.targets:
        keep_l = jnp.full(model.num_hidden_layers, 1 - lora.dropout, jnp.float32)
        groups: Params = {}
        for group, weights in adapter["layers"].items():
            groups[group] = {
                name: {"a": pair["lora_a"], "b": lora.scale * pair["lora_b"], "keep": keep_l}
                for name, pair in weights.items()
            }
        found[llama.ADAPTER] = {"layers": groups}
    return found


def merged_weight(weight: Array, lora_a: Array, lora_b: Array, scale: float) -> Array:
    """A weight with its update added in float32, in the weight's own dtype. Layers may be stacked or not.

    Args:
        weight: [(L,) inputs..., outputs...].
        lora_a: [(L,) inputs..., R].
        lora_b: [(L,) R, outputs...].
        scale: the factor of the update.
    """
    stacked = lora_a.ndim + lora_b.ndim - weight.ndim - 2  # 1 if there is an axis of layers
    layers, rank = weight.shape[:stacked], lora_a.shape[-1]
    a, b = lora_a.reshape(*layers, -1, rank), lora_b.reshape(*layers, rank, -1)
    update = jnp.matmul(a, scale * b, precision="highest").reshape(weight.shape)
    return (weight.astype(jnp.float32) + update).astype(weight.dtype)


def merge(model: LlamaConfig, lora: LoraConfig, base: Params, adapter: Params) -> Params:
    """The parameters of the Llama that the base and the adapter make together, in the dtypes of the base."""
    params = _with_rows(model, lora, base, adapter)
    if not (lora.scale and lora.targets):
        return params
    layers = {**params["layers"]}
    for group, weights in adapter["layers"].items():
        layers[group] = {**layers[group]}
        for name, pair in weights.items():
            layers[group][name] = merged_weight(layers[group][name], pair["lora_a"], pair["lora_b"], lora.scale)
    return {**params, "layers": layers}


def parameter_count(model: LlamaConfig, lora: LoraConfig) -> int:
    """Number of trained parameters."""
    return sum(math.prod(leaf.shape) for leaf in _leaves(model, lora))


def flops_per_token(model: LlamaConfig, lora: LoraConfig, sequence_length: int) -> float:
    """Floating-point operations of training an adapter on one token, as `llama.flops_per_token` counts them.

    A frozen weight costs 4 and not 6, because it has no gradient; a trained one costs 6.
    """
    norms = (2 * model.num_hidden_layers + 1) * model.hidden_size
    lookup = 0 if model.tie_word_embeddings else model.vocab_size * model.hidden_size
    frozen = llama.parameter_count(model) - norms - lookup
    return llama.flops_per_token(model, sequence_length) - 2 * frozen + 6 * parameter_count(model, lora)
