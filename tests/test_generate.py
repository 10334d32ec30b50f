"""The generate command: one prompt, a file of prompts with examples in front, and what it refuses."""

import json
import pathlib

import numpy as np
import pytest
import soundfile

from spirit_jax import generate
from tests.inference import checkpoints


def run(*arguments) -> None:
    generate.main([str(argument) for argument in arguments])


def results(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def directory():
    return checkpoints.converted("small_expressive")


def test_one_prompt(directory, tmp_path, capsys):
    """What is not given is as the checkpoint recommends: its generation_config.json says to draw, at 0.6 and 0.9."""
    out = tmp_path / "new" / "out"
    run("--checkpoint", directory, "--input", "text:Once: upon", "--input", "units:[St1][Hu3]", "--output", out,
        "--output-modality", "text", "--max-new-tokens=12", "--dtype", "float32")  # fmt: skip
    (result,) = results(out)
    lm = checkpoints.load("small_expressive")
    prompt = "[Text]Once: upon[Speech][St1][Hu3][Text]"
    (segment,) = lm.generate(prompt, "text", 12, temperature=0.6, top_p=0.9)
    assert segment.content != lm.generate(prompt, "text", 12)[0].content
    assert result == {
        "id": "output",
        "prompt": "[Text]Once: upon[Speech][St1][Hu3][Text]",
        "outputs": [{"text": segment.content}],
    }
    assert segment.content in capsys.readouterr().out


def test_a_file_of_prompts(directory, tmp_path):
    """Examples stand before every prompt; results keep the order of the file; settings reach the model."""
    prompts, shots = tmp_path / "prompts.jsonl", tmp_path / "shots.jsonl"
    prompts.write_text(
        '{"id": "b", "input": ["text:hello"]}\n\n{"id": "a", "prompt": "[Text]raw"}\n{"input": ["units:[St1][Pi3][Hu3]"]}\n'
    )
    shots.write_text('{"input": ["units:[St1][Hu9]", "text:nine "]}\n{"input": ["units:[St1][Hu8]", "text:eight "]}\n')
    run("--checkpoint", directory, "--prompts", prompts, "--few-shot", shots, "--output", tmp_path, "--temperature", "1",
        "--output-modality", "speech", "--max-new-tokens", "8", "--slots", "2", "--dtype", "float32")  # fmt: skip
    before = "[Speech][St1][Hu9][Text]nine [Speech][St1][Hu8][Text]eight "
    found = results(tmp_path)
    assert [(r["id"], r["prompt"]) for r in found] == [
        ("b", before + "hello[Speech]"),
        ("a", before + "[Text]raw"),
        ("4", before + "[Speech][St1][Pi3][Hu3]"),
    ]
    lm = checkpoints.load("small_expressive")
    (segment,) = lm.generate(found[0]["prompt"], "speech", 8, temperature=1.0, top_p=0.9)
    assert found[0]["outputs"] == [{"speech": None, "units": segment.tokens}]  # no vocoder in this checkpoint


REFUSED = {
    "no prompt": ((), 2, "give either --input"),
    "kind": (("--input", "song:la"), 2, "'song:la': expected text:..., speech:FILE or units:"),
    "file": (("--input", "speech:nothing.wav"), 2, "nothing.wav: no such file"),
    "option": (("--inputs", "text:a"), 2, "inputs"),
    "modality": (("--input", "text:a", "--output-modality", "song"), 2, "output_modality"),
    "unit": (("--input", "text:[Hu900]"), 1, "[Hu900] at position 6 is no token"),
    "value": (("--input", "text:a", "--top-p", "3"), 1, "top_p must be above 0 and at most 1, found 3.0"),
    "prompts": (("--prompts", "nothing.jsonl"), 2, "nothing.jsonl: cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_refused(directory, tmp_path, capsys, arguments, code, message):
    with pytest.raises(SystemExit) as ended:
        run("--checkpoint", directory, "--output", tmp_path, *arguments)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == code
    assert told.startswith("python -m spirit_jax.generate: error: ")
    assert message in told


UNHEARD = {
    "short": ("speech:short.wav", 2, "short.wav: 1000 samples (16 kHz) are too short for units: at least 1280 (80 ms)"),
    "nothing in it": ("speech:empty.wav", 2, "empty.wav: holds no samples"),
    "no sound file": ("speech:words.wav", 2, "words.wav: cannot be decoded"),
    "context": ("text:" + "a b " * 3000, 1, "the model's context is 4096: shorten it"),
    "base asked for pitch": ("units:[Pi3][Hu4]", 1, "Spirit LM base has no pitch units; use an expressive checkpoint"),
}


@pytest.mark.parametrize(("wanted", "code", "message"), UNHEARD.values(), ids=UNHEARD.keys())
def test_refused_by_a_model_that_hears(tmp_path, monkeypatch, capsys, wanted, code, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("short.wav", np.zeros(1000), 16_000)
    soundfile.write("empty.wav", np.zeros(0), 16_000)
    pathlib.Path("words.wav").write_text("these are words")
    with pytest.raises(SystemExit) as ended:
        run("--checkpoint", checkpoints.with_speech("small_base"), "--output", "out", "--input", wanted)
    told = capsys.readouterr().err.strip().splitlines()[-1]
    assert (ended.value.code, message in told) == (code, True), told
    assert not pathlib.Path("out").exists()


def test_audio_without_a_speech_tokenizer_is_refused(directory, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(SystemExit):
        run("--checkpoint", directory, "--output", tmp_path, "--input", f"speech:{tmp_path}/a.wav")
    assert "no speech_tokenizer/ to hear audio with: give units instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": 1, "input": ["text:a"]}\nnonsense', "line 2: Expecting value"),
        ('{"id": 1}', 'line 1: expected {"id": ..., "input"'),
        ('{"id": "../x", "prompt": "a"}', "line 1: id '../x' cannot be part of a file name"),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "id '1' comes twice"),
        ("", "no prompts in it"),
        ('{"input": ["speech:gone.wav"]}', "line 1: .*gone.wav: no such file"),
    ],
)
def test_refused_files(tmp_path, lines, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines)
    with pytest.raises(generate.InputError, match=message):
        generate.read_prompts(str(path))


def test_speech_is_written(tmp_path):
    sound = generate._write(tmp_path / "a-1.wav", generate.Segment("speech", np.zeros(640, np.float32), "[Hu1]"))
    assert sound == {"speech": "a-1.wav", "units": "[Hu1]"}
    assert (tmp_path / "a-1.wav").stat().st_size == 44 + 2 * 640
