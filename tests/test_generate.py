"""The generate command: one prompt, a file of prompts with examples in front, and what it refuses."""

import json

import numpy as np
import pytest

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
    out = tmp_path / "new" / "out"
    run("--checkpoint", directory, "--input", "text:Once: upon", "--input", "units:[St1][Hu3]", "--output", out,
        "--output-modality", "text", "--max-new-tokens=12", "--dtype", "float32")  # fmt: skip
    (result,) = results(out)
    lm = checkpoints.load("small_expressive")
    (segment,) = lm.generate("[Text]Once: upon[Speech][St1][Hu3][Text]", "text", 12)
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
    (segment,) = lm.generate(found[0]["prompt"], "speech", 8, temperature=1.0)
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
