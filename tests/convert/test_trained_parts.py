"""Parts that were trained here are exported, read by PyTorch with equal outputs, and imported again."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import torch
import yaml

from spirit_jax.convert import weight_files
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.part_export import export_part
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import RELEASED_PARTS
from spirit_jax.convert.trained_parts import describe_trained_part, write_classifier
from spirit_jax.evaluation.classifiers import HuggingFaceSpeechClassifier, LabelClassifier
from spirit_jax.models.hifigan import initialize
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.vqvae import VQVAE
from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import WindowClassifier
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.speech.storage import read_part_config, save_part
from spirit_jax.units import SpeechUnits
from tests.support.small_vocoders import EXPRESSIVE
from tests.support.torch_hifigan import TorchHifiGan
from tests.support.torch_vqvae import TorchVQVAE

PARTS = {part.name: part for part in RELEASED_PARTS}


def exported(name, part, directory):
    """Save a part as a training run does, export it, and import what was exported; returns the released folder."""
    source = directory / "speech_tokenizer" / name
    save_part(source, part)
    describe_trained_part(name, source)
    (directory / "released").mkdir()
    export_part(PARTS[name], source).write(directory / "released", lambda size: None)
    folder = directory / "released" / PARTS[name].folder
    again = import_part(PARTS[name], folder)
    assert json.loads(json.dumps(again.config)) == read_part_config(source, (part.kind,))
    flat = {path: np.asarray(array) for path, array in again.arrays.items()}
    for path, array in jax.tree_util.tree_leaves_with_path(part.arrays()):
        np.testing.assert_array_equal(flat["/".join(key.key for key in path)], array)
    return folder


def test_a_trained_vocoder_is_read_by_pytorch(tmp_path):
    sizes = {name: EXPRESSIVE[name] for name in ("upsample_rates", "upsample_kernel_sizes", "embedding_dim")}
    config = HifiGanConfig.from_dict(
        sizes
        | {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 3]], "code_hop_size": 6}
        | {"num_embeddings": 20, "num_f0_tokens": 9, "num_style_tokens": 7, "num_speakers": 3, "num_styles": 0}
        | {"upsample_initial_channel": 24, "f0_hop_size": 12, "style_hop_size": 150, "duration_hidden_dim": 14}
    )
    params = jax.device_get(jax.jit(functools.partial(initialize, config))(jax.random.key(0)))
    vocoder = HifiGanVocoder(config, params, ["ada", "bob", "cyd"])
    folder = exported("vocoder_expressive", vocoder, tmp_path)
    assert (folder / "speakers.txt").read_text() == "ada\nbob\ncyd\n"
    network = TorchHifiGan(json.loads((folder / "config.json").read_text())).eval()
    network.load_state_dict(torch.load(folder / "generator.pt")["generator"])
    rng = np.random.default_rng(0)
    codes = [rng.integers(0, size, 11) for size in (20, 9, 7)]
    with torch.inference_mode():
        expected = network(*(torch.tensor(each)[None] for each in codes), torch.tensor([1])).numpy()[0]
    found = vocoder.decode(SpeechUnits(*codes), speaker="bob", predict_durations=False)
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_a_trained_pitch_quantizer_is_read_by_pytorch(tmp_path, monkeypatch):
    monkeypatch.setattr(weight_files, "installed_fcpe", lambda: None)  # an import would add its weights
    shape = VQVAEConfig(codes=7, embedding_size=6, width=5, depth=2)
    f0 = np.random.default_rng(0).normal(0, 2, (1, 96)).astype(np.float32)
    voiced = np.ones_like(f0)
    params = jax.device_get(jax.jit(VQVAE(shape).init)(jax.random.key(0), f0, voiced)["params"])
    config = {"interpolate": True, "normalize": True, "vqvae": dataclasses.asdict(shape), "f0": "autocorrelation"}
    part = VQVAEPitch({"kind": "vqvae", **config}, {"vqvae": params})
    folder = exported("pitch", part, tmp_path)
    assert yaml.safe_load((folder / "config.yaml").read_text())["features"] == "norm_f0_interp,vuv"
    network = TorchVQVAE(shape).eval()
    network.load_state_dict(torch.load(folder / "model.pt")["model"])
    with torch.inference_mode():
        x = torch.tensor(np.stack([f0, voiced], 1))
        codes, made = network.encode(x)[1].numpy(), network(x)[0].numpy()
    found, decoded = jax.jit(VQVAE(shape).apply)({"params": params}, f0, voiced)
    np.testing.assert_array_equal(found, codes)
    np.testing.assert_allclose(np.asarray(decoded)[0].T, made[0], atol=1e-5)
    np.testing.assert_array_equal(part.quantize(150 + f0[0], voiced[0], 150.0), codes[0])


@pytest.fixture(scope="module")
def classifier():
    encoder = Wav2Vec2Config(
        conv_layers=((8, 10, 5), (8, 3, 4), (8, 4, 4), (8, 4, 4)),
        hidden_size=16,
        num_layers=2,
        num_heads=2,
        intermediate_size=24,
        position_kernel=6,
        position_groups=4,
    )
    model = WindowClassifier(encoder, projection_size=6, num_labels=3)
    params = jax.device_get(jax.jit(model.init)(jax.random.key(0), jnp.zeros((1, 4000)))["params"])
    return model, params


def logits_there(folder, audio):
    transformers = pytest.importorskip("transformers")
    network = transformers.AutoModelForAudioClassification.from_pretrained(folder).eval()
    normalized = (audio - audio.mean()) / np.sqrt(audio.var() + 1e-7)
    with torch.inference_mode():
        return network(torch.tensor(normalized)[None]).logits.numpy()[0]


def test_a_trained_style_encoder_and_a_classifier_are_read_by_transformers(classifier, tmp_path):
    model, params = classifier
    config = {"encoder": dataclasses.asdict(model.config), "projection_size": 6, "num_labels": 3}
    part = Wav2Vec2Style({"kind": "wav2vec2", **config}, params)
    source = tmp_path / "style"
    save_part(source, part)
    describe_trained_part("style", source)
    (tmp_path / "released").mkdir()
    export_part(PARTS["style"], source).write(tmp_path / "released", lambda size: None)
    audio = np.random.default_rng(0).normal(0, 0.1, 15_000).astype(np.float32)  # one window
    expected = np.asarray(jax.jit(model.apply)({"params": params}, audio[None])[0])[0, 0]
    np.testing.assert_allclose(logits_there(tmp_path / "released/style_encoder_w2v2", audio), expected, atol=2e-5)

    write_classifier(config | {"labels": ["angry", "happy", "neutral"]}, params, tmp_path / "classifier")
    directory = str(tmp_path / "classifier")
    np.testing.assert_allclose(LabelClassifier(directory).logits(audio), expected, atol=2e-5)
    sentiment = ("negative", "positive", "neutral")[int(np.argmax(expected))]
    assert HuggingFaceSpeechClassifier(directory).classify([audio]) == [sentiment]


def test_a_part_without_a_released_form_is_named(tmp_path):
    (tmp_path / "config.json").write_text('{"kind": "griffin_lim"}')
    with pytest.raises(ConversionError, match="kind 'griffin_lim' has no released form"):
        describe_trained_part("vocoder_base", tmp_path)
