"""HuBERT and its unit quantizer: `hubert_25hz/{mhubert_base_25hz,L11_quantizer_500}.pt` (FORMATS.md section 2).

The encoder is fairseq's; `encoder_rows` also serves any fairseq HuBERT or wav2vec2 (50 Hz, pre-norm, layer-norm extractor). In the
place of the linear quantizer there may be k-means centroids, as TWIST, GSLM and textless-lib publish them beside their encoders.
"""

import ast
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.table import Kept, Row, Rows, shapes_of
from spirit_jax.models.wav2vec2 import LinearQuantizer, Wav2Vec2Config, Wav2Vec2Model
from spirit_jax.units import HUBERT, SIZES

LAYER = 11  # whose output the released quantizer reads (1-based)

# fairseq's HubertConfig: our field, its field, its default
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
# what our network has only one of
_FIXED = (
    ("activation_fn", "gelu"),
    ("layer_type", "transformer"),
    ("attn_type", ""),
    ("pos_enc_type", "abs"),
    ("pos_conv_depth", 1),
)
_CONV_LAYERS = "[(512,10,5)] + [(512,3,2)] * 4 + [(512,2,2)] * 2"
_CONV_NORMS = {"default": "group", "layer_norm": "layer"}


def part_config(
    model_cfg: Mapping[str, Any],
    task_cfg: Mapping[str, Any],
    quantizer_cfg: Mapping[str, Any] | None,
    centers: tuple[int, ...] = (),
    layer: int | None = LAYER,
) -> dict:
    """The phonetic part's config.json out of the configs in the two files. Unknown keys are ignored, as upstream does.

    `quantizer_cfg` is None for k-means, of which `centers` is the shape. `layer` is the one whose output is quantized.

    Raises `ConversionError` for a feature that our network does not have, naming it.
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
    fields = {ours: model_cfg.get(theirs, default) for ours, theirs, default in _FIELDS}
    encoder = Wav2Vec2Config(
        conv_layers=conv_layers,
        conv_norm=_CONV_NORMS[mode],
        project_features=conv_layers[-1][0] != fields["hidden_size"],
        position_norm="batch" if model_cfg.get("conv_pos_batch_norm") else "weight",
        **fields,
    )
    if layer is None:
        raise ConversionError("the quantizer's name does not say of which layer it is, as in L11_km500: say --layer N")
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


def conv_feature_layers(text: str) -> tuple[tuple[int, int, int], ...]:
    """fairseq's "[(512,10,5)] + [(512,3,2)] * 4" without evaluating it: lists of triples, sums and integer multiples."""

    def read(node):
        match node:
            case ast.BinOp(left, ast.Add(), right):
                return read(left) + read(right)
            case ast.BinOp(left, ast.Mult(), ast.Constant(int(times))) if times < 100:
                return read(left) * times
            case ast.List(items):
                return [tuple(number.value for number in item.elts) for item in items]
        raise ValueError

    try:
        layers = tuple(read(ast.parse(text.strip(), mode="eval").body))
        if all(len(layer) == 3 and all(isinstance(n, int) and n > 0 for n in layer) for layer in layers) and layers:
            return layers
    except (ValueError, SyntaxError, AttributeError):
        pass
    raise ConversionError(f"conv_feature_layers {text!r}: expected sums of lists of (channels, kernel, stride)")


def encoder_rows(config: Wav2Vec2Config, ours: str = "encoder/") -> Rows:
    """The fairseq encoder; `ours` is its place in our tree."""
    extractor, layers = "feature_extractor.conv_layers.", "encoder.layers.{l}."
    rows: list[Row | Kept] = [
        Row(extractor + "{i}.0.weight", ours + "feature_extractor/conv_{i}", "o i k -> k i o"),
        Row(extractor + "{i}.0.bias", ours + "feature_extractor/bias_{i}", "o -> o"),
        Row(extractor + "0.2.weight", ours + "feature_extractor/norm_scale", "o -> o"),
        Row(extractor + "0.2.bias", ours + "feature_extractor/norm_bias", "o -> o"),
        Row(extractor + "{i}.2.1.weight", ours + "feature_extractor/norm_{i}/scale", "o -> o"),
        Row(extractor + "{i}.2.1.bias", ours + "feature_extractor/norm_{i}/bias", "o -> o"),
        Row("layer_norm.weight", ours + "feature_norm/scale", "o -> o"),
        Row("layer_norm.bias", ours + "feature_norm/bias", "o -> o"),
        Row("post_extract_proj.weight", ours + "feature_projection/kernel", "o i -> i o"),
        Row("post_extract_proj.bias", ours + "feature_projection/bias", "o -> o"),
        Row("encoder.layer_norm.weight", ours + "encoder_norm/scale", "o -> o"),
        Row("encoder.layer_norm.bias", ours + "encoder_norm/bias", "o -> o"),
    ]
    if config.position_norm == "batch":
        rows += [
            Row("encoder.pos_conv.0.weight", ours + "position/norm_scale", "o -> o"),
            Row("encoder.pos_conv.0.bias", ours + "position/norm_bias", "o -> o"),
            Row("encoder.pos_conv.0.running_mean", ours + "position/running_mean", "o -> o"),
            Row("encoder.pos_conv.0.running_var", ours + "position/running_var", "o -> o"),
            Kept("encoder.pos_conv.0.num_batches_tracked"),
            Row("encoder.pos_conv.1.weight", ours + "position/kernel", "o i k -> k i o"),
            Row("encoder.pos_conv.1.bias", ours + "position/bias", "o -> o"),
        ]
    else:
        rows += weight_norm_rows("encoder.pos_conv.0", ours + "position/")
    for theirs, name in (
        ("self_attn.q_proj", "query"),
        ("self_attn.k_proj", "key"),
        ("self_attn.v_proj", "value"),
        ("self_attn.out_proj", "out"),
        ("fc1", "up"),
        ("fc2", "down"),
    ):
        rows += dense_rows(layers + theirs, f"{ours}layers/{name}")
    for theirs, name in (("self_attn_layer_norm", "attention_norm"), ("final_layer_norm", "output_norm")):
        rows += norm_rows(layers + theirs, f"{ours}layers/{name}")
    # Of pre-training: the mask vector and the classes it predicted.
    return (*rows, Kept("mask_emb"), Kept("label_embs_concat"), Kept("final_proj.*"))


def dense_rows(theirs: str, ours: str) -> tuple[Row, Row]:
    """A linear layer of every transformer layer."""
    return Row(f"{theirs}.weight", f"{ours}/kernel", "l o i -> l i o"), Row(
        f"{theirs}.bias", f"{ours}/bias", "l o -> l o"
    )


def norm_rows(theirs: str, ours: str) -> tuple[Row, Row]:
    """A layer norm of every transformer layer."""
    return Row(f"{theirs}.weight", f"{ours}/scale", "l o -> l o"), Row(f"{theirs}.bias", f"{ours}/bias", "l o -> l o")


def weight_norm_rows(theirs: str, ours: str) -> tuple[Row, Row, Row]:
    """The positional convolution with one gain a tap, under either of PyTorch's names for weight norm."""
    return (
        Row((f"{theirs}.weight_g", f"{theirs}.parametrizations.weight.original0"), f"{ours}gain", "1 1 k -> k"),
        Row((f"{theirs}.weight_v", f"{theirs}.parametrizations.weight.original1"), f"{ours}kernel", "o i k -> k i o"),
        Row(f"{theirs}.bias", f"{ours}bias", "o -> o"),
    )


def quantizer_rows(config: Mapping[str, Any]) -> Rows:
    """The centroids, or the Sequential of three linear layers: 0, 2 and 4."""
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
    """Of both files: their names do not overlap."""
    return encoder_rows(Wav2Vec2Config.from_dict(config["encoder"])) + quantizer_rows(config)


def encoder_shapes(config: Wav2Vec2Config) -> dict[str, tuple[int, ...]]:
    """Shape of each of our arrays by path, from the config alone."""
    audio = jax.ShapeDtypeStruct((1, config.receptive_field), jnp.float32)
    return shapes_of(jax.eval_shape(Wav2Vec2Model(config).init, jax.random.key(0), audio)["params"])


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """{path: shape} of the phonetic part: `encoder/...` and `quantizer/...`."""
    encoder = {
        f"encoder/{path}": shape for path, shape in encoder_shapes(Wav2Vec2Config.from_dict(config["encoder"])).items()
    }
    if config["quantizer"]["kind"] == "kmeans":
        return encoder | {"quantizer/centroids": (config["quantizer"]["units"], config["quantizer"]["dim"])}
    fields = {name: config["quantizer"][name] for name in ("dim", "upstream_dim", "units")}
    features = jax.ShapeDtypeStruct((1, fields["dim"]), jnp.float32)
    quantizer = jax.eval_shape(LinearQuantizer(**fields).init, jax.random.key(0), features)["params"]
    return encoder | {f"quantizer/{path}": shape for path, shape in shapes_of(quantizer).items()}
