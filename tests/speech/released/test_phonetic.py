"""HuBERT units against the reference, in any batch, and the replacement of blanks."""

import jax
import numpy as np
import pytest

from spirit_jax.audio import AudioError
from spirit_jax.speech.released import batches
from spirit_jax.speech.released.phonetic import HubertEncoder, replace_blanks
from tests.support import released
from tests.support.golden_clips import CLIPS, clip
from tests.support.goldens import check_codes, golden, golden_arrays, golden_json
from tests.support.released import HUBERT

pytestmark = pytest.mark.optimized


@pytest.fixture(autouse=True)
def few_lengths(monkeypatch):
    monkeypatch.setattr(batches, "PADDED_LENGTHS", released.PADDED_LENGTHS)


@pytest.fixture(scope="module")
def encoder():
    return HubertEncoder.load(*released.hubert_part(golden(HUBERT)))


@pytest.mark.accelerator
def test_units_equal_the_reference(encoder):
    clips = [clip(name) for name in CLIPS]
    arrays, strings = golden_arrays("hubert.npz"), golden_json("speech_tokenizer.json")
    found = encoder.encode_batch(clips)
    for name, units in zip(CLIPS, found, strict=True):
        assert units.dtype == np.int32
        check_codes(units, arrays[f"{name}.wav/units"], arrays[f"{name}.wav/top2_margin"])
        assert strings[f"{name}.wav"]["base"]["ok"]["units"]["hubert"] == " ".join(map(str, units))
    for audio, units in zip(clips[:2], found, strict=False):
        np.testing.assert_array_equal(encoder.encode(audio), units)


@pytest.mark.slow
def test_units_of_a_batch_norm_encoder_do_not_depend_on_the_batch():
    """If padding were not zeroed after the norm, units would change with the batch."""
    encoder = HubertEncoder.load(*released.hubert_part(golden("variants/hubert_25hz_batch_norm")))
    arrays, names = golden_arrays("hubert_batch_norm.npz"), CLIPS[1:]
    for name, units in zip(names, encoder.encode_batch([clip(name) for name in names]), strict=True):
        check_codes(units, arrays[f"{name}/units"], arrays[f"{name}/top2_margin"])


def test_units_around_length_thresholds_equal_the_reference(encoder):
    """The first n samples of a clip, with n around each threshold, in one batch. The reference fails below 720."""
    cases = golden_json("hubert_edge_lengths.json")
    audio = clip(cases["clip"])
    lengths = [int(n) for n, case in cases["results"].items() if "ok" in case]
    for n, units in zip(lengths, encoder.encode_batch([audio[:n] for n in lengths]), strict=True):
        assert units.tolist() == cases["results"][str(n)]["ok"], n
    for n in (1, 399, 400, 719):
        assert "raises" in cases["results"][str(n)]
        with pytest.raises(AudioError, match=rf"phonetic units need 720 to 1600000 samples \(16 kHz\), found {n}"):
            encoder.encode(audio[:n])


def test_k_means_quantizer_takes_the_nearest_centroid(encoder):
    config, arrays = encoder.config(), encoder.arrays()
    centroids = np.random.default_rng(0).normal(size=(20, 32)).astype(np.float32)
    first_layer = {**arrays["encoder"], "layers": jax.tree.map(lambda array: array[:1], arrays["encoder"]["layers"])}
    small = HubertEncoder.load(
        {
            "kind": "hubert",
            "layer": 1,
            "encoder": {**config["encoder"], "num_layers": 1},
            "quantizer": {"kind": "kmeans"},
        },
        {"encoder": first_layer, "quantizer": {"centroids": centroids}},
    )
    audio = clip("noise_a")
    (features,) = small.features([audio])
    expected = np.square(features[:, None] - centroids).sum(-1).argmin(-1)
    np.testing.assert_array_equal(small.encode(audio), expected)


@pytest.mark.parametrize("case", golden_json("blank_replacement.json"), ids=lambda case: str(case["argmax"])[:30])
def test_blanks_are_replaced_as_in_the_reference(case):
    """The reference rolls units over the flattened batch; here the batch is one utterance."""
    codes, expected = np.concatenate(case["argmax"]), np.concatenate(case["units"])
    second = np.arange(len(codes))
    if (codes == 500).all():  # the reference keeps the blanks, and its vocoder fails
        expected = second
    np.testing.assert_array_equal(replace_blanks(codes, 500, second), expected)


def test_bad_audio_is_refused_with_its_index(encoder):
    good = np.zeros(2000, np.float32)
    with pytest.raises(AudioError, match=r"clip 1: .* found 100"):
        encoder.encode_batch([good, good[:100]])
    with pytest.raises(AudioError, match=r"float32 \[R\] at 16 kHz, found float64"):
        encoder.encode(good.astype(np.float64))
    with pytest.raises(AudioError, match=r"found float32 \[2, 1000\]"):
        encoder.encode(good.reshape(2, -1))
    with pytest.raises(AudioError, match="found 1600001"):
        encoder.encode(np.zeros(1_600_001, np.float32))
    assert encoder.encode_batch([]) == []
