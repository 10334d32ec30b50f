"""The PyTorch networks that `verify` uses, compared with golden vectors of the reference implementation."""

import json

import numpy as np
import pytest
import torch
import yaml

from spirit_jax.audio import load_audio
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.verification import reference
from tests.support.goldens import golden, golden_arrays, manifest, tolerance

SPEECH = "checkpoints/speech_tokenizer"


@pytest.fixture(autouse=True)
def no_gradients():
    with torch.no_grad():
        yield


def clip(name):
    return torch.from_numpy(load_audio(golden(f"audio/{name}")))[None]


def check(found, expected, entry):
    np.testing.assert_allclose(np.asarray(found), expected, rtol=0, atol=tolerance(entry))


@pytest.mark.parametrize(
    ("folder", "file", "name"),
    [
        (f"{SPEECH}/hubert_25hz", "hubert", "noise_a.wav"),
        ("variants/hubert_25hz_batch_norm", "hubert_batch_norm", "noise_a"),
    ],
)
def test_hubert_and_the_linear_quantizer_give_the_golden_features_and_units(folder, file, name):
    released = load_torch(golden(folder) / "mhubert_base_25hz.pt")
    quantizer = reference.tensors(load_torch(golden(folder) / "L11_quantizer_500.pt")["model_weight"])
    state = reference.tensors(released["model_weight"])
    features = reference.hubert(state, released["model_cfg"], 11, clip("noise_a.wav"))[0]
    arrays = golden_arrays(f"{file}.npz")
    # The tolerance is the float32 rounding of eleven layers, which the manifest gives for the first set of vectors.
    np.testing.assert_allclose(features, arrays[f"{name}/feat"], rtol=0, atol=1e-4)
    logits = reference.linear_quantizer(quantizer, features)
    np.testing.assert_array_equal(logits.argmax(-1), arrays[f"{name}/argmax_with_blank"])


@pytest.mark.parametrize(
    ("folder", "kind"), [(f"{SPEECH}/vqvae_f0_quantizer", "norm"), ("variants/vqvae_f0_quantizer_raw", "raw")]
)
def test_vqvae_gives_the_golden_latents_and_reconstruction(folder, kind):
    state = reference.tensors(load_torch(golden(folder) / "model.pt")["model"])
    config = yaml.safe_load((golden(folder) / "config.yaml").read_text())
    arrays, key = golden_arrays("vqvae.npz"), f"{kind}/tone_a.wav/"
    latents = reference.vqvae_latents(state, config, torch.from_numpy(arrays[f"{key}input"][None]))
    check(latents[0].T, arrays[f"{key}z"], f"vqvae/{key}z")
    codes = torch.from_numpy(arrays[f"{key}codes"][None]).long()
    check(reference.vqvae_decode(state, config, codes)[0], arrays[f"{key}recon"], f"vqvae/{key}recon")


def test_fcpe_gives_the_golden_confidence():
    released, arrays = load_torch(golden("variants/fcpe_tiny/fcpe_tiny.pt")), golden_arrays("fcpe.npz")
    state = reference.tensors(released["model"])
    found = reference.fcpe(state, released["config_dict"], clip("noise_a.wav"))[0]
    # Noise has no silent bands, so the values, which are below 1, differ by a few float32 roundings.
    expected = arrays["tiny/noise_a.wav/confidence"]
    np.testing.assert_allclose(found.max(-1).values, expected, rtol=0, atol=2e-5)


@pytest.mark.parametrize(("kind", "case"), [("base", "dur_true_spk2"), ("expressive", "dur_true_spk1")])
def test_hifigan_gives_the_golden_durations_and_audio(kind, case):
    folder = golden(SPEECH) / {"base": "hifigan_spiritlm_base", "expressive": "hifigan_spiritlm_expressive_w2v2"}[kind]
    state = reference.tensors(load_torch(folder / "generator.pt")["generator"])
    arrays, key = golden_arrays("vocoder.npz"), f"{kind}/{case}/"
    given = json.loads(manifest()[f"vocoder/{key}wav"]["note"])
    names = {"code": "dict", "f0_code": "f0_dict", "style_code": "style_dict"}
    streams = {names[n]: torch.tensor([[*map(int, given[n].split())]]) for n in names if n in given}
    expected = arrays[f"{key}log_dur"]
    atol = tolerance(f"vocoder/{key}log_dur")
    np.testing.assert_allclose(reference.log_durations(state, streams["dict"])[0], expected, rtol=0, atol=atol)
    durations = torch.from_numpy(arrays[f"{key}durations"]).long()
    frames = {name: codes.repeat_interleave(durations, 1) for name, codes in streams.items()}
    rows = {"spkr": torch.tensor([given["speaker_id"]])} | ({"style": torch.tensor([8])} if kind == "base" else {})
    config = json.loads((folder / "config.json").read_text())
    audio = reference.hifigan(state, config, frames, **rows)[0]
    atol = tolerance(f"vocoder/{key}wav")
    np.testing.assert_allclose(audio, arrays[f"{key}wav"], rtol=0, atol=atol)
