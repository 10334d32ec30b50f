"""Networks that transcribe with CTC: `Wav2Vec2ForCTC` and `HubertForCTC` of transformers, and torchaudio's MMS_FA.

MMS_FA (Pratap et al. 2023, arXiv 2305.13516) is a file of torchaudio's own: its tensors have the names of transformers
with other prefixes, and it has no config. What the shapes do not show is the same in all of torchaudio's wav2vec 2.0
networks, and is filled in.
"""

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from spirit_jax.convert.components.style import hf_encoder_config, hf_encoder_rows
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.table import Kept, Row, Rows, Same, parameter_shapes
from spirit_jax.core.files import shown
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import Wav2Vec2CTC

KIND = "wav2vec2_ctc"
"""The "kind" of a part of this component."""

# Features of which `models.wav2vec2` implements only this value.
_FIXED = (
    ("hidden_act", "gelu"),
    ("feat_extract_activation", "gelu"),
    ("feat_proj_layer_norm", True),
    ("add_adapter", False),
    ("adapter_attn_dim", None),
)
_MODEL_TYPES = ("wav2vec2", "hubert")
_MAX_OUTPUTS = 100_000

# Prefixes of tensors' names: those of transformers, and torchaudio's in their place.
_TORCHAUDIO = (
    ("wav2vec2.feature_extractor.", "feature_extractor."),
    ("wav2vec2.feature_projection.", "encoder.feature_projection."),
    ("wav2vec2.encoder.", "encoder.transformer."),
    ("lm_head.", "aux."),
)
_TORCHAUDIO_STRIDES = {10: 5, 3: 2, 2: 2}  # by kernel
_TORCHAUDIO_HEAD_SIZE = 64
_CONV = re.compile(r"feature_extractor\.conv_layers\.(\d+)\.conv\.weight")
_LAYER = re.compile(r"encoder\.transformer\.layers\.(\d+)\.attention\.k_proj\.weight")

MMS_SYMBOLS = ("-", "<pad>", "</s>", "<unk>", *"aienoutsrmkldghybpwcvjzf'qx")
"""Outputs of MMS_FA: the blank, three of fairseq's dictionary that it never learned, and the Latin alphabet."""

_MMS_UNUSED = (1, 2, 3)


def hf_part_config(
    config: Mapping[str, Any],
    vocabulary: Any,
    tokenizer: Mapping[str, Any],
    preprocessor: Mapping[str, Any],
) -> dict[str, Any]:
    """The part's config.json, from the files of a transformers directory.

    Args:
        config: config.json.
        vocabulary: vocab.json, the index of each token.
        tokenizer: tokenizer_config.json, empty without one.
        preprocessor: preprocessor_config.json, empty without one.

    Raises:
        ConversionError: a feature that `models.wav2vec2` does not implement, or a vocabulary that does not fit the
            network; names the file and the field.
    """
    if config.get("model_type") not in _MODEL_TYPES:
        raise ConversionError(
            f"config.json: model_type is {shown(config.get('model_type'))}: expected one of {', '.join(_MODEL_TYPES)}"
        )
    for field, expected in _FIXED:
        if config.get(field, expected) != expected:
            raise ConversionError(f"config.json: {field} is {config[field]!r}: only {expected!r} is supported")
    size = config.get("vocab_size", 32)
    if not isinstance(size, int) or not 1 <= size <= _MAX_OUTPUTS:
        raise ConversionError(f"config.json: vocab_size is {shown(size)}: expected 1 to {_MAX_OUTPUTS} outputs")
    symbols = [""] * size
    if not isinstance(vocabulary, Mapping) or not vocabulary:
        raise ConversionError("vocab.json: missing or empty; expected the index of each token")
    for token, index in vocabulary.items():
        if isinstance(index, Mapping):
            raise ConversionError(f"vocab.json: holds vocabularies of several languages, such as {shown(token)}")
        if not isinstance(index, int) or not 0 <= index < size:
            raise ConversionError(f"vocab.json: {shown(token)} has the index {shown(index)}: the network has {size}")
        symbols[index] = token
    blank = config.get("pad_token_id", 0)
    if not isinstance(blank, int) or not 0 <= blank < size:
        raise ConversionError(f"config.json: pad_token_id, the blank, is {shown(blank)}: expected 0 to {size - 1}")
    separator = tokenizer.get("word_delimiter_token", "|")
    return {
        "kind": KIND,
        "layout": config["model_type"],
        "encoder": dataclasses.asdict(hf_encoder_config(config)),
        "normalize": bool(preprocessor.get("do_normalize", True)),
        "symbols": symbols,
        "blank": blank,
        "separator": symbols.index(separator) if separator in symbols else None,
        "unused": [],
    }


def torchaudio_part_config(tensors: Mapping[str, np.ndarray]) -> dict[str, Any]:
    """The part's config.json, from the shapes of torchaudio's tensors.

    Raises:
        ConversionError: not an MMS_FA file; says what is missing or differs.
    """
    convs = {int(match[1]): tensors[name].shape for name in tensors if (match := _CONV.fullmatch(name))}
    layers = [int(match[1]) for name in tensors if (match := _LAYER.fullmatch(name))]
    gains = ("conv.weight_g", "conv.parametrizations.weight.original0")
    gain = next((n for tail in gains if (n := f"encoder.transformer.pos_conv_embed.{tail}") in tensors), None)
    up = "encoder.transformer.layers.0.feed_forward.intermediate_dense.weight"
    if not convs or not layers or gain is None or up not in tensors or "aux.weight" not in tensors:
        raise ConversionError("no wav2vec 2.0 network of torchaudio with a CTC head (aux.weight) in it")
    kernel = gain.replace("weight_g", "weight_v").replace("original0", "original1")
    outputs, hidden = tensors["aux.weight"].shape
    if outputs != len(MMS_SYMBOLS):
        raise ConversionError(
            f"aux.weight has {outputs} outputs: only MMS_FA, with {len(MMS_SYMBOLS)}, is supported; "
            "convert the Hugging Face version of other networks"
        )
    if sorted(convs) != list(range(len(convs))) or any(shape[2] not in _TORCHAUDIO_STRIDES for shape in convs.values()):
        raise ConversionError("feature_extractor.conv_layers are not those of wav2vec 2.0")
    layer_norm = "feature_extractor.conv_layers.1.layer_norm.weight" in tensors
    encoder = Wav2Vec2Config(
        conv_layers=tuple((convs[i][0], convs[i][2], _TORCHAUDIO_STRIDES[convs[i][2]]) for i in range(len(convs))),
        conv_norm="layer" if layer_norm else "group",
        conv_bias="feature_extractor.conv_layers.0.conv.bias" in tensors,
        hidden_size=hidden,
        num_layers=max(layers) + 1,
        num_heads=max(1, hidden // _TORCHAUDIO_HEAD_SIZE),
        intermediate_size=tensors[up].shape[0],
        position_kernel=tensors[kernel].shape[2],
        position_groups=hidden // tensors[kernel].shape[1],
        pre_norm=layer_norm,
    )
    return {
        "kind": KIND,
        "layout": "torchaudio",
        "encoder": dataclasses.asdict(encoder),
        "normalize": True,
        "symbols": list(MMS_SYMBOLS),
        "blank": 0,
        "separator": None,
        "unused": list(_MMS_UNUSED),
    }


def rows(config: Mapping[str, Any]) -> Rows:
    """The table of the network, with the names of the layout that the part was imported from."""
    layout = config["layout"]
    prefix = "wav2vec2." if layout == "torchaudio" else f"{layout}."
    table = (
        *hf_encoder_rows(Wav2Vec2Config.from_dict(config["encoder"]), prefix),
        Row("lm_head.weight", "head/kernel", "o i -> i o"),
        Row("lm_head.bias", "head/bias", "o -> o"),
    )
    return tuple(_torchaudio_row(row) for row in table) if layout == "torchaudio" else table


def _torchaudio_row(row: Row | Kept | Same) -> Row | Kept | Same:
    """A row with the tensor's name as torchaudio has it."""

    def rename(name: str) -> str:
        for prefix, other in _TORCHAUDIO:
            if name.startswith(prefix):
                return other + name.removeprefix(prefix)
        return name

    if not isinstance(row, Row):
        return row
    return dataclasses.replace(row, torch=tuple(map(rename, row.names)))


def network(config: Mapping[str, Any]) -> Wav2Vec2CTC:
    """The network that the part's config.json describes."""
    return Wav2Vec2CTC(Wav2Vec2Config.from_dict(config["encoder"]), len(config["symbols"]))


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array by path, from the config alone."""
    model = network(config)
    return parameter_shapes(model, jax.ShapeDtypeStruct((1, model.config.receptive_field), jnp.float32))
