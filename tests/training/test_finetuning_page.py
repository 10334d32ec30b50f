"""The first commands of docs/finetuning.md, from recordings to an adapter that speaks, as the page prints them."""

import importlib
import json
import pathlib
import re
import shlex

import numpy as np
import pytest
import soundfile

from spirit_jax.__main__ import COMMANDS
from spirit_jax.corpora import open_corpus
from tests.support import checkpoints

PAGE = pathlib.Path(__file__).parents[2] / "docs" / "finetuning.md"
FEW_STEPS = """--loop.steps 2 --loop.evaluate_every 0 --loop.sample_every 0 --checkpoint.every 2 --global_batch_size 2
    --sequence_length 128 --optimizer.warmup_steps 1 --model.dtype float32 --model.param_dtype float32""".split()


def page_commands() -> list[list[str]]:
    """The command lines of the page's first block, with the names of the page."""
    block = re.search(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
    assert block is not None
    return [shlex.split(line) for line in block[1].replace("\\\n", " ").splitlines()]


@pytest.mark.slow  # half a minute of CPU time
def test_the_commands_of_the_page_lead_from_recordings_to_speech(tmp_path, monkeypatch):
    """A few short clips and two steps; everything else is as on the page. The folder `clips` is the reader's own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "clips").mkdir()
    corpus = open_corpus("spirit_mini", "validation")
    for index in range(5):
        utterance = corpus[index]
        (tmp_path / "clips" / f"{index}.ogg").write_bytes(utterance.audio_bytes())
        (tmp_path / "clips" / f"{index}.txt").write_text(utterance.text)
    base = str(checkpoints.with_speech("small_base"))
    commands = page_commands()
    assert [command[2] for command in commands] == [
        f"spirit_jax.{name}" for name in ("align", "encode", "train", "generate")
    ]
    for _, _, module, *arguments in commands:
        options = [base if part == "BASE" else part.replace("checkpoints/300", "checkpoints/2") for part in arguments]
        options += {"spirit_jax.train": FEW_STEPS, "spirit_jax.generate": ["--max-new-tokens", "30"]}.get(module, [])
        importlib.import_module(COMMANDS[module.split(".")[1]][0]).main(options)
    (result,) = (json.loads(line) for line in (tmp_path / "spoken" / "results.jsonl").read_text().splitlines())
    (output,) = result["outputs"]
    audio, rate = soundfile.read(tmp_path / "spoken" / output["speech"])
    assert rate == 16_000
    assert np.abs(audio).max() > 0
