"""FCPE against the golden vectors of torchfcpe 0.0.4, with a tiny network and with the real weights."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.convert import table
from spirit_jax.convert.components import fcpe
from spirit_jax.models.fcpe import FCPE, NUM_MELS, WINDOW, FCPEConfig, contour, f0_from_bins, log_mel
from spirit_jax.models.mel import mel_filters
from tests.support import released
from tests.support.golden_clips import CLIPS, clip, padded
from tests.support.goldens import golden, golden_arrays, golden_json, tolerance
from tests.support.released import TINY_FCPE


@functools.cache
def extractor(kind):
    config, params = released.fcpe_network(golden(TINY_FCPE) if kind == "tiny" else released.bundled_fcpe())
    network = FCPE(FCPEConfig(**config))

    @jax.jit
    def run(audio, lengths):
        mel, frames = log_mel(audio, lengths)
        likelihood = jnp.asarray(network.apply({"params": params}, mel, frames))
        f0 = f0_from_bins(likelihood, params["cent_table"])
        return mel, likelihood, f0, frames, contour(f0, lengths, audio.shape[1], interpolate=True)

    return run


@functools.cache
def outputs(kind):
    """All clips in one batch with noise for padding: each comparison is also one of batch against alone."""
    clips = [clip(name) for name in CLIPS]
    return jax.tree.map(np.asarray, extractor(kind)(*padded(clips)))


@pytest.mark.parametrize("kind", ["tiny", "real"])
@pytest.mark.parametrize(("row", "clip"), enumerate(CLIPS))
def test_f0_and_voicing(kind, row, clip):
    _, likelihood, f0, frames, (f0_200, voiced, count) = outputs(kind)
    arrays, key = golden_arrays("fcpe.npz"), f"{kind}/{clip}.wav/"

    def check(name, ours):
        expected = arrays[key + name]
        np.testing.assert_allclose(ours[row][: len(expected)], expected, rtol=0, atol=tolerance(f"fcpe/{key}{name}"))
        return len(expected)

    assert check("f0_raw", f0) == frames[row]
    if key + "latent" in arrays:
        check("latent", likelihood)
    if key + "f0" in arrays:
        assert check("f0", f0_200) == count[row]
        np.testing.assert_array_equal(voiced[row, : count[row]], arrays[key + "vuv"])
    else:  # nothing voiced: the reference raises IndexError, ours has a defined contour
        assert (kind, clip) in {("real", "noise_a"), ("real", "silence")}
        assert not f0_200[row].any()
        assert not voiced[row].any()
    assert not f0_200[row, count[row] :].any()


def test_log_mel():
    """The tolerance is the golden set's; the log amplifies FFT rounding in the tone's empty bands."""
    expected = golden_arrays("fcpe.npz")["tone_a.wav/mel"]
    atol = tolerance("fcpe/tone_a.wav/mel")
    np.testing.assert_allclose(outputs("tiny")[0][3][: len(expected)], expected, rtol=0, atol=atol)


def test_mel_filters_are_librosas():
    librosa = pytest.importorskip("librosa")
    expected = librosa.filters.mel(sr=16_000, n_fft=1024, n_mels=128, fmin=0, fmax=8000)
    np.testing.assert_allclose(
        mel_filters(NUM_MELS, WINDOW), expected, rtol=0, atol=1e-8
    )  # both rounded to float32 from float64


def test_edge_lengths():
    """Every length around a threshold, in one batch; the shortest are zero padded where the reflection is too long."""
    cases = golden_json("fcpe_edge_lengths.json")
    audio = clip(cases["clip"])[cases["offset"] :]
    results = {int(n): case for n, case in cases["results"].items()}
    *_, (f0, _, count) = extractor("tiny")(*padded([audio[:n] for n in results]))
    for row, (n, case) in enumerate(results.items()):
        assert count[row] == case["n"]
        # 0.04 Hz: the largest tolerance that the golden set states for this network's F0 (tone_a)
        np.testing.assert_allclose(f0[row, : len(case["f0"])], case["f0"], rtol=0, atol=0.04, err_msg=str(n))


def test_contour_by_hand():
    """Lines between voiced neighbors, held ends, voices from 50 Hz on, a limit of 1100 Hz, and the resize to 200 Hz."""
    f0 = jnp.array([[0.0, 100, 0, 0, 130, 1400, 49.9, 50]])
    lengths = jnp.array([7 * 160 + 40])  # 8 frames at 100 Hz, 1160 // 80 + 1 = 15 at 200 Hz
    line = np.minimum(np.interp(np.arange(8), [1, 4, 5, 7], [100, 130, 1400, 50]), 1100)
    source = np.arange(15) * 8 // 15
    ours, voiced, count = contour(f0, lengths, 1500, interpolate=True)
    assert count.tolist() == [15]
    np.testing.assert_allclose(ours[0, :15], line[source], rtol=1e-6)
    np.testing.assert_array_equal(voiced[0, :15], np.array([0, 1, 0, 0, 1, 1, 0, 1])[source])
    raw, _, _ = contour(f0, lengths, 1500, interpolate=False)
    np.testing.assert_array_equal(raw[0, :15], np.minimum(f0[0], 1100)[source])


def test_bins_at_the_edges_count_repeatedly():
    table_ = jnp.linspace(1000.0, 9000.0, 360)
    y = np.full((1, 2, 360), 0.01, np.float32)
    y[0, 0, 1], y[0, 1, 300] = 0.9, 0.05  # the second is not above the threshold
    index = np.clip(np.arange(-3, 6), 0, None)
    weight = y[0, 0, index]
    cents = (np.asarray(table_)[index] * weight).sum() / weight.sum()
    np.testing.assert_allclose(f0_from_bins(jnp.asarray(y), table_)[0], [10 * 2 ** (cents / 1200), 0.0], rtol=1e-5)


def test_full_size():
    """10.83 M parameters and every tensor of the bundled file (its unused ones are kept)."""
    shapes = fcpe.shapes({})
    assert round(sum(int(np.prod(shape)) for shape in shapes.values()) / 1e6, 2) == 10.83
    config, params = released.fcpe_network(released.bundled_fcpe())
    assert table.shapes_of(params) == shapes == fcpe.shapes(config)


def test_another_model_is_refused():
    config = {"mel": {"sr": 16000}, "model": {"conv_only": False}}
    with pytest.raises(ValueError, match="model.conv_only is False"):
        fcpe.part_config(config)
    with pytest.raises(ValueError, match="mel.sr is 44100"):
        fcpe.part_config({"mel": {"sr": 44100}, "model": {}})
