"""FCPE's weights, `torchfcpe/assets/fcpe_c_v001.pt` of the torchfcpe wheel (MIT) (FORMATS.md section 4)."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.convert.formats.files import ConversionError
from spirit_jax.convert.table import Kept, Row, Rows, shapes_of
from spirit_jax.models.fcpe import FCPE, HOP, NUM_MELS, SAMPLE_RATE, WINDOW, FCPEConfig

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
    """The `fcpe` entry of the pitch part's config.json out of the file's `config_dict`.

    Raises `ConversionError` for a model or a mel front end that is not the released one's.
    """
    for section, fields in _FIXED.items():
        for field, expected in fields:
            found = config[section].get(field, expected)
            if found != expected:
                raise ConversionError(f"FCPE config {section}.{field} is {found!r}: only {expected!r} is supported")
    model = config["model"]
    return {"hidden_size": model["hidden_dims"], "num_layers": model["n_layers"], "num_bins": model["out_dims"]}


def rows(config: Mapping[str, Any], ours: str = "") -> Rows:
    """`ours` is the place of the network in the tree."""
    block = "net.encoder_layers.{l}.conformer.net."
    return (
        Row("cent_table", ours + "cent_table", "k -> k"),
        Row("input_stack.0.weight", ours + "conv_0", "o i k -> k i o"),
        Row("input_stack.0.bias", ours + "bias_0", "o -> o"),
        Row("input_stack.1.weight", ours + "norm_scale", "o -> o"),
        Row("input_stack.1.bias", ours + "norm_bias", "o -> o"),
        Row("input_stack.3.weight", ours + "conv_1", "o i k -> k i o"),
        Row("input_stack.3.bias", ours + "bias_1", "o -> o"),
        Row(block + "0.weight", ours + "blocks/norm/scale", "l o -> l o"),
        Row(block + "0.bias", ours + "blocks/norm/bias", "l o -> l o"),
        Row(block + "2.weight", ours + "blocks/up/kernel", "l o i 1 -> l i o"),
        Row(block + "2.bias", ours + "blocks/up/bias", "l o -> l o"),
        Row(block + "4.conv.weight", ours + "blocks/kernel", "l o 1 k -> l k o"),
        Row(block + "4.conv.bias", ours + "blocks/bias", "l o -> l o"),
        Row(block + "6.weight", ours + "blocks/down/kernel", "l o i 1 -> l i o"),
        Row(block + "6.bias", ours + "blocks/down/bias", "l o -> l o"),
        Row("norm.weight", ours + "norm/scale", "o -> o"),
        Row("norm.bias", ours + "norm/bias", "o -> o"),
        Row(
            ("output_proj.weight_g", "output_proj.parametrizations.weight.original0"), ours + "output_gain", "o 1 -> o"
        ),
        Row(
            ("output_proj.weight_v", "output_proj.parametrizations.weight.original1"),
            ours + "output_kernel",
            "o i -> i o",
        ),
        Row("output_proj.bias", ours + "output_bias", "o -> o"),
        Kept("net.encoder_layers.*.norm.*"),  # of the attention that this model does not have
        Kept("gaussian_blurred_cent_mask"),
    )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """Shape of each of our arrays by path, from the config alone."""
    mel, frames = jax.ShapeDtypeStruct((1, 1, NUM_MELS), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
    return shapes_of(jax.eval_shape(FCPE(FCPEConfig(**config)).init, jax.random.key(0), mel, frames)["params"])
