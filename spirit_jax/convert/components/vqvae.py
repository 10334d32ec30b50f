"""The pitch quantizer, a VQ-VAE: `vqvae_f0_quantizer/{model.pt,config.yaml}` (docs/formats.md, "Pitch")."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.table import Row, Rows, parameter_shapes
from spirit_jax.models.vqvae import VQVAE
from spirit_jax.models.vqvae_config import VQVAEConfig

FEATURES = ("f0_interp,vuv", "f0,vuv", "norm_f0_interp,vuv", "norm_f0,vuv")
"""Features that a released quantizer may have been trained on."""

_EXTRACTOR = "f0_extractor"  # written by `released_config` alone


def part_config(config: Mapping[str, Any], speakers: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The pitch part's config.json without `fcpe`, from config.yaml and the speakers' statistics, if there are any.

    Raises:
        ConversionError: a feature that `models.vqvae` does not implement; names the field.
    """
    if config["features"] not in FEATURES:
        raise ConversionError(f"config.yaml: features is {config['features']!r}: expected one of {FEATURES}")
    encoder, decoder, vq = (config[f"{name}_params"] for name in ("encoder", "decoder", "vq"))
    for name, params in (("encoder_params", encoder), ("decoder_params", decoder)):
        for field, expected in (("levels", 1), ("input_emb_width", 2), ("m_conv", 1.0), ("dilation_cycle", None)):
            if params.get(field, expected) != expected:
                raise ConversionError(
                    f"config.yaml: {name}.{field} is {params[field]!r}: only {expected!r} is supported"
                )
    shared = ("downs_t", "strides_t", "width", "depth", "output_emb_width", "res_scale", "dilation_growth_rate")
    for field in shared:
        if encoder.get(field) != decoder.get(field):
            raise ConversionError(
                f"config.yaml: {field} is {encoder.get(field)} in the encoder and {decoder.get(field)} in the decoder: "
                "expected equal values"
            )
    depth = encoder["depth"]
    network = VQVAEConfig(
        codes=vq["l_bins"],
        embedding_size=vq["emb_width"],
        width=encoder["width"],
        stages=encoder["downs_t"][0],
        stride=encoder["strides_t"][0],
        depth=depth,
        dilation_growth=encoder.get("dilation_growth_rate", 1),
        residual_scale=depth**-0.5 if encoder.get("res_scale") else 1.0,
        reverse_decoder_dilation=bool(decoder.get("reverse_decoder_dilation", False)),
    )
    return {
        "kind": "vqvae",
        "interpolate": "f0_interp" in config["features"],
        "normalize": config["features"].startswith("norm_") or bool(config.get("speaker_norm")),
        "vqvae": dataclasses.asdict(network),
        **({"f0": config[_EXTRACTOR]} if _EXTRACTOR in config else {}),
        **_speaker_means(speakers if speakers is not None else config.get("speaker_stats")),
    }


def released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.yaml that `part_config` reads back: the inverse for a part that was trained here."""
    network = VQVAEConfig(**config["vqvae"])
    shared = {
        "input_emb_width": 2,
        "output_emb_width": network.embedding_size,
        "levels": 1,
        "width": network.width,
        "depth": network.depth,
        "m_conv": 1.0,
        "dilation_growth_rate": network.dilation_growth,
    }
    if network.residual_scale != 1.0:
        shared["res_scale"] = True

    def params() -> dict[str, Any]:
        """With lists of its own: YAML would write a list that is there twice as an alias, which `import` refuses."""
        return shared | {"downs_t": [network.stages], "strides_t": [network.stride]}

    features = f"{'norm_' if config['normalize'] else ''}{'f0_interp' if config['interpolate'] else 'f0'},vuv"
    return {
        "features": features,
        "sampling_rate": 16_000,
        "hop_size": 80,
        "encoder_params": params(),
        "decoder_params": {**params(), "reverse_decoder_dilation": network.reverse_decoder_dilation},
        "vq_params": {"l_bins": network.codes, "emb_width": network.embedding_size, "levels": 1},
        **({_EXTRACTOR: config["f0"]} if "f0" in config else {}),
    }


def _speaker_means(speakers: Any) -> dict[str, dict[str, float]]:
    """`speaker_f0_mean`, Hz by speaker, from {speaker: {f0_mean: ...}}; empty without statistics."""
    if not isinstance(speakers, Mapping):
        return {}
    try:
        return {"speaker_f0_mean": {str(name): float(stats["f0_mean"]) for name, stats in speakers.items()}}
    except (KeyError, TypeError, ValueError) as error:
        raise ConversionError(f"speaker_stats: an f0_mean in Hz expected for each speaker ({error})") from error


def rows(config: Mapping[str, Any], prefix: str = "") -> Rows:
    """The table; `prefix` begins every JAX path, and `config` is the `vqvae` entry of the part's config.json."""
    stages = range(config["stages"])
    encoder, decoder = "encoder.level_blocks.0.model.", "decoder.level_blocks.0.model."

    def conv(torch: str, name: str, layout: str = "o i k -> k i o") -> tuple[Row, Row]:
        kernel = Row(f"{torch}.weight", f"{prefix}{name}/kernel", layout)
        return kernel, Row(f"{torch}.bias", f"{prefix}{name}/bias", "o -> o")

    table = [Row("vq.level_blocks.0.k", f"{prefix}codebook", "k e -> k e")]
    table += conv(f"{encoder}{len(stages)}", "encoder/out") + conv(f"{decoder}0", "decoder/in")
    table += conv("decoder.out", "decoder/out")
    for i in stages:
        table += conv(f"{encoder}{i}.0", f"encoder/down_{i}")
        table += conv(f"{decoder}{i + 1}.1", f"decoder/up_{i}", "i o k -> k i o")
        for side, stack in (("encoder", f"{encoder}{i}.1"), ("decoder", f"{decoder}{i + 1}.0")):
            table += conv(stack + ".model.{d}.model.1", f"{side}/stack_{i}/wide_{{d}}")
            table += conv(stack + ".model.{d}.model.3", f"{side}/stack_{i}/narrow_{{d}}")
    return tuple(table)


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array by path, from the `vqvae` entry of the part's config.json alone."""
    network = VQVAEConfig(**config)
    f0 = jax.ShapeDtypeStruct((1, network.hop), jnp.float32)
    return parameter_shapes(VQVAE(network), f0, f0)
