"""The code for accelerators, run on CPU: its layouts differ and its shapes are fewer; units and audio are the same."""

import numpy as np
import pytest

from spirit_jax.kernels.platform import use_kernels
from spirit_jax.speech.loading import load_vocoder
from spirit_jax.speech.released import batches, synthesis
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.units import SpeechUnits
from tests.support import checkpoints, released
from tests.support.golden_clips import CLIPS, clip
from tests.support.goldens import check_codes, golden, golden_arrays
from tests.support.released import HUBERT, STYLE


@pytest.fixture
def accelerator(monkeypatch):
    monkeypatch.setattr(batches, "MAX_SAMPLES", 96_000)
    monkeypatch.setattr(batches, "PADDED_LENGTHS", (16_000, 24_000, 32_000, 48_000, 96_000))
    monkeypatch.setattr(synthesis, "WINDOWS", (32, 64))
    monkeypatch.setattr(synthesis, "MAX_BATCH", 2)
    with use_kernels("tpu"):
        yield


def test_phonetic_units_equal_the_reference(accelerator):
    encoder, arrays = HubertEncoder.load(*released.hubert_part(golden(HUBERT))), golden_arrays("hubert.npz")
    for name, units in zip(CLIPS, encoder.encode_batch([clip(name) for name in CLIPS]), strict=True):
        check_codes(units, arrays[f"{name}.wav/units"], arrays[f"{name}.wav/top2_margin"])


def test_style_units_equal_the_reference(accelerator):
    encoder, arrays = Wav2Vec2Style.load(*released.style_part(golden(STYLE))), golden_arrays("style.npz")
    for name, units in zip(CLIPS, encoder.encode_batch([clip(name) for name in CLIPS]), strict=True):
        np.testing.assert_array_equal(units, arrays[f"{name}.wav/codes"], err_msg=name)


@pytest.mark.parametrize("variant", ["base", pytest.param("expressive", marks=pytest.mark.slow)])
def test_audio_equals_that_of_the_code_for_cpus(accelerator, monkeypatch, variant):
    """Clips shorter and longer than the window, compared with the code for CPUs.

    Other tests hold that code to the reference. Two float32 programs for one network differ by up to 2e-6.
    """
    rng = np.random.default_rng(0)
    units = [
        SpeechUnits(
            rng.integers(0, 20, n),
            *((rng.integers(0, 8, n // 2), rng.integers(0, 8, -(-n // 25))) if variant == "expressive" else ()),
        )
        for n in (3, 40, 100)
    ]
    directory = checkpoints.with_speech(f"small_{variant}")
    found = load_vocoder(directory, variant).decode_batch(units, predict_durations=False)
    monkeypatch.undo()
    with use_kernels("cpu"):
        expected = load_vocoder(directory, variant).decode_batch(units, predict_durations=False)
    for one, other in zip(found, expected, strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=2e-6)


def test_one_batch_size_is_compiled_for_each_length(accelerator):
    shapes = set()

    def run(audio, lengths):
        shapes.add(audio.shape)
        return np.asarray(audio).sum(1, keepdims=True), np.ones(len(audio), int)

    clips = [np.ones(n, np.float32) for n in (800, 16_001, 30_000, 40_000, 90_000, 50_000)]
    for count in (1, 2, 5, 6):
        found = batches.encode_clips(run, clips[:count], 1, "sums")
        assert [float(x[0]) for (x,) in found] == [len(clip) for clip in clips[:count]]
    assert shapes == {(2, 48_000), (1, 96_000)}
