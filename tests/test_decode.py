"""The decode command on a checkpoint with small random HiFi-GANs that have the released strides."""

import dataclasses
import json

import jax
import numpy as np
import pytest
import soundfile

from spirit_jax import decode
from spirit_jax.checkpoint import SPEECH_TOKENIZER
from spirit_jax.core import buckets
from spirit_jax.data.records import RecordWriter
from spirit_jax.data.unit_record import UnitRecord
from spirit_jax.models.hifigan import HifiGan, split_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.speech.storage import save_part
from spirit_jax.units import SpeechUnits

BASE = HifiGanConfig(
    num_speakers=3,
    num_styles=9,
    embedding_dim=4,
    duration_hidden_dim=4,
    upsample_initial_channel=32,
    resblock_kernel_sizes=(3,),
    resblock_dilation_sizes=((1,),),
)
EXPRESSIVE = dataclasses.replace(BASE, num_styles=0, num_f0_tokens=64, num_style_tokens=100)
STEP = 1 / 32768  # step of 16-bit audio


@pytest.fixture(scope="module")
def vocoders():
    """Weights of 0.3: audio is neither silent nor so loud that one rounding becomes a 16-bit step, as with 0.5."""

    def random(network):
        shapes = jax.eval_shape(HifiGan(network).init, jax.random.key(0), np.zeros((1, 1), np.int32))["params"]
        rng = np.random.default_rng(0)
        params = jax.tree.map(lambda leaf: rng.normal(0, 0.3, leaf.shape).astype(np.float32), shapes)
        return HifiGanVocoder(network, split_weight_norm(params), ["ann", "bob", "eve"], ["calm"])

    return {"base": random(BASE), "expressive": random(EXPRESSIVE)}


@pytest.fixture
def checkpoint(vocoders, tmp_path):
    for variant, vocoder in vocoders.items():
        save_part(tmp_path / "ours" / SPEECH_TOKENIZER / f"vocoder_{variant}", vocoder)
    return tmp_path / "ours"


@pytest.fixture
def run(checkpoint, tmp_path):
    def call(source, *arguments, to="out"):
        return decode.main(
            ["--checkpoint", str(checkpoint), "--input", str(source), "--output", str(tmp_path / to), *arguments]
        )

    return call


def fails(code, capsys, call, *arguments, **options) -> str:
    with pytest.raises(SystemExit) as stop:
        call(*arguments, **options)
    assert stop.value.code == code
    return capsys.readouterr().err


def written(path):
    audio, rate = soundfile.read(path, dtype="float32")
    assert rate == 16_000
    return audio


def test_a_string_is_written_to_one_file(run, vocoders, tmp_path, capsys):
    units = "[Hu9][Hu3][Hu400]"
    run(units, "--speaker", "bob")
    expected = vocoders["base"].decode(units, speaker=1)
    assert expected.std() > 1e-2
    np.testing.assert_allclose(written(tmp_path / "out/units.wav"), expected, atol=STEP)
    assert "1 files" in capsys.readouterr().out


def test_pitch_chooses_the_expressive_vocoder_and_variant_overrides(run, vocoders, tmp_path):
    units = "[St3][Pi7][Hu9][Hu3]"
    run(units, "--format", "flac")
    expressive = vocoders["expressive"].decode(units)
    np.testing.assert_allclose(written(tmp_path / "out/units.flac"), expressive, atol=STEP)
    run(units, "--variant", "base", "--style", "0", to="base")
    base = vocoders["base"].decode(units, style=0)
    np.testing.assert_allclose(written(tmp_path / "base/units.wav"), base, atol=STEP)


def test_each_line_of_a_text_file_is_written_to_its_own_file(run, vocoders, tmp_path):
    lines = ["first\t[Hu9][Hu3]", "", "../../a b\t[Hu1]", "[Hu7][Hu8][Hu9]"]
    source = tmp_path / "units.txt"
    source.write_text("\n".join(lines))
    run(source, "--predict_durations", "false")
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["_.._a_b.wav", "first.wav", "units-00002.wav"]
    assert written(tmp_path / "out/units-00002.wav").size == 3 * 640
    # Decoded in the same batch: 16-bit files differ by up to a step, which leaves no room for other rounding.
    batch = ["[Hu9][Hu3]", "[Hu1]", "[Hu7][Hu8][Hu9]"]
    expected = vocoders["base"].decode_batch(batch, predict_durations=False)[0]
    np.testing.assert_allclose(written(tmp_path / "out/first.wav"), expected, atol=STEP)


def test_units_of_records_are_frames(run, vocoders, tmp_path):
    rng = np.random.default_rng(0)
    units = SpeechUnits(rng.integers(0, 500, 26), rng.integers(0, 64, 13), rng.integers(0, 100, 2))
    with RecordWriter(tmp_path / "records", "dev") as writer:
        writer.write(UnitRecord("a/1", "words", units=units, duration_ms=1040))
    run(tmp_path / "records", "--split", "dev")
    audio = written(tmp_path / "out/a_1.wav")
    assert audio.size == 26 * 640  # no predicted durations
    np.testing.assert_allclose(audio, vocoders["expressive"].decode(units), atol=STEP)


def test_existing_files_are_replaced_only_with_overwrite(run, tmp_path, capsys):
    run("[Hu1]")
    before = (tmp_path / "out/units.wav").read_bytes()
    assert "units.wav exists" in fails(2, capsys, run, "[Hu2][Hu3]")
    assert (tmp_path / "out/units.wav").read_bytes() == before
    run("[Hu2][Hu3]", "--overwrite")
    assert (tmp_path / "out/units.wav").read_bytes() != before


def test_audio_in_a_bucket_is_that_of_a_disk(run, bucket, tmp_path, capsys):
    for _ in range(2):
        run("[Hu1][Hu2]", "--output", f"{bucket}/out", "--overwrite")
    run("[Hu1][Hu2]")
    assert f"in {bucket}/out" in capsys.readouterr().out
    assert buckets.read_object(f"{bucket}/out/units.wav") == (tmp_path / "out/units.wav").read_bytes()
    assert f"{bucket}/out/units.wav exists" in fails(2, capsys, run, "[Hu3]", "--output", f"{bucket}/out")


@pytest.mark.parametrize(
    ("source", "arguments", "message"),
    [
        ("[Hu1", [], "'[Hu1' at position 0"),
        ("14 14 171 48", [], "units are written in brackets: [Hu14]... for 14..."),
        ("14 171 " * 600, [], "units are written in brackets: [Hu14]... for 14..."),
        ("x" * 5000, [], "is not a unit string"),
        ("[Hu" + "1" * 4400 + "]", [], "Hu units go up to 500"),
        ("s3://bucket/units.txt", [], "--input s3://bucket/units.txt: s3:// is not read"),
        ("[Hu1]", ["--output", "gs://b/out"], "gs://b/out: no bucket can be named 'b'"),
        ("[Hu1]", ["--output", __file__], "test_decode.py: is a file, a directory is needed"),
        ("nothing.txt", [], "'nothing.txt' is not a unit string"),
        ("", [], "the input is empty"),
        ("[Hu1]", ["--speaker", "tom"], "unknown speaker 'tom'; known are 0 ann, 1 bob, 2 eve"),
        ("[Hu1]", ["--format", "mp3"], "format"),
        ("[Hu1]", ["--voice", "3"], "voice"),
        ("[Hu1]", ["--batch_size", "0"], "batch_size must be at least 1"),
    ],
)
def test_bad_arguments_end_with_2_and_one_line(run, capsys, source, arguments, message):
    error = fails(2, capsys, run, source, *arguments)
    assert message in error
    assert error.count("\n") == 1


def test_a_missing_checkpoint_or_vocoder_is_a_bad_argument(run, tmp_path, capsys, checkpoint):
    call = ["--input", "[Hu1]", "--output", str(tmp_path / "out"), "--checkpoint"]
    assert "no such checkpoint" in fails(2, capsys, decode.main, [*call, str(tmp_path / "none"), "--variant", "base"])
    (tmp_path / "empty").mkdir()
    assert "no vocoder" in fails(2, capsys, decode.main, [*call, str(tmp_path / "empty")])
    config = checkpoint / SPEECH_TOKENIZER / "vocoder_base" / "config.json"
    config.write_text(json.dumps({"kind": "other"}))
    assert "needs a 'kind'" in fails(2, capsys, decode.main, [*call, str(checkpoint), "--variant", "base"])


def test_items_that_cannot_be_spoken_are_listed_and_the_others_written(run, tmp_path, capsys):
    source = tmp_path / "units.txt"
    source.write_text("good\t[Hu1][Hu2]\nblank\t[Hu500]\nodd\t[Hu1]]\n")
    error = fails(1, capsys, run, source)
    assert "blank: " in error
    assert "phonetic unit 500 at position 0 is out of range" in error
    assert "odd: ']' at position 5" in error
    assert "2 of 3 items were not spoken" in error
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["good.wav"]


def test_two_items_with_the_same_name_are_refused(run, tmp_path, capsys):
    source = tmp_path / "units.txt"
    source.write_text("a/b\t[Hu1]\na b\t[Hu2]\n")
    assert "two items have the name 'a_b'" in fails(2, capsys, run, source)


def test_names_that_are_too_long_for_files_are_cut(run, tmp_path):
    """Two ids of 300 bytes that differ at the end have two files."""
    source = tmp_path / "units.txt"
    source.write_text(f"{'é' * 150}1\t[Hu1]\n{'é' * 150}2\t[Hu2]\n")
    run(source)
    names = [path.name for path in (tmp_path / "out").iterdir()]
    assert len(names) == 2
    assert all(len(name.encode()) <= 210 and name.startswith("é" * 80) for name in names)


def test_a_home_directory_is_expanded(run, tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "units.txt").write_text("a\t[Hu1]\n")
    decode.main(["--checkpoint", "~/ours", "--input", "~/units.txt", "--output", "~/spoken"])
    assert [path.name for path in (tmp_path / "spoken").iterdir()] == ["a.wav"]


def test_help_explains_the_command(capsys):
    assert "the help above lists the options" in fails(2, capsys, decode.main, [])
    with pytest.raises(SystemExit) as stop:
        decode.main(["--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert "--checkpoint DIR --input UNITS --output DIR" in text
    assert "NAME, tab, string" in " ".join(text.split())
