"""FCPE, the pitch extractor: `torchfcpe/assets/fcpe_c_v001.pt` of the torchfcpe wheel (docs/formats.md, "Pitch")."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.table import Kept, Row, Rows, parameter_shapes
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models.fcpe import FCPE, HOP, NUM_MELS, WINDOW, FCPEConfig

_FIXED = {
    "model": (("type", "CFNaiveMelPE"), ("conv_only", True), ("use_harmonic_emb", False)),
    "mel": (
        ("sr", SAMPLE_RATE),
        ("num_mels", NUM_MELS),
        ("n_fft", WINDOW),
        ("win_size", WINDOW),
        ("hop_size", HOP),
        ("fmin", 0),
        ("fmax", SAMPLE_RATE // 2),
    ),
}


def part_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The `fcpe` entry of the pitch part's config.json, from the file's `config_dict`.

    Raises:
        ConversionError: a model or a mel front end other than the released one.
    """
    for section, fields in _FIXED.items():
        for field, expected in fields:
            found = config[section].get(field, expected)
            if found != expected:
                raise ConversionError(f"FCPE config {section}.{field} is {found!r}: only {expected!r} is supported")
    model = config["model"]
    return {"hidden_size": model["hidden_dims"], "num_layers": model["n_layers"], "num_bins": model["out_dims"]}


def rows(config: Mapping[str, Any], prefix: str = "") -> Rows:
    """The table; `prefix` begins every JAX path."""
    block = "net.encoder_layers.{l}.conformer.net."
    return (
        Row("cent_table", prefix + "cent_table", "k -> k"),
        Row("input_stack.0.weight", prefix + "conv_0", "o i k -> k i o"),
        Row("input_stack.0.bias", prefix + "bias_0", "o -> o"),
        Row("input_stack.1.weight", prefix + "norm_scale", "o -> o"),
        Row("input_stack.1.bias", prefix + "norm_bias", "o -> o"),
        Row("input_stack.3.weight", prefix + "conv_1", "o i k -> k i o"),
        Row("input_stack.3.bias", prefix + "bias_1", "o -> o"),
        Row(block + "0.weight", prefix + "blocks/norm/scale", "l o -> l o"),
        Row(block + "0.bias", prefix + "blocks/norm/bias", "l o -> l o"),
        Row(block + "2.weight", prefix + "blocks/up/kernel", "l o i 1 -> l i o"),
        Row(block + "2.bias", prefix + "blocks/up/bias", "l o -> l o"),
        Row(block + "4.conv.weight", prefix + "blocks/kernel", "l o 1 k -> l k o"),
        Row(block + "4.conv.bias", prefix + "blocks/bias", "l o -> l o"),
        Row(block + "6.weight", prefix + "blocks/down/kernel", "l o i 1 -> l i o"),
        Row(block + "6.bias", prefix + "blocks/down/bias", "l o -> l o"),
        Row("norm.weight", prefix + "norm/scale", "o -> o"),
        Row("norm.bias", prefix + "norm/bias", "o -> o"),
        Row(
            ("output_proj.weight_g", "output_proj.parametrizations.weight.original0"),
            prefix + "output_gain",
            "o 1 -> o",
        ),
        Row(
            ("output_proj.weight_v", "output_proj.parametrizations.weight.original1"),
            prefix + "output_kernel",
            "o i -> i o",
        ),
        Row("output_proj.bias", prefix + "output_bias", "o -> o"),
        Kept("net.encoder_layers.*.norm.*"),  # the norm of an attention layer that this model does not have
        Kept("gaussian_blurred_cent_mask"),
    )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array by path, from the config alone."""
    mel, frames = jax.ShapeDtypeStruct((1, 1, NUM_MELS), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return parameter_shapes(FCPE(FCPEConfig(**config)), mel, frames)
