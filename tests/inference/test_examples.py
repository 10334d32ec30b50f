"""Every script in examples/ runs as its docstring says, on a random model with HuBERT and HiFi-GAN."""

import pathlib
import runpy
import socket
import subprocess
import sys

import numpy as np
import pytest
import soundfile

from spirit_jax import Segment, SpiritLM
from spirit_jax.audio import save_audio
from tests.support import checkpoints
from tests.support.compilation import fast_environment

EXAMPLES = pathlib.Path(__file__).parents[2] / "examples"


@pytest.fixture(scope="module")
def checkpoint() -> str:
    return str(checkpoints.with_speech("small_base"))


@pytest.fixture
def clips(tmp_path) -> list[str]:
    """Two recordings of half a second."""
    paths = [tmp_path / "clips" / name for name in ("first.wav", "second.flac")]
    paths[0].parent.mkdir()
    for seed, path in enumerate(paths):
        save_audio(path, 0.1 * np.random.default_rng(seed).standard_normal(8000).astype(np.float32))
    return [str(path) for path in paths]


@pytest.fixture
def run(monkeypatch, capsys):
    """Runs a script with a command line, here, and returns what it printed."""

    def start(name: str, *arguments) -> str:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        runpy.run_path(str(EXAMPLES / f"{name}.py"), run_name="__main__")
        return capsys.readouterr().out

    return start


def seconds(path) -> float:
    audio, rate = soundfile.read(path)
    assert rate == 16_000
    assert np.abs(audio).max() > 0
    return audio.size / rate


def test_speech_continuation_writes_a_sound_file(run, checkpoint, clips, tmp_path):
    printed = run("speech_continuation", checkpoint, clips[0], tmp_path / "on.wav")
    assert printed.strip() == f"{tmp_path}/on.wav: {seconds(tmp_path / 'on.wav'):.1f} s"


def test_asr_few_shot_prints_a_transcript(run, checkpoint, clips):
    printed = run("asr_few_shot", checkpoint, clips[0], clips[1], "the words", clips[0], "other words")
    assert printed.strip()
    assert "<END>" not in printed


def test_tts_few_shot_writes_a_sound_file(run, checkpoint, clips, tmp_path):
    printed = run(
        "tts_few_shot", checkpoint, "read this", tmp_path / "said.wav", "the words", clips[0], "others", clips[1]
    )
    assert printed.strip() == f"{tmp_path}/said.wav: {seconds(tmp_path / 'said.wav'):.1f} s"


def test_cross_modal_continuation_writes_speech_and_prints_text(run, checkpoint, clips, tmp_path):
    printed = run("cross_modal_continuation", checkpoint, "The largest country is", clips[0], tmp_path / "out")
    spoken = seconds(tmp_path / "out" / "text_to_speech-1.wav")
    assert spoken > 1
    assert {line.split(":")[0] for line in printed.splitlines() if ": " in line} >= {"text_to_speech", "speech_to_text"}


def test_batch_over_folder_writes_a_file_for_each_recording(run, checkpoint, clips, tmp_path):
    """Upper-case suffixes count, two recordings with one stem have an output each, and macOS's companions are none."""
    folder = tmp_path / "clips"
    for name in ("B.WAV", "second.wav"):
        (folder / name).write_bytes((folder / "first.wav").read_bytes())
    (folder / "._first.wav").write_bytes(b"\0\5\x16\7")
    (folder / "c.mp3").write_bytes(b"no sound")
    printed = run("batch_over_folder", checkpoint, folder, tmp_path / "out")
    assert sorted(printed.split()) == ["B.WAV", "first.wav", "second.flac", "second.wav"]
    written = sorted((tmp_path / "out").iterdir())
    assert [path.name for path in written] == ["B.wav", "first.wav", "second.flac.wav", "second.wav.wav"]
    assert all(seconds(path) > 0.5 for path in written)


@pytest.mark.parametrize("count", [0, 1, 7])
@pytest.mark.parametrize("name", sorted(path.stem for path in EXAMPLES.glob("*.py")))
def test_wrong_arguments_print_the_usage(run, name, count):
    if name in ("asr_few_shot", "tts_few_shot") and count == 7:
        count = {"asr_few_shot": 3, "tts_few_shot": 4}[name]  # a recording without its words
    with pytest.raises(SystemExit, match=f"python examples/{name}.py CHECKPOINT"):
        run(name, *"abcdefg"[:count])


def test_a_folder_without_recordings_is_refused(run, tmp_path):
    with pytest.raises(SystemExit, match="no recordings there that can be read"):
        run("batch_over_folder", "CHECKPOINT", tmp_path, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_two_processes_give_the_answer_of_one(checkpoint):
    """Each process holds half of the weights, and one of them prints the answer."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{probe.getsockname()[1]}"
    command = [sys.executable, EXAMPLES / "multi_host.py", checkpoint, "Once upon a time", address, "2"]
    processes = [
        subprocess.Popen(
            [*command, str(index)], env=fast_environment(), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
        )
        for index in range(2)
    ]
    printed = [process.communicate(timeout=240) for process in processes]
    assert [process.returncode for process in processes] == [0, 0], printed
    (alone,) = SpiritLM.from_pretrained(checkpoint).generate(
        [Segment.text("Once upon a time")], "text", max_new_tokens=50
    )
    # Gloo says on standard output, too, that it is connected
    printed_lines = [
        "\n".join(line for line in out.split("\n") if not line.startswith("[Gloo]")).strip() for out, _ in printed
    ]
    assert printed_lines == [str(alone.content).strip(), ""]
