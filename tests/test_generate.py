"""The generate command: one prompt, a file of prompts with few-shot examples, interruptions, and what it refuses."""

import json
import pathlib

import numpy as np
import pytest
import soundfile

from spirit_jax import Segment, SpiritLM, generate
from spirit_jax.core import buckets
from spirit_jax.core.errors import JobError
from spirit_jax.inference.prompt_files import InputError, read_prompts
from spirit_jax.inference.results import PartialResults, describe_outputs, write_segment
from tests.support import checkpoints


def run(*arguments) -> None:
    generate.main([str(argument) for argument in arguments])


def fail(message):
    raise JobError(message)


def results(directory) -> list[dict]:
    return [json.loads(line) for line in (directory / "results.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def directory():
    return checkpoints.converted("small_expressive")


def test_one_prompt_uses_the_checkpoint_s_options(directory, tmp_path, capsys):
    """Its generation_config.json recommends drawing with temperature 0.6 and top_p 0.9."""
    out = tmp_path / "new" / "out"
    run("--checkpoint", directory, "--input", "text:Once: upon", "--input", "units:[St1][Hu3]", "--output", out,
        "--output-modality", "text", "--max-new-tokens=12", "--dtype", "float32")  # fmt: skip
    (result,) = results(out)
    lm = checkpoints.load("small_expressive")
    prompt = "[Text]Once: upon[Speech][St1][Hu3][Text]"
    (segment,) = lm.generate(prompt, "text", max_new_tokens=12, temperature=0.6, top_p=0.9)
    assert segment.content != lm.generate(prompt, "text", max_new_tokens=12)[0].content
    assert result == {
        "id": "output",
        "prompt": "[Text]Once: upon[Speech][St1][Hu3][Text]",
        "outputs": [{"text": segment.content}],
    }
    assert segment.content in capsys.readouterr().out


def test_existing_results_are_replaced_only_on_request(directory, tmp_path, capsys):
    command = ("--checkpoint", directory, "--output", tmp_path, "--output-modality", "text", "--max-new-tokens", "3")
    run(*command, "--input", "text:Once")
    with pytest.raises(SystemExit) as ended:
        run(*command, "--input", "text:Twice")
    assert ended.value.code == 2
    assert "results.jsonl exists; say --overwrite to replace it" in capsys.readouterr().err
    assert results(tmp_path)[0]["prompt"] == "[Text]Once"
    run(*command, "--input", "text:Twice", "--overwrite")
    assert results(tmp_path)[0]["prompt"] == "[Text]Twice"


def test_results_go_to_a_bucket_and_are_continued_there(directory, bucket, tmp_path, monkeypatch, capsys):
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text('{"input": ["text:one"]}\n{"input": ["text:two"]}\n')

    def command(output):
        run("--checkpoint", directory, "--prompts", prompts, "--output", output, "--output-modality", "text",
            "--max-new-tokens", "3", "--slots", "1")  # fmt: skip

    command(tmp_path / "out")
    with monkeypatch.context() as patch:
        patch.setattr(PartialResults, "finish", lambda self: fail("the disk is full"))
        with pytest.raises(SystemExit):
            command(f"{bucket}/out")
    assert set(buckets.list_objects(f"{bucket}/out")) == {"results.jsonl.part"}
    capsys.readouterr()
    command(f"{bucket}/out")
    output, error = capsys.readouterr()
    assert f"2 of 2 prompts have their answers in {bucket}/out" in error
    assert f"{bucket}/out/results.jsonl" in output
    assert buckets.read_object(f"{bucket}/out/results.jsonl") == (tmp_path / "out/results.jsonl").read_bytes()
    assert set(buckets.list_objects(f"{bucket}/out")) == {"results.jsonl"}


def test_a_file_of_prompts_is_answered_in_its_order(directory, tmp_path):
    """Few-shot examples stand before every prompt, and options reach the model."""
    prompts, shots = tmp_path / "prompts.jsonl", tmp_path / "shots.jsonl"
    prompts.write_text(
        '{"id": "b", "input": ["text:hello"]}\n\n{"id": "a", "prompt": "[Text]raw"}\n'
        '{"input": ["units:[St1][Pi3][Hu3]"]}\n'
    )
    shots.write_text('{"input": ["units:[St1][Hu9]", "text:nine "]}\n{"input": ["units:[St1][Hu8]", "text:eight "]}\n')
    run("--checkpoint", directory, "--prompts", prompts, "--few-shot", shots, "--output", tmp_path,
        "--temperature", "1", "--output-modality", "speech", "--max-new-tokens", "8", "--slots", "2",
        "--dtype", "float32")  # fmt: skip
    before = "[Speech][St1][Hu9][Text]nine [Speech][St1][Hu8][Text]eight "
    found = results(tmp_path)
    assert [(r["id"], r["prompt"]) for r in found] == [
        ("b", before + "hello[Speech]"),
        ("a", before + "[Text]raw"),
        ("4", before + "[Speech][St1][Pi3][Hu3]"),
    ]
    lm = checkpoints.load("small_expressive")
    (segment,) = lm.generate(found[0]["prompt"], "speech", max_new_tokens=8, temperature=1.0, top_p=0.9)
    assert found[0]["outputs"] == [{"speech": None, "units": segment.tokens}]  # no vocoder in this checkpoint


REFUSED = {
    "no prompt": ((), 2, "give either --input"),
    "kind": (("--input", "song:la"), 2, "'song:la': expected text:..., speech:FILE or units:"),
    "file": (("--input", "speech:nothing.wav"), 2, "nothing.wav: no such file"),
    "option": (("--inputs", "text:a"), 2, "inputs"),
    "modality": (("--input", "text:a", "--output-modality", "song"), 2, "output_modality"),
    "no units": (("--input", "units:hello"), 2, "'units:hello': expected text:..., speech:FILE or units:"),
    "unit": (("--input", "units:[Hu900]"), 2, "[Hu900] at position 0: Hu units go up to 500"),
    "digits": (("--input", f"units:[Hu{'9' * 4400}]"), 2, "[Hu99999999999999999 at position 0: Hu units go up to 500"),
    "surrogate": (("--input", "text:a\udc80b"), 2, "--input text:a\\udc80b: is not UTF-8 text"),
    "bucket": (("--input", "text:a", "--output", "gs://b/out"), 2, "gs://b/out: no bucket can be named 'b'"),
    "bucket checkpoint": (("--input", "text:a", "--checkpoint", "s3://b/c"), 2, "s3://b/c: s3:// is not read"),
    "address": (("--input", "speech:http://a/b.wav"), 2, "speech http://a/b.wav: http:// is not read"),
    "task": (("--input", "text:a", "--task", "asr"), 2, "task asr takes speech alone, found text"),
    "task and modality": (
        ("--input", "text:a", "--task", "tts", "--output-modality", "text"),
        2,
        "task tts answers in speech, asked for",
    ),
    "value": (("--input", "text:a", "--top-p", "3"), 2, "top_p must be above 0 and at most 1, found 3.0"),
    "slots": (("--input", "text:a", "--slots", "0"), 2, "slots must be 1 or more, found 0"),
    "stop": (("--input", "text:a", "--stop", ""), 2, "a stop string needs at least one character"),
    "file as output": (("--input", "text:a", "--output", __file__), 2, "test_generate.py is a file"),
    "below a file": (("--input", "text:a", "--output", f"{__file__}/out"), 2, "test_generate.py is a file"),
    "checkpoint": (("--input", "text:a", "--checkpoint", "nowhere"), 2, "nowhere: no such checkpoint directory"),
    "prompts": (("--prompts", "nothing.jsonl"), 2, "nothing.jsonl: cannot be read (No such file or directory)"),
}


@pytest.mark.parametrize(("arguments", "code", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_bad_arguments_are_refused(directory, tmp_path, capsys, arguments, code, message):
    with pytest.raises(SystemExit) as ended:
        run("--checkpoint", directory, "--output", tmp_path, *arguments)
    message_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert ended.value.code == code
    assert message_line.startswith("python -m spirit_jax.generate: error: ")
    assert message in message_line


UNUSABLE = {
    "short": ("speech:short.wav", 2, "short.wav: 1000 samples (16 kHz) are too short for units: at least 1280 (80 ms)"),
    "nothing in it": ("speech:empty.wav", 2, "empty.wav: holds no samples"),
    "no sound file": ("speech:words.wav", 2, "words.wav: cannot be decoded"),
    "directory": ("speech:folder", 2, "folder: is a directory, not a sound file"),
    "context": ("text:" + "a b " * 3000, 2, "the model's context is 4096: shorten it"),
    "base asked for pitch": ("units:[Pi3][Hu4]", 2, "Spirit LM base has no pitch units; use an expressive checkpoint"),
}


@pytest.mark.parametrize(("wanted", "code", "message"), UNUSABLE.values(), ids=UNUSABLE.keys())
def test_unusable_inputs_are_refused_before_the_output_is_made(tmp_path, monkeypatch, capsys, wanted, code, message):
    monkeypatch.chdir(tmp_path)
    soundfile.write("short.wav", np.zeros(1000), 16_000)
    soundfile.write("empty.wav", np.zeros(0), 16_000)
    pathlib.Path("words.wav").write_text("these are words")
    pathlib.Path("folder").mkdir()
    with pytest.raises(SystemExit) as ended:
        run("--checkpoint", checkpoints.with_speech("small_base"), "--output", "out", "--input", wanted)
    message_line = capsys.readouterr().err.strip().splitlines()[-1]
    assert (ended.value.code, message in message_line) == (code, True), message_line
    assert not pathlib.Path("out").exists()


def test_audio_without_a_speech_tokenizer_is_refused(directory, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000), 16_000)
    with pytest.raises(SystemExit):
        run("--checkpoint", directory, "--output", tmp_path, "--input", f"speech:{tmp_path}/a.wav")
    assert "no speech_tokenizer/ to hear audio with: give units instead" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ('{"id": 1, "input": ["text:a"]}\nnonsense', r"line 2: not JSON \(Expecting value"),
        ('{"id": 1}', 'line 1: expected {"id": ..., "input"'),
        ('{"id": "../x", "prompt": "a"}', "line 1: id '../x' cannot be part of a file name"),
        ('{"id": "", "prompt": "a"}', "line 1: id '' cannot be part of a file name"),
        (f'{{"id": "{"x" * 201}", "prompt": "a"}}', "line 1: id 'x{40}' cannot be part of a file name"),
        ('{"prompt": ""}', "line 1: \"prompt\" must be a string with something in it, found ''"),
        ('{"prompt": 5}', 'line 1: "prompt" must be a string with something in it, found 5'),
        ('{"input": "text:a"}', "line 1: \"input\" must be a list of .* found 'text:a'"),
        ('{"input": []}', 'line 1: "input" must be a list of .* found'),
        ('{"input": [5]}', 'line 1: "input" must be a list of .* found'),
        ('{"id": 1, "prompt": "a"}\n{"id": "1", "prompt": "b"}', "id '1' comes twice"),
        ('{"id": ["a"], "prompt": "a"}', r"line 1: id must be a string or a whole number, found \['a'\]"),
        (r'{"id": "\ud800", "prompt": "a"}', r"line 1: id '\\ud800' cannot be part of a file name"),
        ("[" * 5000, "line 1: not JSON that can be read"),
        ("", "no prompts in it"),
        ('{"input": ["speech:gone.wav"]}', "line 1: .*gone.wav: no such file"),
    ],
)
def test_invalid_prompt_files_are_refused(tmp_path, lines, message):
    path = tmp_path / "prompts.jsonl"
    path.write_text(lines)
    with pytest.raises(InputError, match=message):
        read_prompts(str(path))


def test_prompts_that_are_not_text_are_refused(tmp_path):
    (tmp_path / "prompts.jsonl").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(InputError, match="prompts.jsonl: not UTF-8 text"):
        read_prompts(str(tmp_path / "prompts.jsonl"))


def test_only_a_newline_ends_a_line(tmp_path):
    """Unicode has other line ends, which JSON strings may hold."""
    (tmp_path / "prompts.jsonl").write_text('{"prompt": "one\u2028two\x85three"}\r\n{"prompt": "four"}\n', newline="")
    assert read_prompts(str(tmp_path / "prompts.jsonl")) == [("1", "one\u2028two\x85three"), ("2", "four")]


@pytest.fixture
def asked(monkeypatch) -> list[list]:
    """The prompts that the model was given, call by call."""
    calls, original = [], SpiritLM.as_completed

    def spy(self, prompts, *arguments, **options):
        calls.append(list(prompts))
        return original(self, prompts, *arguments, **options)

    monkeypatch.setattr(SpiritLM, "as_completed", spy)
    return calls


def test_an_interrupted_run_continues(tmp_path, monkeypatch, capsys, asked):
    """Finished answers are kept, a half-written one is made again, and the results equal those of an unbroken run."""
    prompts = tmp_path / "prompts.jsonl"
    prompts.write_text("".join(f'{{"id": "p{i}", "input": ["text:{word}"]}}\n' for i, word in enumerate("abcd")))
    command = ("--checkpoint", checkpoints.with_speech("small_base"), "--prompts", prompts, "--max-new-tokens", "30",
               "--temperature", "1", "--output-modality", "speech")  # fmt: skip
    run(*command, "--output", tmp_path / "whole")
    add = PartialResults.add

    def interrupted(self, index, line):
        if len(self.lines) == 2:
            raise KeyboardInterrupt
        add(self, index, line)

    with monkeypatch.context() as patched:
        patched.setattr(PartialResults, "add", interrupted)
        with pytest.raises(SystemExit) as ended:
            run(*command, "--output", tmp_path / "cut")
    assert ended.value.code == 130
    assert capsys.readouterr().err.strip().endswith("interrupted; the same command resumes the job")
    assert not (tmp_path / "cut" / "results.jsonl").exists()
    with (tmp_path / "cut" / "results.jsonl.part").open("a") as part:
        part.write('[3, "{\\"id')  # as kill -9 may leave it
    run(*command, "--output", tmp_path / "cut", "--slots", "1")
    assert "2 of 4 prompts have their answers in" in capsys.readouterr().err
    assert [len(prompts) for prompts in asked] == [4, 4, 2]
    whole, cut = ({f.name: f.read_bytes() for f in (tmp_path / name).iterdir()} for name in ("whole", "cut"))
    assert whole == cut
    assert sorted(whole) == ["p0-1.wav", "p1-1.wav", "p2-1.wav", "p3-1.wav", "results.jsonl"]


@pytest.mark.parametrize("change", [("--seed", "1"), ("--max-new-tokens", "9"), ("--prompts", "other.jsonl")])
def test_a_run_with_other_options_starts_anew(directory, tmp_path, monkeypatch, asked, change):
    monkeypatch.chdir(tmp_path)
    pathlib.Path("prompts.jsonl").write_text('{"prompt": "[Text]a"}\n{"prompt": "[Text]b"}\n')
    pathlib.Path("other.jsonl").write_text('{"prompt": "[Text]a"}\n{"prompt": "[Text]c"}\n')
    command = ("--checkpoint", directory, "--prompts", "prompts.jsonl", "--output", "out", "--output-modality", "text",
               "--max-new-tokens", "8")  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(PartialResults, "finish", lambda self: 1 / 0)
        for _ in range(2):
            with pytest.raises(ZeroDivisionError):
                run(*command)
    run(*command, *change)
    assert [len(prompts) for prompts in asked] == [2, 0, 2]
    assert len(results(pathlib.Path("out"))) == 2
    assert [path.name for path in pathlib.Path("out").iterdir()] == ["results.jsonl"]


def test_an_unknown_speaker_is_refused_before_generation(tmp_path, capsys, asked):
    command = ("--checkpoint", checkpoints.with_speech("small_base"), "--input", "text:a", "--output", tmp_path / "out")
    with pytest.raises(SystemExit) as ended:
        run(*command, "--speaker", "nobody", "--max-new-tokens", "4000")
    assert ended.value.code == 2
    assert "unknown speaker 'nobody'; known are" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_speech_is_written_as_a_sound_file(tmp_path):
    sound = write_segment(tmp_path / "a-1.wav", Segment("speech", np.zeros(640, np.float32), "[Hu1]"))
    assert sound == {"speech": "a-1.wav", "units": "[Hu1]"}
    assert (tmp_path / "a-1.wav").stat().st_size == 44 + 2 * 640


def test_speech_without_a_phonetic_unit_has_a_reason(tmp_path):
    output = write_segment(tmp_path / "a-1.wav", Segment("speech", np.zeros(0, np.float32), "[Pi0]"))
    assert list(tmp_path.iterdir()) == []
    assert output["speech"] is None
    assert "nothing to speak" in output["reason"]
    assert describe_outputs([output], tmp_path) == f"[Pi0] ({output['reason']})"
    assert "speech of fewer than 24 phonetic units" in describe_outputs([], tmp_path)


def test_unusable_prompts_are_named_and_the_others_answered(tmp_path, capsys):
    """Too long, an unknown token, a missing recording and half a character: each has its error in the results."""
    prompts = {
        "good": {"input": ["text:hi"]},
        "long": {"input": ["text:" + "a b " * 3000]},
        "token": {"prompt": "[Text][Hu900]"},
        "gone": {"input": ["speech:gone.wav"]},
        "half": {"input": ["text:a\udcff"]},
        "also good": {"input": ["text:[Hu900] and [Text]"]},
    }
    path = tmp_path / "p.jsonl"
    path.write_text("".join(json.dumps({"id": name, **prompt}) + "\n" for name, prompt in prompts.items()))
    with pytest.raises(SystemExit) as ended:
        run("--checkpoint", checkpoints.converted("small_base"), "--prompts", path, "--output", tmp_path / "out",
            "--output-modality", "text", "--max-new-tokens", "3")  # fmt: skip
    assert ended.value.code == 1
    shown = capsys.readouterr().err
    assert "4 of 6 prompts cannot be used, the others are answered" in shown
    found = {result["id"]: result for result in results(tmp_path / "out")}
    assert list(found) == list(prompts)
    for name, reason in {
        "long": "the model's context is 4096",
        "token": "[Hu900] at position 6 is no token",
        "gone": "gone.wav: no such file",
        "half": "half of a character",
    }.items():
        assert reason in found[name]["error"]
        assert f"  {name}: {found[name]['error']}" in shown
    assert [name for name, result in found.items() if result["outputs"]] == ["good", "also good"]
    assert found["also good"]["prompt"] == "[Text][Hu900] and [Text]"


def test_a_home_directory_is_expanded(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "p.jsonl").write_text('{"prompt": "[Text]a"}\n')
    (tmp_path / "ck").symlink_to(checkpoints.converted("small_base"))
    run("--checkpoint", "~/ck", "--prompts", "~/p.jsonl", "--output", "~/out", "--output-modality", "text",
        "--max-new-tokens", "2")  # fmt: skip
    assert len(results(tmp_path / "out")) == 1
    assert SpiritLM.from_pretrained("~/ck").vocabulary.variant == "base"
