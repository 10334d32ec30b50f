"""Audio against the golden waveforms of the reference; batches, windows and streams against one clip at a time.

Windows of 32, 64, 128 and 256 frames compile once for each vocoder, so the cases share these lengths.
"""

import functools
import json
import re

import jax
import numpy as np
import pytest

from spirit_jax.checkpoint import CheckpointError, load_arrays, unflatten
from spirit_jax.convert.components import hifigan as table
from spirit_jax.convert.formats.torch_file import load_torch
from spirit_jax.convert.table import to_jax
from spirit_jax.models.hifigan import fold_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.speech.loading import load_vocoder
from spirit_jax.speech.protocols import VoiceError
from spirit_jax.speech.released.synthesis import PositionRange
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.speech.released.vocoder_input import VocoderError, VoiceRows, prepare_input
from spirit_jax.speech.storage import save_part
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Variant
from tests.support.goldens import golden, golden_arrays, golden_json, manifest, tolerance

pytestmark = pytest.mark.optimized

FOLDERS: dict[Variant, str] = {"base": "hifigan_spiritlm_base", "expressive": "hifigan_spiritlm_expressive_w2v2"}
ARRAYS = [name.removeprefix("vocoder/") for name in manifest() if name.startswith("vocoder/")]
CASES = sorted(name.removesuffix("/wav") for name in ARRAYS if name.endswith("/wav"))


@pytest.fixture(scope="module")
def arrays():
    return golden_arrays("vocoder.npz")


@pytest.fixture(scope="module")
def vocoders(tmp_path_factory):
    """Both golden vocoders, converted, saved as parts of a checkpoint and loaded again."""
    loaded = {}
    checkpoint = tmp_path_factory.mktemp("checkpoint")
    for variant, folder in FOLDERS.items():
        released = golden(f"checkpoints/speech_tokenizer/{folder}")
        names = [(released / f"{kind}.txt") for kind in ("speakers", "styles")]
        names = [path.read_text().split() if path.exists() else [] for path in names]
        config = table.part_config(json.loads((released / "config.json").read_text()), *names)
        state = load_torch(released / "generator.pt")["generator"]
        params, _ = to_jax(table.rows(config), state, table.shapes(config), folder)
        params = unflatten({path: np.asarray(value) for path, value in params.items()})
        save_part(checkpoint / "speech_tokenizer" / f"vocoder_{variant}", HifiGanVocoder.load(config, params))
        loaded[variant] = load_vocoder(checkpoint, variant)
    return loaded


def integers(text: str) -> np.ndarray:
    return np.array(text.split(), np.int32)


def call(case: str) -> tuple[dict | str, dict]:
    """Units and options of a golden case."""
    note = json.loads(manifest()[f"vocoder/{case}/wav"]["note"])
    if case.startswith("decode/"):
        given = note.pop("input")
        units = given if isinstance(given, str) else {name: integers(text) for name, text in given.items()}
    else:
        names = {"hubert": "code", "pitch": "f0_code", "style": "style_code"}
        units = {name: integers(note[key]) for name, key in names.items() if key in note}
    options = {"predict_durations": note.get("dur_pred", True)}
    options["deduplicate"] = "code" in note and options["predict_durations"] and not note.get("not_dedup_code", False)
    options |= {name: note[key] for name, key in (("speaker", "speaker_id"), ("style", "style_id")) if key in note}
    return units, options


def variant_of(case: str) -> str:
    return "expressive" if "expressive" in case else "base"


@pytest.mark.accelerator
@pytest.mark.parametrize("case", CASES)
def test_audio_equals_the_reference(case, vocoders, arrays):
    units, options = call(case)
    audio = vocoders[variant_of(case)].decode(units, **options)
    expected = arrays[f"{case}/wav"]
    assert (audio.shape, audio.dtype) == (expected.shape, np.float32)  # so the durations have equal sums
    np.testing.assert_allclose(audio, expected, rtol=0, atol=tolerance(f"vocoder/{case}/wav"))


@pytest.mark.accelerator
@pytest.mark.parametrize("case", [case for case in CASES if f"{case}/log_dur" in ARRAYS])
def test_predicted_durations_equal_the_reference(case, vocoders, arrays):
    vocoder = vocoders[variant_of(case)]
    units, options = call(case)
    voice, deduplicate = VoiceRows(speaker=2, style=8), options["deduplicate"]
    codes, predict = prepare_input(vocoder.network, units, voice, predict_durations=True, deduplicate=deduplicate)
    assert predict
    (found,) = vocoder.synthesizer.durations([PositionRange(codes, 0, len(codes))])
    clear = arrays[f"{case}/dur_tie_margin"] > 1e-3
    assert clear.mean() > 0.9
    np.testing.assert_array_equal(found[clear], arrays[f"{case}/durations"][clear])


@pytest.mark.parametrize("case", [case for case in CASES if f"{case}/conv_pre_input" in ARRAYS])
def test_conditioning_equals_the_reference(case, vocoders, arrays):
    vocoder = vocoders[variant_of(case)]
    units, options = call(case)
    voice, network = VoiceRows(speaker=options["speaker"], style=8), vocoder.synthesizer
    frames, predict = prepare_input(vocoder.network, units, voice, predict_durations=options["predict_durations"])
    if predict:
        (counts,) = network.durations([PositionRange(frames, 0, len(frames))])
        frames = frames.repeat(counts)
    codes = [stream[None, :40] for stream in (frames.units, frames.pitch, frames.styles)]
    rows = np.array([voice.speaker]), np.array([voice.style])
    found = network.model.apply(network.variables, *codes, *rows, method="conditioning")[0].T
    np.testing.assert_array_equal(found, arrays[f"{case}/conv_pre_input"])  # exact, because embeddings are only copied


def test_input_that_crashes_the_reference_is_refused_with_a_message(vocoders):
    # The golden files record AssertionError, IndexError, KeyError, ZeroDivisionError and RuntimeError.
    base, expressive = vocoders["base"], vocoders["expressive"]
    odd = golden_json("vocoder_odd.json")
    frames = np.arange(53)
    full = {"hubert": frames, "pitch": np.zeros(27, int), "style": np.zeros(3, int)}
    refused = {
        "f0 too short (K*2 much less than N)": (expressive, {**full, "pitch": np.zeros(3, int)}, {}, "3 pitch units"),
        "expressive without f0": (expressive, {"hubert": frames}, {}, "needs pitch units, and there are none"),
        "speaker out of range (expressive)": (expressive, full, {"speaker": 4}, "unknown speaker 4; known are 0 ex01"),
        "unit 500 (blank)": (base, {"hubert": [3, 500]}, {}, "phonetic unit 500 at position 1 is out of range"),
        "empty code": (base, {"hubert": []}, {}, "no phonetic units to speak"),
    }
    # Pitch of another length is accepted: it turns duration prediction off.
    assert set(odd) - set(refused) == {"dur_pred with f0 length != code length"}
    for vocoder, units, options, message in refused.values():
        with pytest.raises(VoiceError if "speaker" in options else VocoderError, match=message):
            vocoder.decode(units, **options)
    for name, case in golden_json("decode.json").items():
        if "raises" in case:
            with pytest.raises(VocoderError):
                vocoders[name.partition("|")[0]].decode(case["input"], **case["kwargs"])


@pytest.mark.parametrize(
    ("variant", "units", "options", "message"),
    [
        ("base", "[Hu1]", {"speaker": "ex05"}, "unknown speaker 'ex05'; known are 0 ex01, 1 ex02, 2 ex03, 3 ex04"),
        ("base", "[Hu1]", {"speaker": -1}, "unknown speaker -1"),
        ("base", "[Hu1]", {"style": "happy"}, "unknown style 'happy'; known are 0 read-default, 1 read-happy"),
        ("base", "[Hu1]", {"style": 100}, "ids 0..99"),
        ("expressive", "[St1][Pi1][Hu1]", {"style": 100}, "unknown style 100; known are ids 0..99"),
        ("expressive", "[Pi1][Hu1]", {}, "needs style units"),
        ("base", "[Hu1]x", {}, "'x' at position 5"),
        ("base", {"hubert": [1.5]}, {}, "1-D array of integers, found float64"),
        ("base", {"pitch": [1]}, {}, "hubert units must be"),
        ("base", {"hubert": [-1, -1]}, {}, "no phonetic units"),
        ("expressive", {"hubert": [1, 2], "pitch": [64, 1], "style": [1, 1]}, {}, "pitch unit 64 at position 0"),
        (
            "expressive",
            {"hubert": [1, 2], "pitch": [6, 1], "style": [1]},
            {},
            "1 style units at one phonetic unit each",
        ),
        (
            "expressive",
            {"hubert": [1, 1, 2], "pitch": [1, 2, 3], "style": [1, 1, 1]},
            {"deduplicate": True},
            "3 pitch units",
        ),
    ],
)
def test_bad_input_is_refused_with_a_message(variant, units, options, message, vocoders):
    with pytest.raises(VoiceError if options.keys() & {"speaker", "style"} else VocoderError, match=re.escape(message)):
        vocoders[variant].decode(units, **options)


def test_an_error_in_a_batch_names_the_item(vocoders):
    with pytest.raises(VocoderError, match="item 1: phonetic unit 500"):
        vocoders["base"].decode_batch(["[Hu1]", "[Hu500]"])
    with pytest.raises(VoiceError, match="2 items to speak and 1 speakers"):
        vocoders["base"].decode_batch(["[Hu1]", "[Hu5]"], speaker=[1])


def test_names_of_speakers_and_styles_select_rows(vocoders):
    base, units = vocoders["base"], "[Hu99][Hu49][Hu38]"
    default = base.decode(units)
    np.testing.assert_array_equal(base.decode(units, speaker="ex03", style="conv-default"), default)
    assert np.abs(base.decode(units, speaker="ex01") - default).max() > 1e-2
    assert np.abs(base.decode(units, style="read-happy") - default).max() > 1e-2
    expressive = vocoders["expressive"]
    styled = expressive.decode("[St5][Pi1][Hu7][Pi2][Hu8]")
    np.testing.assert_array_equal(expressive.decode("[St9][Pi1][Hu7][Pi2][Hu8]", style=5), styled)


def test_audio_of_a_batch_equals_that_of_its_items_alone(vocoders):
    # Items of three lengths and speakers share a program of four rows. Two float32 programs differ by up to 2e-6.
    base = vocoders["base"]
    rng = np.random.default_rng(0)
    batch = [rng.integers(0, 500, count) for count in (31, 3, 17)]
    batch = [{"hubert": units} for units in batch]
    together = base.decode_batch(batch, speaker=[0, "ex02", 3], predict_durations=False)
    for units, speaker, audio in zip(batch, (0, 1, 3), together, strict=True):
        np.testing.assert_allclose(audio, base.decode(units, speaker=speaker, predict_durations=False), atol=2e-6)
    assert base.decode_batch([]) == []


def test_windows_of_a_long_clip_have_no_seam(vocoders):
    # 288 frames run as windows of 256 and 32. Expected is the network over all of them at once, without bounds.
    base = vocoders["base"]
    units = np.random.default_rng(1).integers(0, 500, 288)
    generate = jax.jit(functools.partial(base.synthesizer.model.apply, method="generate"))
    whole = generate(base.synthesizer.variables, units[None], None, None, np.array([2]), np.array([8]))[0]
    audio = base.decode({"hubert": units}, predict_durations=False)
    np.testing.assert_allclose(audio, whole, atol=2e-6)


@pytest.mark.parametrize("variant", ["base", "expressive"])
@pytest.mark.parametrize("predict", [True, False])
def test_a_stream_yields_the_audio_of_decode_within_its_latency(variant, predict, vocoders):
    vocoder = vocoders[variant]
    rng = np.random.default_rng(2)
    count = 30 if predict else 70
    units = {"hubert": rng.integers(0, 500, count)}
    if variant == "expressive":
        units |= {"pitch": rng.integers(0, 64, count), "style": rng.integers(0, 100, count)}
    fed = 0

    def pieces():
        nonlocal fed
        for size in np.resize([1, 2, 7], count):
            if fed < count:
                piece = {name: stream[fed : fed + size] for name, stream in units.items()}
                fed = min(fed + size, count)
                yield piece if size < 7 else SpeechUnits(**piece)

    chunks, seen = [], []
    for chunk in vocoder.stream(pieces(), predict_durations=predict, chunk_frames=32):
        chunks.append(chunk)
        seen.append(fed)
    audio = np.concatenate(chunks)
    np.testing.assert_allclose(audio, vocoder.decode(units, predict_durations=predict), atol=2e-6)
    # The first chunk came exactly when the units that its receptive field covers had arrived.
    frames = np.ones(count, int)
    if predict:
        codes, _ = prepare_input(vocoder.network, units, VoiceRows(speaker=2, style=8), predict_durations=True)
        (frames,) = vocoder.synthesizer.durations([PositionRange(codes, 0, count)])
    units_ahead, frames_ahead = vocoder.latency(predict)
    needed = int(np.searchsorted(np.cumsum(frames), 32 + frames_ahead)) + 1 + units_ahead
    assert needed <= seen[0] < needed + 7
    assert len(chunks[0]) == 32 * 640


def test_streams_refuse_unaligned_units(vocoders):
    with pytest.raises(VocoderError, match="no phonetic units"):
        list(vocoders["base"].stream([]))
    with pytest.raises(VocoderError, match="2 pitch units at one phonetic unit each"):
        list(vocoders["expressive"].stream([{"hubert": [1, 2, 3], "pitch": [1, 2], "style": [1]}]))
    with pytest.raises(ValueError, match="chunk_frames"):
        list(vocoders["base"].stream(["[Hu1]"], chunk_frames=0))


def test_latency_is_the_receptive_field(vocoders):
    assert vocoders["base"].latency() == (2, 20)  # two units and 0.8 s, as for the released strides
    assert vocoders["base"].latency(predict_durations=False) == (0, 20)


def test_a_stored_vocoder_keeps_both_factors_of_weight_norm(vocoders, tmp_path):
    base = vocoders["base"]
    save_part(tmp_path / "part", base)
    released = load_torch(golden(f"checkpoints/speech_tokenizer/{FOLDERS['base']}") / "generator.pt")["generator"]
    kept = load_arrays(tmp_path / "part")
    np.testing.assert_array_equal(kept["ups_0"]["weight_g"][0, :, 0], released["ups.0.weight_g"][:, 0, 0])
    np.testing.assert_array_equal(kept["ups_0"]["weight_v"], released["ups.0.weight_v"].transpose(2, 0, 1))


def test_parameters_that_do_not_fit_are_refused(vocoders):
    base = vocoders["base"]
    arrays = {**base.arrays(), "conv_post": {"bias": np.zeros(1)}}
    with pytest.raises(
        CheckpointError, match=re.escape("conv_post/kernel has shape None, its config asks for (7, 2, 1)")
    ):
        HifiGanVocoder.load(base.config(), arrays)
    mute = HifiGanConfig.from_dict({**base.config()["hifigan"], "duration_hidden_dim": 0})
    params = {name: value for name, value in fold_weight_norm(base.arrays()).items() if name != "duration_predictor"}
    with pytest.raises(VocoderError, match="no duration predictor"):
        HifiGanVocoder(mute, params).decode("[Hu1]")
