"""The synthetic released checkpoints of the golden set, converted by the mapping tables."""

import importlib.metadata
import pathlib

import numpy as np
import pytest
import yaml

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert import table
from spirit_jax.convert.components import fcpe, hubert, style, vqvae
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.core.files import read_json, read_text
from spirit_jax.speech.released.batches import MAX_SAMPLES

SPEECH = "checkpoints/speech_tokenizer"
HUBERT = f"{SPEECH}/hubert_25hz"
STYLE = f"{SPEECH}/style_encoder_w2v2"
VQVAE = f"{SPEECH}/vqvae_f0_quantizer"
TINY_FCPE = "variants/fcpe_tiny/fcpe_tiny.pt"
"""Golden parts of a released tree, as paths under tests/golden."""


PADDED_LENGTHS = (52_000, 160_000, MAX_SAMPLES)
"""Lengths for `batches.PADDED_LENGTHS`: units do not depend on them, and each network is compiled for every length."""


def convert(component, config, tensors, where="golden"):
    """The tree of parameters that a component's table makes of released tensors."""
    arrays, _ = table.to_jax(component.rows(config), tensors, component.shapes(config), where)
    return unflatten({path: np.asarray(array) for path, array in arrays.items()})


def hubert_part(directory: pathlib.Path):
    """(config.json, parameters) of a phonetic part."""
    encoder = load_torch(directory / "mhubert_base_25hz.pt")
    quantizer = load_torch(directory / "L11_quantizer_500.pt")
    config = hubert.part_config(encoder["model_cfg"], encoder["task_cfg"], quantizer["model_cfg"])
    return config, convert(hubert, config, {**encoder["model_weight"], **quantizer["model_weight"]})


def style_part(directory: pathlib.Path):
    """(config.json, parameters) of a style part."""
    config = style.part_config(read_json(directory / "config.json"))
    return config, convert(style, config, load_torch(directory / "pytorch_model.bin"))


def fcpe_network(file: pathlib.Path):
    """(config, parameters) of FCPE."""
    released = load_torch(file)
    config = fcpe.part_config(released["config_dict"])
    return config, convert(fcpe, config, released["model"])


def vqvae_network(directory: pathlib.Path):
    """(config.json without FCPE, parameters) of a pitch part's VQ-VAE."""
    config = vqvae.part_config(yaml.safe_load(read_text(directory / "config.yaml")))
    return config, convert(vqvae, config["vqvae"], load_torch(directory / "model.pt")["model"])


def pitch_part(directory: pathlib.Path, fcpe_file: pathlib.Path):
    """(config.json, parameters) of a pitch part with FCPE."""
    config, quantizer = vqvae_network(directory)
    config["fcpe"], extractor = fcpe_network(fcpe_file)
    return config, {"vqvae": quantizer, "fcpe": extractor}


def bundled_fcpe() -> pathlib.Path:
    """The released weights inside the torchfcpe wheel, which is not imported. Skips the test without the wheel."""
    try:
        files = importlib.metadata.files("torchfcpe") or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchfcpe (test extra), which holds the real FCPE weights, is not installed")
    return pathlib.Path(next(file for file in files if file.name == "fcpe_c_v001.pt").locate())
