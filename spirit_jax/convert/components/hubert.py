"""HuBERT and its quantizer: `hubert_25hz/{mhubert_base_25hz,L11_quantizer_500}.pt`.

See docs/formats.md, "HuBERT" and "Linear quantizer". The encoder is fairseq's. `encoder_rows` also serves any fairseq
HuBERT or wav2vec2 (50 Hz, pre-norm, layer-norm extractor). K-means centroids, which TWIST, GSLM and textless-lib
publish beside their encoders, may replace the linear quantizer.
"""

import ast
import dataclasses
import math
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.table import Kept, Row, Rows, parameter_shapes
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import shown
from spirit_jax.models.wav2vec2 import Wav2Vec2Model
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import LinearQuantizer
from spirit_jax.units import HUBERT, HUBERT_RATE, SIZES

RELEASED_LAYER = 11
"""The layer, counted from 1, whose output the released quantizer reads."""

# Field of Wav2Vec2Config, field of fairseq's HubertConfig, its default.
_FIELDS = (
    ("hidden_size", "encoder_embed_dim", 768),
    ("num_layers", "encoder_layers", 12),
    ("num_heads", "encoder_attention_heads", 12),
    ("intermediate_size", "encoder_ffn_embed_dim", 3072),
    ("conv_bias", "conv_bias", False),
    ("position_kernel", "conv_pos", 128),
    ("position_groups", "conv_pos_groups", 16),
    ("pre_norm", "layer_norm_first", False),
)
# Features of which `models.wav2vec2` implements only this value.
_FIXED = (
    ("activation_fn", "gelu"),
    ("layer_type", "transformer"),
    ("attn_type", ""),
    ("pos_enc_type", "abs"),
    ("pos_conv_depth", 1),
)
_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
_CONV_NORMS: Mapping[str, Literal["group", "layer"]] = {"default": "group", "layer_norm": "layer"}


def part_config(
    model_cfg: Mapping[str, Any],
    task_cfg: Mapping[str, Any],
    quantizer_cfg: Mapping[str, Any] | None,
    centers: tuple[int, ...] = (),
    layer: int | None = RELEASED_LAYER,
) -> dict[str, Any]:
    """The phonetic part's config.json, from the configs in the two files. The reference ignores unknown keys too.

    Args:
        quantizer_cfg: config of the linear quantizer; None for k-means.
        centers: shape of the k-means centroids, [K, D].
        layer: the layer, counted from 1, whose output is quantized; None if neither file name nor option gives it.

    Raises:
        ConversionError: a feature that `models.wav2vec2` does not implement, or an unusable layer; names the field.
    """
    for field, expected in _FIXED:
        if model_cfg.get(field, expected) != expected:
            raise ConversionError(f"model_cfg.{field} is {model_cfg[field]!r}: only {expected!r} is supported")
    if task_cfg.get("normalize"):
        raise ConversionError("task_cfg.normalize is True: the reference fails on it, so no units are defined")
    mode = model_cfg.get("extractor_mode", "default")
    if mode not in _CONV_NORMS:
        raise ConversionError(f"model_cfg.extractor_mode is {mode!r}: expected one of {sorted(_CONV_NORMS)}")
    conv_layers = conv_feature_layers(model_cfg.get("conv_feature_layers", _CONV_LAYERS))
    fields: dict[str, Any] = {field: model_cfg.get(fairseq, default) for field, fairseq, default in _FIELDS}
    encoder = Wav2Vec2Config(
        conv_layers=conv_layers,
        conv_norm=_CONV_NORMS[mode],
        project_features=conv_layers[-1][0] != fields["hidden_size"],
        position_norm="batch" if model_cfg.get("conv_pos_batch_norm") else "weight",
        **fields,
    )
    sample_rate = task_cfg.get("sample_rate", SAMPLE_RATE)
    hop = math.prod(stride for _, _, stride in conv_layers)
    if sample_rate != SAMPLE_RATE or SAMPLE_RATE != HUBERT_RATE * hop:
        raise ConversionError(
            f"this HuBERT gives {SAMPLE_RATE / hop:g} units a second, a unit every {hop} samples at "
            f"{shown(sample_rate)} Hz (conv_feature_layers): Spirit LM has {HUBERT_RATE:g} units a second at "
            f"{SAMPLE_RATE} Hz, and so have its records and vocoders; use a 25 Hz HuBERT, such as mhubert_base_25hz.pt "
            "of TWIST or Spirit LM"
        )
    if layer is None:
        raise ConversionError("the quantizer's file name has no layer, as in L11_km500: say --layer N")
    if not 1 <= layer <= encoder.num_layers:
        raise ConversionError(f"layer {layer} is to be quantized: the encoder has layers 1 to {encoder.num_layers}")
    if quantizer_cfg is None:
        if len(centers) != 2 or not 1 <= centers[0] <= SIZES[HUBERT]:
            raise ConversionError(
                f"{CENTERS} has the shape {list(centers)}: expected [units, {encoder.hidden_size}] with at most "
                f"{SIZES[HUBERT]} units, because the vocabulary has [Hu0] to [Hu{SIZES[HUBERT] - 1}]"
            )
        quantizer = {"kind": "kmeans", "dim": encoder.hidden_size, "units": centers[0]}
    else:
        sizes = {name: quantizer_cfg[name] for name in ("dim", "upstream_dim")}
        quantizer = {"kind": "linear", **sizes, "units": quantizer_cfg["vocab_size"]}
    return {"kind": "hubert", "layer": layer, "encoder": dataclasses.asdict(encoder), "quantizer": quantizer}


def model_config(encoder: Mapping[str, Any]) -> dict[str, Any]:
    """fairseq's `model_cfg` of an encoder, the inverse of `part_config`; its fields are those of `Wav2Vec2Config`."""
    layers = ", ".join(f"({channels}, {kernel}, {stride})" for channels, kernel, stride in encoder["conv_layers"])
    mode = next(name for name, norm in _CONV_NORMS.items() if norm == encoder["conv_norm"])
    return {
        **{fairseq: encoder[field] for field, fairseq, _ in _FIELDS},
        "conv_feature_layers": f"[{layers}]",
        "extractor_mode": mode,
        "conv_pos_batch_norm": encoder["position_norm"] == "batch",
        "required_seq_len_multiple": 2,
        **dict(_FIXED),
    }


def conv_feature_layers(text: str) -> tuple[tuple[int, int, int], ...]:
    """(channels, kernel, stride) of each layer, from a text such as fairseq's "[(512,10,5)] + [(512,3,2)] * 4".

    The text is parsed and never evaluated.

    Raises:
        ConversionError: anything but sums and integer multiples of lists of such triples.
    """

    def read(node: ast.expr) -> list[tuple[Any, ...]]:
        match node:
            case ast.BinOp(left, ast.Add(), right):
                return read(left) + read(right)
            case ast.BinOp(left, ast.Mult(), ast.Constant(int(times))) if times * len(layers := read(left)) < 100:
                return layers * times
            case ast.List(items):
                return [_constants(item) for item in items]
        raise ValueError

    try:
        if len(text) > 1000:  # Python's parser ends the process on deeply nested text
            raise ValueError
        layers = tuple(read(ast.parse(text.strip(), mode="eval").body))
        if all(len(layer) == 3 and all(isinstance(n, int) and n > 0 for n in layer) for layer in layers) and layers:
            return layers
    except (ValueError, SyntaxError, AttributeError, TypeError, MemoryError, RecursionError):
        pass
    raise ConversionError(f"conv_feature_layers {shown(text)}: expected sums of lists of (channels, kernel, stride)")


def _constants(node: ast.expr) -> tuple[Any, ...]:
    """The values of a tuple of constants."""
    if not isinstance(node, ast.Tuple | ast.List):
        raise ValueError
    return tuple(item.value if isinstance(item, ast.Constant) else None for item in node.elts)


def encoder_rows(config: Wav2Vec2Config, prefix: str = "encoder/") -> Rows:
    """The table of a fairseq encoder; `prefix` begins every JAX path."""
    extractor, layers = "feature_extractor.conv_layers.", "encoder.layers.{l}."
    rows: list[Row | Kept] = [
        Row(extractor + "{i}.0.weight", prefix + "feature_extractor/conv_{i}", "o i k -> k i o"),
        Row(extractor + "{i}.0.bias", prefix + "feature_extractor/bias_{i}", "o -> o"),
        Row(extractor + "0.2.weight", prefix + "feature_extractor/norm_scale", "o -> o"),
        Row(extractor + "0.2.bias", prefix + "feature_extractor/norm_bias", "o -> o"),
        Row(extractor + "{i}.2.1.weight", prefix + "feature_extractor/norm_{i}/scale", "o -> o"),
        Row(extractor + "{i}.2.1.bias", prefix + "feature_extractor/norm_{i}/bias", "o -> o"),
        Row("layer_norm.weight", prefix + "feature_norm/scale", "o -> o"),
        Row("layer_norm.bias", prefix + "feature_norm/bias", "o -> o"),
        Row("post_extract_proj.weight", prefix + "feature_projection/kernel", "o i -> i o"),
        Row("post_extract_proj.bias", prefix + "feature_projection/bias", "o -> o"),
        Row("encoder.layer_norm.weight", prefix + "encoder_norm/scale", "o -> o"),
        Row("encoder.layer_norm.bias", prefix + "encoder_norm/bias", "o -> o"),
    ]
    if config.position_norm == "batch":
        rows += [
            Row("encoder.pos_conv.0.weight", prefix + "position/norm_scale", "o -> o"),
            Row("encoder.pos_conv.0.bias", prefix + "position/norm_bias", "o -> o"),
            Row("encoder.pos_conv.0.running_mean", prefix + "position/running_mean", "o -> o"),
            Row("encoder.pos_conv.0.running_var", prefix + "position/running_var", "o -> o"),
            Kept("encoder.pos_conv.0.num_batches_tracked"),
            Row("encoder.pos_conv.1.weight", prefix + "position/kernel", "o i k -> k i o"),
            Row("encoder.pos_conv.1.bias", prefix + "position/bias", "o -> o"),
        ]
    else:
        rows += weight_norm_rows("encoder.pos_conv.0", prefix + "position/")
    for torch, name in (
        ("self_attn.q_proj", "query"),
        ("self_attn.k_proj", "key"),
        ("self_attn.v_proj", "value"),
        ("self_attn.out_proj", "out"),
        ("fc1", "up"),
        ("fc2", "down"),
    ):
        rows += dense_rows(layers + torch, f"{prefix}layers/{name}")
    for torch, name in (("self_attn_layer_norm", "attention_norm"), ("final_layer_norm", "output_norm")):
        rows += norm_rows(layers + torch, f"{prefix}layers/{name}")
    # The mask vector and the classes that pre-training predicted.
    return (*rows, Kept("mask_emb"), Kept("label_embs_concat"), Kept("final_proj.*"))


def dense_rows(torch: str, jax: str) -> tuple[Row, Row]:
    """Rows of a linear layer in every transformer layer."""
    return Row(f"{torch}.weight", f"{jax}/kernel", "l o i -> l i o"), Row(f"{torch}.bias", f"{jax}/bias", "l o -> l o")


def norm_rows(torch: str, jax: str) -> tuple[Row, Row]:
    """Rows of a layer norm in every transformer layer."""
    return Row(f"{torch}.weight", f"{jax}/scale", "l o -> l o"), Row(f"{torch}.bias", f"{jax}/bias", "l o -> l o")


def weight_norm_rows(torch: str, prefix: str) -> tuple[Row, Row, Row]:
    """Rows of the positional convolution, whose weight norm has a gain for each tap and either of PyTorch's names."""
    new = f"{torch}.parametrizations.weight.original"
    return (
        Row((f"{torch}.weight_g", f"{new}0"), f"{prefix}gain", "1 1 k -> k"),
        Row((f"{torch}.weight_v", f"{new}1"), f"{prefix}kernel", "o i k -> k i o"),
        Row(f"{torch}.bias", f"{prefix}bias", "o -> o"),
    )


def quantizer_rows(config: Mapping[str, Any]) -> Rows:
    """The table of the quantizer: k-means centroids, or three linear layers (0, 2 and 4 of a `torch.nn.Sequential`)."""
    if config["quantizer"]["kind"] == "kmeans":
        return (Row(CENTERS, "quantizer/centroids", "k d -> k d"),)
    return tuple(
        row
        for i in range(3)
        for row in (
            Row(f"{2 * i}.weight", f"quantizer/dense_{i}/kernel", "o i -> i o"),
            Row(f"{2 * i}.bias", f"quantizer/dense_{i}/bias", "o -> o"),
        )
    )


def rows(config: Mapping[str, Any]) -> Rows:
    """The table of both files, whose names do not overlap."""
    return encoder_rows(Wav2Vec2Config.from_dict(config["encoder"])) + quantizer_rows(config)


def encoder_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array of an encoder by path, from the config alone."""
    return parameter_shapes(Wav2Vec2Model(config), jax.ShapeDtypeStruct((1, config.receptive_field), jnp.float32))


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array of the phonetic part, `encoder/...` and `quantizer/...`, by path."""
    network = Wav2Vec2Config.from_dict(config["encoder"])
    encoder = {f"encoder/{path}": shape for path, shape in encoder_shapes(network).items()}
    if config["quantizer"]["kind"] == "kmeans":
        return encoder | {"quantizer/centroids": (config["quantizer"]["units"], config["quantizer"]["dim"])}
    fields = {name: config["quantizer"][name] for name in ("dim", "upstream_dim", "units")}
    quantizer = parameter_shapes(LinearQuantizer(**fields), jax.ShapeDtypeStruct((1, fields["dim"]), jnp.float32))
    return encoder | {f"quantizer/{path}": shape for path, shape in quantizer.items()}
