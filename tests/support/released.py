"""The synthetic released checkpoints of the golden set, converted by our tables."""

import json
import pathlib

import numpy as np
import yaml

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert import table
from spirit_jax.convert.components import fcpe, hubert, style, vqvae
from spirit_jax.convert.formats.torch_file import load_torch

SPEECH = "checkpoints/speech_tokenizer"


def convert(component, config, tensors, where="golden"):
    arrays, _ = table.to_ours(component.rows(config), tensors, component.shapes(config), where)
    return unflatten({path: np.asarray(array) for path, array in arrays.items()})


def hubert_part(directory: pathlib.Path):
    """(config.json, parameters) of a phonetic part."""
    encoder = load_torch(directory / "mhubert_base_25hz.pt")
    quantizer = load_torch(directory / "L11_quantizer_500.pt")
    config = hubert.part_config(encoder["model_cfg"], encoder["task_cfg"], quantizer["model_cfg"])
    return config, convert(hubert, config, {**encoder["model_weight"], **quantizer["model_weight"]})


def style_part(directory: pathlib.Path):
    config = style.part_config(json.loads((directory / "config.json").read_text()))
    return config, convert(style, config, load_torch(directory / "pytorch_model.bin"))


def fcpe_network(file: pathlib.Path):
    released = load_torch(file)
    config = fcpe.part_config(released["config_dict"])
    return config, convert(fcpe, config, released["model"])


def vqvae_network(directory: pathlib.Path):
    config = vqvae.part_config(yaml.safe_load((directory / "config.yaml").read_text()))
    return config, convert(vqvae, config["vqvae"], load_torch(directory / "model.pt")["model"])


def pitch_part(directory: pathlib.Path, fcpe_file: pathlib.Path):
    """(config.json, parameters) of a pitch part with FCPE."""
    config, quantizer = vqvae_network(directory)
    config["fcpe"], extractor = fcpe_network(fcpe_file)
    return config, {"vqvae": quantizer, "fcpe": extractor}


def bundled_fcpe() -> pathlib.Path:
    """The real weights inside the torchfcpe wheel (found without importing it)."""
    import importlib.metadata

    import pytest

    try:
        files = importlib.metadata.files("torchfcpe") or ()
    except importlib.metadata.PackageNotFoundError:
        pytest.skip("torchfcpe (test extra), which holds the real FCPE weights, is not installed")
    return pathlib.Path(next(file for file in files if file.name == "fcpe_c_v001.pt").locate())
