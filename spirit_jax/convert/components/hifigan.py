"""The vocoders: `hifigan_spiritlm_{base,expressive_w2v2}/{config.json,generator.pt}` (docs/formats.md, "Vocoders")."""

import dataclasses
import functools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.table import Row, Rows, shapes_of
from spirit_jax.models.hifigan import HifiGan, split_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig


def part_config(config: Mapping[str, Any], speakers: Sequence[str] = (), styles: Sequence[str] = ()) -> dict[str, Any]:
    """The vocoder part's config.json, from the released one and the lines of `speakers.txt` and `styles.txt`.

    Raises:
        ConversionError: a network that `models.hifigan` does not implement; names the field.
    """
    duration = config.get("dur_predictor_params") or {}
    optional = ("sampling_rate", "f0_hop_size", "style_hop_size", "num_f0_tokens", "num_style_tokens")
    try:
        network = HifiGanConfig(
            num_embeddings=config["num_embeddings"],
            num_speakers=config.get("num_speakers", 200) if config.get("multispkr") else 0,
            num_styles=config.get("num_styles", 100) if config.get("multistyle") else 0,
            embedding_dim=config["embedding_dim"],
            duration_hidden_dim=duration.get("var_pred_hidden_dim", 0),
            upsample_rates=tuple(config["upsample_rates"]),
            upsample_kernel_sizes=tuple(config["upsample_kernel_sizes"]),
            upsample_initial_channel=config["upsample_initial_channel"],
            resblock_kernel_sizes=tuple(config["resblock_kernel_sizes"]),
            resblock_dilation_sizes=tuple(tuple(dilations) for dilations in config["resblock_dilation_sizes"]),
            code_hop_size=config.get("code_hop_size", math.prod(config["upsample_rates"])),
            **{name: config[name] for name in optional if name in config},
        )
    except KeyError as error:
        raise ConversionError(f"config.json: {error.args[0]} is missing") from error
    except ValueError as error:
        raise ConversionError(f"config.json: {error}") from error
    checks = [
        ("resblock", str(config.get("resblock", "1")), "1"),
        ("model_in_dim", config.get("model_in_dim", network.model_in_dim), network.model_in_dim),
    ]
    if duration:
        checks += [
            ("dur_predictor_params.var_pred_kernel_size", duration.get("var_pred_kernel_size"), 3),
            ("dur_predictor_params.encoder_embed_dim", duration.get("encoder_embed_dim"), network.embedding_dim),
        ]
    for where, found, expected in checks:
        if found != expected:
            raise ConversionError(f"config.json: {where} is {found!r}, expected {expected!r}")
    names = {"speakers": list(speakers), "styles": list(styles)}
    return {"kind": "hifigan", "hifigan": dataclasses.asdict(network), **names}


def released_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """The content of config.json that `part_config` reads back: the inverse for a part that was trained here."""
    network = HifiGanConfig.from_dict(config["hifigan"])
    fields = {
        "resblock": "1",
        **{name: value for name, value in config["hifigan"].items() if name not in ("duration_hidden_dim",)},
        "model_in_dim": network.model_in_dim,
    }
    if network.duration_hidden_dim:
        fields["dur_predictor_params"] = {
            "encoder_embed_dim": network.embedding_dim,
            "var_pred_hidden_dim": network.duration_hidden_dim,
            "var_pred_kernel_size": 3,
            "var_pred_dropout": 0.0,
        }
    for field, size in (("multispkr", "num_speakers"), ("multistyle", "num_styles")):
        if fields[size]:
            fields[field] = "from_input_file"
        else:
            del fields[size]
    return fields


def rows(config: Mapping[str, Any], prefix: str = "") -> Rows:
    """The table; `prefix` begins every JAX path."""

    def normalized(torch: str, name: str, gain: str = "o 1 1 -> 1 1 o", layout: str = "o i k -> k i o") -> Rows:
        """A convolution with weight norm, under either of PyTorch's names for it."""
        new = f"{torch}.parametrizations.weight.original"
        return (
            Row((f"{torch}.weight_g", f"{new}0"), f"{prefix}{name}/weight_g", gain),
            Row((f"{torch}.weight_v", f"{new}1"), f"{prefix}{name}/weight_v", layout),
            Row(f"{torch}.bias", f"{prefix}{name}/bias", "o -> o"),
        )

    duration = f"{prefix}duration_predictor/"
    return (
        Row("dict.weight", f"{prefix}unit_embedding/embedding", "n e -> n e"),
        Row("f0_dict.weight", f"{prefix}f0_embedding/embedding", "n e -> n e"),
        Row("style_dict.weight", f"{prefix}style_embedding/embedding", "n e -> n e"),
        Row("spkr.weight", f"{prefix}speaker_embedding/embedding", "n e -> n e"),
        Row("style.weight", f"{prefix}global_style_embedding/embedding", "n e -> n e"),
        Row("dur_predictor.conv{j:1,2}.0.weight", duration + "conv{j}/kernel", "o i k -> k i o"),
        Row("dur_predictor.conv{j:1,2}.0.bias", duration + "conv{j}/bias", "o -> o"),
        Row("dur_predictor.ln{j:1,2}.weight", duration + "ln{j}/scale", "o -> o"),
        Row("dur_predictor.ln{j:1,2}.bias", duration + "ln{j}/bias", "o -> o"),
        Row("dur_predictor.proj.weight", duration + "proj/kernel", "o i -> i o"),
        Row("dur_predictor.proj.bias", duration + "proj/bias", "o -> o"),
        *normalized("conv_pre", "conv_pre"),
        *normalized("ups.{s}", "ups_{s}", "i 1 1 -> 1 i 1", "i o k -> k i o"),
        *normalized("resblocks.{r}.convs{j:1,2}.{d}", "resblocks_{r}/convs{j}_{d}"),
        *normalized("conv_post", "conv_post"),
    )


def shapes(config: Mapping[str, Any]) -> dict[str, tuple[int, ...]]:
    """The shape of each JAX array by path, weight norm in its two factors; `config` is the part's config.json."""
    return dict(_shapes(HifiGanConfig.from_dict(config["hifigan"])))


@functools.cache  # tracing the network takes a second
def _shapes(config: HifiGanConfig) -> dict[str, tuple[int, ...]]:
    model, units = HifiGan(config), jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(
        lambda key, x: split_weight_norm(dict(model.init(key, x)["params"])), jax.random.key(0), units
    )
    return shapes_of(params)
