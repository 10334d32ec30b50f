"""The style encoder: `style_encoder_w2v2/` (docs/formats.md, "Style encoder").

It is a Hugging Face `Wav2Vec2ForSequenceClassification`.
"""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.convert.components.hubert import dense_rows, norm_rows, weight_norm_rows
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.table import Kept, Row, Rows, parameter_shapes
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import WindowClassifier

# Field of `models.wav2vec2.Wav2Vec2Config`, field of transformers' Wav2Vec2Config, its default.
_FIELDS = (
    ("conv_norm", "feat_extract_norm", "group"),
    ("conv_bias", "conv_bias", False),
    ("hidden_size", "hidden_size", 768),
    ("num_layers", "num_hidden_layers", 12),
    ("num_heads", "num_attention_heads", 12),
    ("intermediate_size", "intermediate_size", 3072),
    ("position_kernel", "num_conv_pos_embeddings", 128),
    ("position_groups", "num_conv_pos_embedding_groups", 16),
    ("pre_norm", "do_stable_layer_norm", False),
    ("layer_norm_eps", "layer_norm_eps", 1e-5),
)
# Features of which `models.wav2vec2` implements only this value.
_FIXED = (
    ("model_type", "wav2vec2"),
    ("hidden_act", "gelu"),
    ("feat_extract_activation", "gelu"),
    ("add_adapter", False),
)


def hf_encoder_config(config: Mapping[str, Any]) -> Wav2Vec2Config:
    """The encoder's config, from the config.json of a transformers wav2vec2 or HuBERT."""
    dims = config.get("conv_dim", (512,) * 7)
    kernels = config.get("conv_kernel", (10, 3, 3, 3, 3, 2, 2))
    strides = config.get("conv_stride", (5, 2, 2, 2, 2, 2, 2))
    fields: dict[str, Any] = {field: config.get(hf_field, default) for field, hf_field, default in _FIELDS}
    return Wav2Vec2Config(
        conv_layers=tuple(zip(dims, kernels, strides, strict=True)),
        position_norm="batch" if config.get("conv_pos_batch_norm") else "weight",
        **fields,
    )


def part_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The style part's config.json, from the released one; `use_weighted_layer_sum` is ignored, as in the reference.

    Raises:
        ConversionError: a feature that `models.wav2vec2` does not implement; names the field.
    """
    for field, expected in _FIXED:
        if config.get(field, expected) != expected:
            raise ConversionError(f"config.json: {field} is {config[field]!r}: only {expected!r} is supported")
    return {
        "kind": "wav2vec2",
        "encoder": dataclasses.asdict(hf_encoder_config(config)),
        "projection_size": config.get("classifier_proj_size", 256),
        "num_labels": len(config["id2label"]) if "id2label" in config else config.get("num_labels", 100),
    }


def released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json that `part_config` reads back: the inverse for a part that was trained here."""
    encoder = config["encoder"]
    channels, kernels, strides = (list(values) for values in zip(*encoder["conv_layers"], strict=True))
    labels = config.get("labels") or [f"LABEL_{number}" for number in range(config["num_labels"])]
    return {
        "architectures": ["Wav2Vec2ForSequenceClassification"],
        **dict(_FIXED),
        **{hf_field: encoder[field] for field, hf_field, _ in _FIELDS},
        "conv_dim": channels,
        "conv_kernel": kernels,
        "conv_stride": strides,
        "num_feat_extract_layers": len(channels),
        "classifier_proj_size": config["projection_size"],
        "id2label": {str(number): label for number, label in enumerate(labels)},
        "label2id": {label: number for number, label in enumerate(labels)},
        "torch_dtype": "float32",
    }


def hf_encoder_rows(config: Wav2Vec2Config, torch_prefix: str = "wav2vec2.", prefix: str = "encoder/") -> Rows:
    """The table of a transformers wav2vec2 or HuBERT encoder.

    Args:
        torch_prefix: begins every PyTorch name.
        prefix: begins every JAX path.
    """
    extractor, projection = torch_prefix + "feature_extractor.conv_layers.", torch_prefix + "feature_projection."
    layers = torch_prefix + "encoder.layers.{l}."
    rows: list[Row | Kept] = [
        Row(extractor + "{i}.conv.weight", prefix + "feature_extractor/conv_{i}", "o i k -> k i o"),
        Row(extractor + "{i}.conv.bias", prefix + "feature_extractor/bias_{i}", "o -> o"),
        Row(extractor + "0.layer_norm.weight", prefix + "feature_extractor/norm_scale", "o -> o"),
        Row(extractor + "0.layer_norm.bias", prefix + "feature_extractor/norm_bias", "o -> o"),
        Row(extractor + "{i}.layer_norm.weight", prefix + "feature_extractor/norm_{i}/scale", "o -> o"),
        Row(extractor + "{i}.layer_norm.bias", prefix + "feature_extractor/norm_{i}/bias", "o -> o"),
        Row(projection + "layer_norm.weight", prefix + "feature_norm/scale", "o -> o"),
        Row(projection + "layer_norm.bias", prefix + "feature_norm/bias", "o -> o"),
        Row(projection + "projection.weight", prefix + "feature_projection/kernel", "o i -> i o"),
        Row(projection + "projection.bias", prefix + "feature_projection/bias", "o -> o"),
        Row(torch_prefix + "encoder.layer_norm.weight", prefix + "encoder_norm/scale", "o -> o"),
        Row(torch_prefix + "encoder.layer_norm.bias", prefix + "encoder_norm/bias", "o -> o"),
    ]
    position = torch_prefix + "encoder.pos_conv_embed."
    if config.position_norm == "batch":
        rows += [
            Row(position + "batch_norm.weight", prefix + "position/norm_scale", "o -> o"),
            Row(position + "batch_norm.bias", prefix + "position/norm_bias", "o -> o"),
            Row(position + "batch_norm.running_mean", prefix + "position/running_mean", "o -> o"),
            Row(position + "batch_norm.running_var", prefix + "position/running_var", "o -> o"),
            Kept(position + "batch_norm.num_batches_tracked"),
            Row(position + "conv.weight", prefix + "position/kernel", "o i k -> k i o"),
            Row(position + "conv.bias", prefix + "position/bias", "o -> o"),
        ]
    else:
        rows += weight_norm_rows(position + "conv", prefix + "position/")
    for torch, name in (
        ("attention.q_proj", "query"),
        ("attention.k_proj", "key"),
        ("attention.v_proj", "value"),
        ("attention.out_proj", "out"),
        ("feed_forward.intermediate_dense", "up"),
        ("feed_forward.output_dense", "down"),
    ):
        rows += dense_rows(layers + torch, f"{prefix}layers/{name}")
    for torch, name in (("layer_norm", "attention_norm"), ("final_layer_norm", "output_norm")):
        rows += norm_rows(layers + torch, f"{prefix}layers/{name}")
    return (*rows, Kept(torch_prefix + "masked_spec_embed"))


def rows(config: Mapping[str, Any]) -> Rows:
    """The table of the wav2vec2 sequence classifier."""
    return (
        *hf_encoder_rows(Wav2Vec2Config.from_dict(config["encoder"])),
        Row("projector.weight", "projector/kernel", "o i -> i o"),
        Row("projector.bias", "projector/bias", "o -> o"),
        Row("classifier.weight", "classifier/kernel", "o i -> i o"),
        Row("classifier.bias", "classifier/bias", "o -> o"),
        Kept("layer_weights"),
    )


def classifier(config: Mapping[str, Any]) -> WindowClassifier:
    """The network that a style part's config.json describes."""
    return WindowClassifier(
        Wav2Vec2Config.from_dict(config["encoder"]), config["projection_size"], config["num_labels"]
    )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array by path, from the config alone."""
    network = classifier(config)
    return parameter_shapes(network, jax.ShapeDtypeStruct((1, network.config.receptive_field), jnp.float32))
