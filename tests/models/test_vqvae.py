"""The pitch VQ-VAE against the reference's golden vectors."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.convert import table
from spirit_jax.convert.components import vqvae
from spirit_jax.models.vqvae import VQVAE, normalize_f0
from spirit_jax.models.vqvae_config import VQVAEConfig
from tests.support import released
from tests.support.goldens import golden, golden_arrays, golden_json, tolerance

DIRECTORIES = {"norm": released.VQVAE, "raw": "variants/vqvae_f0_quantizer_raw"}


@functools.cache
def parameters(kind):
    config, params = released.vqvae_network(golden(DIRECTORIES[kind]))
    assert config["vqvae"] == dataclasses.asdict(VQVAEConfig())  # full size: the released one is this small
    assert config["normalize"] == (kind == "norm")
    return params


@jax.jit
def run(params, f0, voiced, frames):
    network = VQVAE()
    z, count = network.apply({"params": params}, f0, voiced, frames, method="latents")
    codes, _ = network.apply({"params": params}, f0, voiced, frames, method="encode")
    return z, codes, count, network.apply({"params": params}, codes, count, method="decode")


def quantize(kind, clips):
    """`run` on clips in one batch, whose padding is rubbish, NaN included. One shape for all tests: compiled once."""
    frames = np.array([len(f0) for f0, _ in clips] + [16] * (8 - len(clips)))
    f0, voiced = np.full((2, 8, 600), 300.0, np.float32)
    f0[:, -3:] = np.nan
    for row, clip in enumerate(clips):
        f0[row, : len(clip[0])], voiced[row, : len(clip[1])] = clip
    return jax.tree.map(np.asarray, run(parameters(kind), f0, voiced, frames))


@pytest.mark.parametrize("kind", DIRECTORIES)
def test_latents_codes_and_reconstruction(kind):
    arrays = golden_arrays("vqvae.npz")
    names = [f"{kind}/{clip}.wav/" for clip in ("espeak_a_22k", "tone_a")]
    z, codes, count, recon = quantize(kind, [arrays[name + "input"] for name in names])
    for row, name in enumerate(names):
        n = count[row]
        np.testing.assert_allclose(z[row, :n].T, arrays[name + "z"], rtol=0, atol=tolerance(f"vqvae/{name}z"))
        np.testing.assert_array_equal(codes[row, :n], arrays[name + "codes"])
        atol = tolerance(f"vqvae/{name}recon")
        np.testing.assert_allclose(recon[row, : 16 * n].T, arrays[name + "recon"], rtol=0, atol=atol)


def test_lengths_around_each_code():
    """16, 17, 31, 32, ... F0 frames, all in one batch."""
    arrays = golden_arrays("vqvae.npz")
    lengths = sorted(
        int(key.split("/")[0].removeprefix("synth")) for key in arrays if key.startswith("synth") if "f0" in key
    )
    clips = [(arrays[f"synth{n}/f0"], arrays[f"synth{n}/vuv"]) for n in lengths]
    _, codes, count, recon = quantize("raw", clips)
    for row, n in enumerate(lengths):
        assert count[row] == n // 16
        np.testing.assert_array_equal(codes[row, : n // 16], arrays[f"synth{n}/raw_codes"], err_msg=str(n))
        expected = arrays[f"synth{n}/raw_recon"]
        np.testing.assert_allclose(recon[row, : expected.shape[1]].T, expected, rtol=0, atol=1e-3)  # the manifest's


def test_normalization():
    """By the voiced mean of the clip, by a given mean, and the odd cases of the reference."""
    arrays, odd = golden_arrays("vqvae.npz"), golden_json("vqvae_odd.json")
    for clip in ("espeak_a_22k", "tone_a"):
        f0, voiced = jnp.asarray(arrays[f"raw/{clip}.wav/input"])
        expected = arrays[f"norm/{clip}.wav/input"][0]
        atol = tolerance(f"vqvae/norm/{clip}.wav/input")
        np.testing.assert_allclose(normalize_f0(f0[None], voiced[None])[0], expected, rtol=0, atol=atol)
    f0, unvoiced = jnp.full((1, 64), 100.0), jnp.zeros((1, 64))

    def codes(kind, f0, voiced):
        _, found, count, _ = quantize(kind, [(f0[0], voiced[0])])
        return found[0, : count[0]].tolist()

    assert codes("norm", normalize_f0(f0, unvoiced), unvoiced) == odd["all_unvoiced_norm(T=64,f0=100,vuv=0)"]["ok"]
    assert codes("raw", f0, unvoiced) == odd["all_unvoiced_raw(T=64,f0=100,vuv=0)"]["ok"]
    shifted = normalize_f0(f0, 1 - unvoiced, jnp.array([140.0]))
    assert codes("norm", shifted, 1 - unvoiced) == odd["speaker stats given, f0=100, mean=140"]["ok"]
    np.testing.assert_array_equal(normalize_f0(0 * f0, unvoiced), 0 * f0)  # no F0 at all: zero, not NaN


def test_too_short():
    network = VQVAE()
    with pytest.raises(ValueError, match="15 frames: a code needs 16"):
        network.init(jax.random.key(0), np.zeros((1, 15)), np.zeros((1, 15)))


def test_full_size():
    full = json.loads(golden("FULL_SIZE.json").read_text())["vqvae_f0_quantizer/model.pt"]
    config = vqvae.part_config(full["config"])["vqvae"]
    shapes = vqvae.shapes(config)
    found = {
        name: tensor.shape for tensor in table.tensor_mappings(vqvae.rows(config), shapes) for name in tensor.names
    }
    assert found == {key: tuple(shape) for key, shape in full["state"].items()}
    assert sum(int(np.prod(shape)) for shape in shapes.values()) == full["params_with_codebook_buffer"]


def test_a_config_that_we_do_not_have_is_refused():
    config = json.loads(golden("FULL_SIZE.json").read_text())["vqvae_f0_quantizer/model.pt"]["config"]
    with pytest.raises(ValueError, match="features is 'mel'"):
        vqvae.part_config({**config, "features": "mel"})
    with pytest.raises(ValueError, match="encoder_params.levels is 2"):
        vqvae.part_config({**config, "encoder_params": {**config["encoder_params"], "levels": 2}})
    with pytest.raises(ValueError, match="width is 64 in the encoder and 32 in the decoder"):
        vqvae.part_config({**config, "encoder_params": {**config["encoder_params"], "width": 64}})
