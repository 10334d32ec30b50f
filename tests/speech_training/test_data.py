"""Crops, masks, cepstra, clusters, changes of audio and measures: all in NumPy, against other implementations."""

import dataclasses
import types

import jax
import numpy as np
import pytest
from sklearn.cluster import MiniBatchKMeans
from sklearn.metrics import normalized_mutual_info_score

from spirit_jax.core.errors import SpiritError
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import LinearQuantizer
from spirit_jax.parallel.sharding import HostShare
from spirit_jax.speech.features import level, log_mel
from spirit_jax.speech.mfcc import differences, label_features, mfcc
from spirit_jax.speech_training import kmeans, labels
from spirit_jax.speech_training.augment import add_noise, reverberate, shift, stretch
from spirit_jax.speech_training.cepstra import cepstra
from spirit_jax.speech_training.crops import Clips, Crop, CropBatches, CropShape, held_out_crops
from spirit_jax.speech_training.hubert_config import MaskConfig
from spirit_jax.speech_training.masking import draw_mask
from spirit_jax.speech_training.purity import joint_counts, quality, unit_quality
from spirit_jax.speech_training.quantizer_config import AugmentConfig, QuantizerTraining
from spirit_jax.speech_training.quantizers import (
    QuantizerRows,
    collapsed,
    edit_distance,
    imitate_centroids,
    unit_edit_distance,
)
from tests.support.sounds import buzz

SHAPE = CropShape(samples=1000, minimum=500, hop=10)


class Sound(Utterance):
    """An utterance whose audio is an array."""

    def load(self):
        return self.audio


def _clips(sizes=(3000, 700, 1500, 2000), bad=()):
    """Clips whose samples tell which clip and which sample they are."""
    made = [np.arange(size, dtype=np.float32) + 10_000 * (index + 1) for index, size in enumerate(sizes)]
    return Clips([Sound(str(index), audio, "") for index, audio in enumerate([*made, *bad])])


def _row(crop, rng):
    return {"audio_br": crop.audio, "length_b": np.int32(crop.length), "drawn_b": rng.random()}


def _batches(clips, share=None, state=None):
    return CropBatches(clips, SHAPE, _row, rows=4, seed=3, share=share or HostShare(0, 1), state=state)


def test_batches_depend_on_seed_and_step_alone():
    whole = [next(batches) for batches in [_batches(_clips())] for _ in range(5)]
    first = _batches(_clips())
    for _ in range(2):
        next(first)
    resumed = _batches(_clips(), state=first.state())
    for expected in whole[2:]:
        found = next(resumed)
        assert all((found[name] == expected[name]).all() for name in expected)
    halves = [_batches(_clips(), HostShare(index, 2)) for index in range(2)]
    for expected in whole[:2]:
        found = np.concatenate([next(half)["audio_br"] for half in halves])
        assert (found == expected["audio_br"]).all()
    clips_of_an_epoch = whole[0]["audio_br"][:, 0] // 10_000
    assert sorted(clips_of_an_epoch) == [1, 2, 3, 4]
    assert not (whole[0]["audio_br"][:, 0] % 10).any()  # starts are multiples of the hop
    short = whole[0]["length_b"] == 700
    assert short.sum() == 1
    assert not whole[0]["audio_br"][short, 700:].any()


def test_unusable_clips_are_named_counted_and_replaced(caplog):
    silent, broken = np.zeros(2000, np.float32), np.full(2000, np.nan, np.float32)
    clips = _clips(sizes=(3000, 400, 1500), bad=(silent, broken))
    found = np.concatenate([next(batches)["audio_br"] for batches in [_batches(clips)] for _ in range(10)])
    assert set(found[:, 0] // 10_000) == {1, 3}
    assert set(clips.skipped) == {3, 4}
    assert "utterance '3': its audio is silent" in caplog.text
    assert "'4': its audio holds samples that are" in caplog.text
    with pytest.raises(SpiritError, match="100 clips in a row cannot be used"):
        next(_batches(_clips(sizes=(400,))))


def test_a_kept_part_of_a_recording_does_not_keep_the_recording_in_memory():
    recording = np.ones(5000, np.float32)
    clips = Clips([Sound("part", recording[1000:2000], "")])
    assert not np.shares_memory(clips.audio(0), recording)
    assert clips.audio(0).base is None


def test_clips_of_more_than_100_seconds_are_computed_in_chunks(monkeypatch):
    monkeypatch.setattr(labels, "CHUNK_SAMPLES", 1000)
    config = Wav2Vec2Config(conv_layers=((4, 10, 5), (4, 4, 4)))

    def frames(clips):
        assert all(clip.size <= 1000 for clip in clips)
        return _frames(clips)

    def _frames(clips):
        windows = [np.lib.stride_tricks.sliding_window_view(clip, config.receptive_field) for clip in clips]
        return [window[:: config.hop] for window in windows]

    audio = np.arange(5000, dtype=np.float32)
    clips = [audio[:size] for size in (25, 999, 1000, 1001, 1019, 1024, 1025, 2037, 5000)]
    found = labels.in_chunks(frames, config)(clips)
    for clip, one, whole in zip(clips, found, _frames(clips), strict=True):
        assert len(one) == config.frames(clip.size)
        np.testing.assert_array_equal(one, whole)


def test_a_crop_of_a_short_clip_may_begin_later_and_keeps_enough_samples():
    shape = dataclasses.replace(SHAPE, shift=30)
    batches = CropBatches(_clips((700, 520, 505)), shape, _row, rows=3, seed=0, share=HostShare(0, 1))
    begins = {700: set(), 520: set(), 505: set()}
    for _ in range(40):
        batch = next(batches)
        for audio, length in zip(batch["audio_br"], batch["length_b"], strict=True):
            start = int(audio[0] % 10_000)
            begins[start + int(length)].add(start)
    assert begins == {700: {0, 10, 20, 30}, 520: {0, 10, 20}, 505: {0}}


def test_held_out_crops_are_one_pass_whose_last_batch_is_filled_up():
    batches = list(held_out_crops(_clips(), SHAPE, _row, rows=3, seed=0, share=HostShare(0, 1)))
    assert [batch["weight_b"].tolist() for batch in batches] == [[1, 1, 1], [1, 0, 0]]
    assert (batches[0]["audio_br"][:, 0] // 10_000).tolist() == [1, 2, 3]
    with pytest.raises(CorpusError):
        _clips(bad=(np.zeros(900, np.float32),)).audio(4)


def _fairseq_mask(frames, probability, length, least, rng):
    """fairseq's `compute_mask_indices` for one row of static spans, span by span."""
    spans = max(least, int(probability * frames / length + rng.random()))
    shortest = length
    if frames - shortest <= spans:
        shortest = frames - spans - 1
    starts = rng.choice(frames - shortest, spans, replace=False)
    return {start + offset for start in starts for offset in range(length) if start + offset < frames}


@pytest.mark.parametrize(("frames", "length"), [(228, 10), (60, 5), (14, 10)])
def test_masks_are_drawn_as_fairseq_draws_them(frames, length):
    config = MaskConfig(probability=0.8, length=length)
    for seed in range(20):
        expected = _fairseq_mask(frames, 0.8, length, 2, np.random.default_rng(seed))
        assert set(np.flatnonzero(draw_mask(frames, config, np.random.default_rng(seed)))) == expected
    assert draw_mask(2, config, np.random.default_rng(0)).size == 2


def test_cepstra_of_a_louder_sound_differ_in_the_first_alone_and_slopes_are_slopes():
    tone = np.random.default_rng(0).standard_normal(8000).astype(np.float32)
    quiet, loud = mfcc(tone), mfcc(4 * tone)
    assert quiet.shape == ((8000 - 400) // 160 + 1, 13)
    np.testing.assert_allclose(loud[:, 1:], quiet[:, 1:], atol=2e-3)
    np.testing.assert_allclose(loud[:, 0] - quiet[:, 0], np.sqrt(23) * np.log(16), rtol=1e-3)
    np.testing.assert_allclose(differences(np.arange(20.0)[:, None] * 3)[2:-2], 3)
    # at 50 Hz, the cepstra of frame t are those of 10 ms frame 2 t, as in fairseq's labels
    np.testing.assert_array_equal(label_features(tone, 20, 320, 400)[:, :13], quiet[0:40:2])


def test_cepstra_are_cosine_transforms_of_the_spectra_without_the_level():
    audio = buzz(120)[: 720 + 640 * 20]
    spectra = log_mel(audio)
    spectra = np.clip(spectra - level(spectra), -4, 4)
    bands = np.arange(40) + 0.5
    expected = np.stack(
        [
            spectra @ np.cos(np.pi * k * bands / 40) * np.sqrt((1 if k == 0 else 2) / 40) * np.sqrt(max(k, 1))
            for k in range(13)
        ],
        axis=1,
    )
    found = cepstra(audio)
    assert found.shape == (4 * 20 + 1, 52)
    for first in (0, 1, 80):  # four spectra for each 10 ms
        np.testing.assert_allclose(found[first], expected[first : first + 4].ravel(), atol=1e-4)


def test_a_student_can_begin_as_its_teacher():
    rng = np.random.default_rng(0)
    for width, units in ((24, 60), (60, 24)):
        centroids = rng.standard_normal((units, width)).astype(np.float32) * 3 + 1
        x = centroids[rng.integers(units, size=2000)] + 2 * rng.standard_normal((2000, width)).astype(np.float32)
        quantizer = LinearQuantizer(width, width, units)
        fresh = quantizer.init(jax.random.key(0), x[:1])["params"]
        logits = np.asarray(quantizer.apply({"params": imitate_centroids(fresh, centroids)}, x))
        distances = np.sum((x[:, None] - centroids) ** 2, axis=2)
        np.testing.assert_array_equal(logits.argmax(1), distances.argmin(1))  # which is never the blank


def test_a_batch_moves_centroids_as_in_scikit_learn():
    rng = np.random.default_rng(0)
    x, start = rng.standard_normal((3, 50, 4)).astype(np.float32), rng.standard_normal((6, 4)).astype(np.float32)
    reference = MiniBatchKMeans(6, init=start, n_init=1, reassignment_ratio=0.0)
    centroids, counts = start, np.zeros(6, np.float32)
    for batch in x:
        reference.partial_fit(batch)
        centroids, counts = kmeans.update(centroids, counts, batch)
    np.testing.assert_allclose(centroids, reference.cluster_centers_, atol=1e-5)


def test_clusters_are_as_tight_as_those_of_scikit_learn():
    rng = np.random.default_rng(1)
    x = (rng.standard_normal((12, 5)) * 6)[rng.integers(12, size=2000)] + rng.standard_normal((2000, 5))
    x = x.astype(np.float32)
    centroids, distance = kmeans.fit(x, 12, seed=0, restarts=3)
    reference = MiniBatchKMeans(12, n_init=3, random_state=0, batch_size=2000).fit(x)
    assert distance < 1.05 * reference.inertia_ / len(x)
    assert (kmeans.fit(x, 12, seed=0, restarts=3)[0] == centroids).all()
    with pytest.raises(SpiritError, match="12 clusters need at least as many frames, found 5"):
        kmeans.fit(x[:5], 12, seed=0)


def test_far_more_frames_than_k_means_uses_are_thinned_evenly(monkeypatch):
    def frames(clips):
        return [np.repeat(clip[:1], 100)[:, None] for clip in clips]

    clips = _clips(sizes=(16_000,) * 40)
    whole = labels.sampled_features(clips, frames, 1.0, 0)
    assert len(whole) == 4000
    monkeypatch.setattr(kmeans, "POINTS", 500)
    thinned = labels.sampled_features(clips, frames, 1.0, 0)
    assert 400 < len(thinned) <= 1000
    assert len(set(thinned[:, 0].tolist())) == 40


def _pitch(audio):
    """The lag of the highest autocorrelation between 60 and 400 Hz, in Hz."""
    middle = audio[audio.size // 4 : audio.size // 4 + 4000]
    found = np.correlate(middle, middle, "full")[middle.size - 1 :]
    return 16_000 / (40 + np.argmax(found[40:266]))


def test_changes_of_speed_and_pitch_change_nothing_else():
    tone = buzz(160)
    fast = stretch(tone, 1.25)
    assert fast.size == 12_800
    assert abs(_pitch(fast) - 160) < 4
    high = shift(tone, 4)
    assert high.size == tone.size
    assert abs(_pitch(high) - 160 * 2 ** (4 / 12)) < 6
    rng = np.random.default_rng(0)
    wet = reverberate(tone, 0.3, rng)
    np.testing.assert_allclose(np.std(wet), np.std(tone), rtol=1e-3)
    noisy = add_noise(tone, rng.standard_normal(100), 10.0)
    np.testing.assert_allclose(np.sum((noisy - tone) ** 2) / np.sum(tone**2), 0.1, rtol=1e-3)


def test_measures_are_those_of_their_definitions():
    rng = np.random.default_rng(0)
    labels = rng.integers(4, size=500)
    units = np.where(rng.random(500) < 0.7, labels * 2, rng.integers(8, size=500))
    found = quality(joint_counts(units, labels))
    entropy = -sum(p * np.log(p) for p in np.bincount(labels) / 500)
    information = normalized_mutual_info_score(labels, units, average_method="min") * entropy
    assert found["pnmi"] <= 1
    assert abs(found["pnmi"] - information / entropy) < 0.02
    by_unit = [np.bincount(labels[units == unit]).max() for unit in set(units)]
    np.testing.assert_allclose(found["label_purity"], sum(by_unit) / 500)
    assert quality(joint_counts(labels, labels))["pnmi"] == pytest.approx(1)
    a, b = rng.integers(5, size=23).tolist(), rng.integers(5, size=31).tolist()
    table = np.zeros((24, 32), int)
    table[:, 0], table[0] = np.arange(24), np.arange(32)
    for i, left in enumerate(a, 1):
        for j, right in enumerate(b, 1):
            table[i, j] = min(table[i - 1, j] + 1, table[i, j - 1] + 1, table[i - 1, j - 1] + (left != right))
    assert edit_distance(a, b) == table[-1, -1]
    assert collapsed(np.array([1, 1, 2, 2, 1])).tolist() == [1, 2, 1]


def test_measures_without_a_frame_in_a_word_or_a_long_enough_clip_are_left_out():
    config = Wav2Vec2Config()
    words = Sound("0", np.ones(16_000, np.float32), "a b", ("a", "b"), np.array([[0, 1], [990, 995]]))
    assert unit_quality(Clips([words]), lambda clips: [np.zeros(config.frames(16_000), np.int32)], config) == {}
    spoken = dataclasses.replace(words, spans_ms=np.array([[0, 500], [500, 990]]))
    assert unit_quality(Clips([spoken]), lambda clips: [np.zeros(config.frames(16_000), np.int32)], config)["pnmi"] == 0
    silent = types.SimpleNamespace(encode_batch=lambda clips: [])
    assert unit_edit_distance(silent, Clips([words]), QuantizerTraining(shortest=32_000), 0) is None


def test_a_row_keeps_the_audio_of_all_its_units_when_every_speed_is_fast():
    encoder = Wav2Vec2Config()
    config = QuantizerTraining(samples=16_000, shortest=16_000, augment=AugmentConfig(stretch=(1.1, 1.2)))
    units = labels.Labels(np.arange(encoder.frames(16_000)), np.array([0, encoder.frames(16_000)]))
    rows = QuantizerRows(config, _clips(), units, encoder)
    crop = Crop(0, 0, 16_000, np.ones(16_000, np.float32))
    lengths = {int(rows(crop, np.random.default_rng(seed))["length_b"]) for seed in range(20)}
    assert 16_000 in lengths
