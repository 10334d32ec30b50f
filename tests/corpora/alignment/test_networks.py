"""Emissions of the aligners' networks: windows, batches and features of long clips give what whole clips give."""

import dataclasses

import jax
import numpy as np
import pytest

from spirit_jax.convert.components import ctc
from spirit_jax.corpora.alignment import mel_network, wav2vec2_network
from spirit_jax.corpora.alignment.alphabet import Alphabet
from spirit_jax.corpora.alignment.mel_network import MelNetwork, mel_features
from spirit_jax.corpora.alignment.wav2vec2_network import Wav2Vec2Network
from spirit_jax.models.mel_ctc import MelCTC, MelCTCConfig
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.speech.features import log_mel

ENCODER = Wav2Vec2Config(
    conv_layers=((16, 10, 5),) + ((16, 3, 2),) * 4 + ((16, 2, 2),) * 2,
    hidden_size=32,
    num_layers=1,
    num_heads=2,
    intermediate_size=32,
    position_kernel=8,
    position_groups=2,
)


def noise(seconds, seed=0):
    return 0.1 * np.random.default_rng(seed).standard_normal(int(seconds * 16_000), np.float32)


@pytest.fixture(scope="module")
def mel():
    config = MelCTCConfig(symbols=5, width=16)
    params = jax.jit(MelCTC(config).init)(jax.random.key(0), np.zeros((1, 2, 40)), np.array([2]))["params"]
    return MelNetwork("random", Alphabet(("", *"abcd")), config, jax.device_get(params), np.zeros(5, np.float32))


def test_features_of_long_audio_are_those_of_the_whole(monkeypatch):
    audio = noise(9.3)
    expected = mel_features(audio)
    monkeypatch.setattr(mel_network, "_UNITS_AT_ONCE", 40)
    # float32 sums; the samples of a frame are the same
    np.testing.assert_allclose(mel_features(audio), expected, atol=1e-5)
    plain = log_mel(np.pad(audio, (0, 720)))
    assert len(expected) == len(plain) == 4 * (audio.size // 640 + 1)


def test_windows_and_batches_of_the_trained_network_change_nothing(mel, monkeypatch):
    clips = [noise(seconds, seed) for seed, seconds in enumerate((7.7, 0.4, 3.1))]
    expected = [mel.log_probs([clip])[0] for clip in clips]
    assert [len(found) for found in expected] == [len(mel_features(clip)) for clip in clips]
    np.testing.assert_allclose(np.exp(expected[0]).sum(1), 1, rtol=1e-5)
    monkeypatch.setattr(mel_network, "_WINDOW", 128)
    for found, whole in zip(mel.log_probs(clips), expected, strict=True):
        np.testing.assert_allclose(found, whole, atol=1e-4)


def test_an_output_depends_on_its_context_and_on_nothing_else(mel):
    config, params = mel._network, mel._params
    mel_btc = np.random.default_rng(0).standard_normal((1, 200, 40)).astype(np.float32)
    gradient = jax.jit(jax.grad(lambda x: MelCTC(config).apply({"params": params}, x, np.array([200]))[0, 100].sum()))(
        mel_btc
    )
    reached = np.flatnonzero(np.abs(gradient[0]).sum(1))
    assert 0 < 100 - reached.min() <= config.context
    assert 0 < reached.max() - 100 <= config.context


@pytest.fixture(scope="module")
def released():
    config = {
        "encoder": dataclasses.asdict(ENCODER),
        "symbols": ["<pad>", "|", "A", "B", "<unk>"],
        "blank": 0,
        "separator": 1,
        "unused": [4],
        "normalize": True,
    }
    init = jax.jit(ctc.network(config).init)
    params = init(jax.random.key(0), np.zeros((1, ENCODER.receptive_field), np.float32))["params"]
    return config, jax.device_get(params)


def logits_of(released, audio):
    config, params = released
    return np.array(jax.jit(ctc.network(config).apply)({"params": params}, audio[None])[0][0])


def test_a_clip_of_one_window_gets_the_networks_emissions(released):
    config, params = released
    clip = 0.3 + 0.2 * noise(1.5)
    (found,) = Wav2Vec2Network("random", config, params).log_probs([clip])
    normalized = (clip - clip.mean()) / clip.std()
    logits = logits_of(released, normalized)
    logits[:, 4] = -1e30  # an output that was never trained
    np.testing.assert_allclose(found[:, :4], jax.nn.log_softmax(logits)[:, :4], atol=1e-4)
    assert (found[:, 4] < -1e9).all()


def test_windows_of_a_long_clip_lie_where_they_belong(released, monkeypatch):
    config, params = released
    network = Wav2Vec2Network("random", config, params)
    clip, short = noise(9.7), noise(0.02)
    monkeypatch.setattr(wav2vec2_network, "WINDOW_S", 2)
    monkeypatch.setattr(wav2vec2_network, "CONTEXT_S", 1)
    empty, found = network.log_probs([short, clip])
    assert empty.shape == (0, 5)
    assert len(found) == ENCODER.frames(clip.size)
    normalized = (clip - clip.mean()) / clip.std()
    window = normalized[(100 - 50) * 320 : (200 + 50 - 1) * 320 + 400]  # frames 100 to 200, and 50 on each side
    expected = jax.nn.log_softmax(logits_of(released, window)[:, :4])[50:150]
    np.testing.assert_allclose(found[100:200, :4], expected, atol=1e-4)


def test_the_name_changes_with_the_weights(released):
    config, params = released
    other = {**params, "head": {**params["head"], "kernel": params["head"]["kernel"] + 1}}
    names = {Wav2Vec2Network("x", config, weights).name for weights in (params, other)}
    assert len(names) == 2
