"""The whole chain on a handful of short recordings: resumed bit for bit, exported, and used as a tokenizer."""

import dataclasses
import json
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest
import soundfile
import torch

from spirit_jax import SpeechTokenizer, config, load_audio
from spirit_jax.convert.components import hubert
from spirit_jax.convert.part_export import export_part
from spirit_jax.convert.part_import import import_part
from spirit_jax.convert.parts import RELEASED_PARTS
from spirit_jax.convert.verification import reference
from spirit_jax.parallel.sharding import HostShare
from spirit_jax.speech_training import job
from spirit_jax.speech_training.compile import abstract_batch
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.crops import Clips
from spirit_jax.speech_training.part import Context
from spirit_jax.speech_training.parts import parts
from spirit_jax.speech_training.quantizers import read_phonetic
from spirit_jax.training.checks import RunError
from tests.support.compilation import fast_environment
from tests.support.runs import newest_arrays
from tests.support.sounds import buzz

CONFIG = """
hubert_1: &hubert
  encoder:
    conv_layers: [[8, 10, 5], [8, 3, 2], [8, 3, 2], [8, 3, 2], [8, 3, 2], [8, 2, 2], [8, 2, 2], [8, 2, 2]]
    hidden_size: 16
    num_layers: 2
    num_heads: 2
    intermediate_size: 16
    position_kernel: 8
    position_groups: 2
  labels: {clusters: 6, restarts: 1}
  masking: {length: 2}
  rows: 2
  samples: 16000
  shortest: 8000
  projection: 8
  optimizer: {learning_rate: 1.0e-3}
  loop: {steps: 4, log_every: 1, evaluate_every: 4, sample_every: 0}
units: {layer: 1, units: 5, restarts: 1}
quantizer:
  rounds: 1
  start: teacher
  rows: 2
  samples: 16000
  loop: {steps: 2, log_every: 1, evaluate_every: 0, sample_every: 0}
scratch: {pitch_units: 4, style_units: 2}
checkpoint: {every: 2}
cache_gb: 0.001
"""


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """A manifest of nine clips: buzzes with two words each, one silent clip and one that is too short."""
    directory = tmp_path_factory.mktemp("recordings")
    rng, lines = np.random.default_rng(0), []
    for index in range(9):
        seconds = 0.05 if index == 8 else 1.2
        audio = buzz(rng.uniform(90, 300), seconds) + 0.01 * rng.standard_normal(int(seconds * 16_000))
        if index == 7:
            audio = np.zeros_like(audio)
        soundfile.write(directory / f"{index}.wav", audio, 16_000)
        words = [
            {"word": word, "start_ms": 100 + 500 * place, "end_ms": 600 + 500 * place}
            for place, word in enumerate(("low", "high"))
        ] * (index < 7)
        lines.append({"id": str(index), "audio": f"{index}.wav", "text": "low high" if words else "", "words": words})
    (directory / "clips.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    (directory / "config.yaml").write_text(CONFIG)
    return directory


def _settings(recordings, run, *options):
    arguments = ["--corpora", str(recordings / "clips.jsonl"), "--validation_fraction", "0.35"]
    return config.load(
        TrainSpeechConfig, recordings / "config.yaml", [*arguments, "--run_directory", str(run), *options]
    )


@pytest.fixture(scope="module")
def finished(recordings, tmp_path_factory):
    """A run that was never interrupted."""
    run = tmp_path_factory.mktemp("runs") / "whole"
    job.run(_settings(recordings, run))
    return run


@pytest.mark.slow
def test_a_killed_run_resumes_bit_for_bit(recordings, finished, tmp_path):
    run = tmp_path / "killed"
    killed = (
        "import os, sys\nfrom spirit_jax.training.checkpoints import RunCheckpoints\n"
        "from spirit_jax.train_speech import main\nsave = RunCheckpoints.save\n"
        "def save_and_die(self, state, streams):\n    save(self, state, streams)\n    self.wait()\n    os._exit(9)\n"
        "RunCheckpoints.save = save_and_die\nmain(sys.argv[1:])\n"
    )
    options = ["--config", str(recordings / "config.yaml"), "--corpora", str(recordings / "clips.jsonl")]
    options += ["--validation_fraction", "0.35", "--run_directory", str(run)]
    command = [sys.executable, "-c", killed, *options]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300, env=fast_environment())
    assert result.returncode == 9, result.stderr
    assert [path.name for path in (run / "hubert_1" / "checkpoints").iterdir() if path.name.isdigit()] == ["2"]
    job.run(_settings(recordings, run, "--units", "null", "--quantizer", "null", "--scratch", "null"))
    expected, found = newest_arrays(finished / "hubert_1"), newest_arrays(run / "hubert_1")
    assert jax.tree.structure(expected) == jax.tree.structure(found)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: (a == b).all(), expected, found)))
    lines = [(path / "hubert_1" / "metrics.jsonl").read_text().count("train/loss") for path in (run, finished)]
    assert lines == [4, 4]


def test_a_finished_run_is_a_tokenizer_and_its_log_has_the_measures(recordings, finished):
    records = [json.loads(line) for line in (finished / "hubert_1" / "metrics.jsonl").read_text().splitlines()]
    values = {name for record in records for name in record}
    assert {
        "validation/masked_accuracy",
        "evaluation/pnmi",
        "evaluation/cluster_purity",
        "train/masked_accuracy",
    } <= values
    tokenizer = SpeechTokenizer.from_pretrained(finished, "expressive")
    audio = load_audio(recordings / "0.wav")
    units = tokenizer.encode(audio)
    assert len(units.hubert) == (audio.size - 720) // 640 + 1
    assert set(units.hubert) <= set(range(5))
    assert np.isfinite(tokenizer.decode(units, predict_durations=False)).all()


def test_nothing_is_trained_twice_and_other_options_are_refused(recordings, finished, capsys):
    job.run(_settings(recordings, finished))
    assert "hubert_1: finished, 4 steps" in capsys.readouterr().out
    with pytest.raises(RunError, match=r"hubert_1 holds a run with another config \(hubert_1.rows 2 -> 4\)"):
        job.run(_settings(recordings, finished, "--hubert_1.rows", "4"))
    with pytest.raises(RunError, match=r"units holds a run with another config \(units.units 5 -> 4\)"):
        job.run(_settings(recordings, finished, "--units.units", "4"))


def test_a_corpus_that_has_grown_is_refused(recordings, finished, monkeypatch):
    train, held_out = job.open_clips(_settings(recordings, finished))
    monkeypatch.setattr(job, "open_clips", lambda settings: (Clips([*train.utterances, train.utterance(0)]), held_out))
    with pytest.raises(RunError, match=r"another config \(clips \[\d, \d\] -> .*remove the folders of this part"):
        job.run(_settings(recordings, finished))


def test_labels_are_kept_for_the_same_clips_only_and_spikes_are_those_of_the_config(recordings, finished, tmp_path):
    directory = shutil.copytree(finished / "hubert_1", tmp_path / "hubert_1")
    settings, labels = _settings(recordings, finished), directory / "labels" / "train_values.npy"
    made_from = json.loads((directory / "labels" / "made_from.json").read_text())
    (hubert, *_), (train, held_out) = parts(settings), job.open_clips(settings)
    context = Context(
        run=finished,
        directory=directory,
        train=train,
        held_out=held_out,
        seed=0,
        data=made_from["data"],
        spike_sigmas=7.0,
    )
    before = labels.stat().st_mtime_ns
    prepared = hubert.prepare(context)
    assert prepared.rule.spike_sigmas == 7
    batch = next(prepared.batches(HostShare(0, 1), None))
    assert {name: (array.shape, array.dtype) for name, array in abstract_batch(hubert.outline(), 2).items()} == {
        name: (array.shape, array.dtype) for name, array in batch.items()
    }
    assert labels.stat().st_mtime_ns == before
    hubert.prepare(dataclasses.replace(context, data=made_from["data"] | {"corpora": ["others.jsonl"]}))
    assert labels.stat().st_mtime_ns > before


def test_parts_from_scratch_are_learned_anew_for_other_phonetic_units(recordings, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    for part in ("units", "quantizer_1", "scratch"):
        shutil.rmtree(run / part)
    job.run(_settings(recordings, run, "--units.units", "4", "--quantizer", "null"))
    tokenizer = SpeechTokenizer.from_pretrained(run)
    units = tokenizer.encode(load_audio(recordings / "0.wav"))
    assert set(units.hubert) <= set(range(4))
    vocoders = [
        json.loads((path / "speech_tokenizer" / "vocoder_base" / "config.json").read_text()) for path in (run, finished)
    ]
    assert [vocoder["units"] for vocoder in vocoders] == [4, 5]


def test_a_part_is_refused_when_an_earlier_one_was_trained_for_longer(recordings, finished, tmp_path):
    run = shutil.copytree(finished, tmp_path / "run")
    with pytest.raises(RunError, match=r"units holds a run with another config \(hubert_1.loop.steps 4 -> 5\)"):
        job.run(_settings(recordings, run, "--hubert_1.loop.steps", "5"))


@pytest.mark.parametrize("part", ["units", "quantizer_1"])
def test_export_gives_the_released_files_with_which_pytorch_gives_the_same_units(recordings, finished, part, tmp_path):
    directory = finished / part / "phonetic"
    (phonetic,) = (part for part in RELEASED_PARTS if part.name == "phonetic")
    export_part(phonetic, directory).write(tmp_path, lambda count: None)
    released = tmp_path / phonetic.folder
    state = torch.load(released / "mhubert_base_25hz.pt", weights_only=True)
    assert {"mask_emb", "label_embs_concat", "final_proj.weight"} <= state["model_weight"].keys()
    encoder, audio = read_phonetic(directory), load_audio(recordings / "1.wav")
    with torch.no_grad():
        features = reference.hubert(
            reference.tensors({name: tensor.numpy() for name, tensor in state["model_weight"].items()}),
            state["model_cfg"],
            encoder.config()["layer"],
            torch.from_numpy(audio)[None],
        )
    np.testing.assert_allclose(encoder.features([audio])[0], features[0].numpy(), atol=2e-4)
    if part == "quantizer_1":
        return  # The file of a linear quantizer does not name its layer, and the reference reads the eleventh.
    again = import_part(phonetic, released)
    assert json.loads(json.dumps(again.config)) == encoder.config()
    assert hubert.conv_feature_layers(state["model_cfg"]["conv_feature_layers"]) == encoder.encoder.conv_layers
