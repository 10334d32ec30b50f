"""The language model: a Hugging Face Llama, `config.json` and weights (docs/formats.md, "Language model")."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from spirit_jax.convert.errors import ConversionError, reading
from spirit_jax.convert.table import Kept, Row, Rows, Same, shapes_of
from spirit_jax.models.llama import DTYPES, LlamaConfig, abstract_params
from spirit_jax.models.llama_config import RopeScaling

GENERATION_CONFIG = "generation_config.json"
"""Hugging Face's file of the sampling settings that a model's authors recommend."""

ROWS: Rows = (
    Row("model.embed_tokens.weight", "embed_tokens", "v d -> v d"),
    Row("model.layers.{l}.input_layernorm.weight", "layers/input_layernorm/weight", "l d -> l d"),
    Row("model.layers.{l}.self_attn.q_proj.weight", "layers/self_attn/q_proj", "l (n h) d -> l d n h"),
    Row("model.layers.{l}.self_attn.k_proj.weight", "layers/self_attn/k_proj", "l (k h) d -> l d k h"),
    Row("model.layers.{l}.self_attn.v_proj.weight", "layers/self_attn/v_proj", "l (k h) d -> l d k h"),
    Row("model.layers.{l}.self_attn.o_proj.weight", "layers/self_attn/o_proj", "l d (n h) -> l n h d"),
    Row("model.layers.{l}.post_attention_layernorm.weight", "layers/post_attention_layernorm/weight", "l d -> l d"),
    Row("model.layers.{l}.mlp.gate_proj.weight", "layers/mlp/gate_proj", "l f d -> l d f"),
    Row("model.layers.{l}.mlp.up_proj.weight", "layers/mlp/up_proj", "l f d -> l d f"),
    Row("model.layers.{l}.mlp.down_proj.weight", "layers/mlp/down_proj", "l d f -> l f d"),
    Row("model.norm.weight", "norm/weight", "d -> d"),
    Row("lm_head.weight", "lm_head", "v d -> d v"),
    # transformers before 4.32 saved this buffer, which follows from the config.
    Kept("model.layers.*.self_attn.rotary_emb.inv_freq"),
)

_SHAPE_FIELDS = (
    "vocab_size",
    "hidden_size",
    "intermediate_size",
    "num_hidden_layers",
    "num_attention_heads",
    "rms_norm_eps",
    "max_position_embeddings",
)
# Defaults of transformers.
_DEFAULTS = {"rms_norm_eps": 1e-6, "max_position_embeddings": 2048}
# Features of which `models.llama` implements only this value.
_FIXED = (("model_type", "llama"), ("hidden_act", "silu"), ("attention_bias", False), ("mlp_bias", False))


def rows(config: LlamaConfig) -> Rows:
    """The table. A tied head is a second name of the embedding, which some files hold."""
    if not config.tie_word_embeddings:
        return ROWS
    head = Same("lm_head.weight", "model.embed_tokens.weight")
    return (*(row for row in ROWS if not (isinstance(row, Row) and row.torch == head.name)), head)


def shapes(config: LlamaConfig) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array by path, from the config alone."""
    return shapes_of(abstract_params(config))


def from_hf_config(config: Mapping[str, Any], where: str = "config.json") -> LlamaConfig:
    """The network's config, from a `config.json` that transformers 4 or 5 wrote.

    Args:
        where: the file, for messages.

    Raises:
        ConversionError: a feature that `models.llama` does not implement; names the field.
    """
    if not isinstance(config, Mapping):
        raise ConversionError(f"{where}: a {type(config).__name__}, the fields of a Llama expected")
    for field, expected in _FIXED:
        if config.get(field, expected) != expected:
            raise ConversionError(f"{where}: {field} is {config[field]!r}: only {expected!r} is supported")
    if config.get("quantization_config"):
        raise ConversionError(
            f"{where}: quantization_config: quantized weights are not supported; use the model that they were made "
            "from, in float32, float16 or bfloat16"
        )
    config = _DEFAULTS | dict(config)
    missing = [field for field in _SHAPE_FIELDS if field not in config]
    if missing:
        raise ConversionError(f"{where}: {', '.join(missing)} missing: not the config of a Llama")
    with reading(where, "the config of a Llama"):
        # transformers 5 moved rope_theta and rope_scaling into rope_parameters.
        rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
        kind = rope.get("rope_type", rope.get("type", "default"))
        if kind not in ("default", "llama3"):
            raise ConversionError(f"{where}: rope_scaling of type {kind!r}: only 'llama3' is supported")
        scaling = None
        if kind == "llama3":
            scaling = RopeScaling(**{field.name: rope[field.name] for field in dataclasses.fields(RopeScaling)})
        dtype = config.get("torch_dtype") or config.get("dtype") or "float32"
        # float16 and bfloat16 both run in bfloat16, as in the reference. The stored weights keep their type.
        dtype = "bfloat16" if dtype == "float16" else dtype if dtype in DTYPES else "float32"
        return LlamaConfig(
            **{field: config[field] for field in _SHAPE_FIELDS},
            num_key_value_heads=config.get("num_key_value_heads") or config["num_attention_heads"],
            head_dim=config.get("head_dim"),
            rope_theta=float(rope.get("rope_theta") or config.get("rope_theta") or 10_000.0),
            rope_scaling=scaling,
            tie_word_embeddings=bool(config.get("tie_word_embeddings", False)),
            initializer_range=config.get("initializer_range", 0.02),
            dtype=dtype,
            param_dtype=dtype,
        )


def to_hf_config(config: LlamaConfig, dtype: np.dtype, bos_id: int, eos_id: int) -> dict[str, Any]:
    """A `config.json` that transformers 4.46, which the released code needs, and transformers 5 read.

    Args:
        dtype: the type of the stored weights.
        bos_id, eos_id: the ids that begin and end a document.
    """
    scaling = dataclasses.asdict(config.rope_scaling) | {"rope_type": "llama3"} if config.rope_scaling else None
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        **{field: getattr(config, field) for field in _SHAPE_FIELDS},
        "num_key_value_heads": config.num_key_value_heads,
        "head_dim": config.head_size,
        "rope_theta": config.rope_theta,
        "rope_scaling": scaling,
        "tie_word_embeddings": config.tie_word_embeddings,
        "initializer_range": config.initializer_range,
        "hidden_act": "silu",
        "attention_bias": False,
        "mlp_bias": False,
        "bos_token_id": bos_id,
        "eos_token_id": eos_id,
        "torch_dtype": np.dtype(dtype).name,
    }
