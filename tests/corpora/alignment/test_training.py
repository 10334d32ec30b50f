"""An aligner trained on the corpus at hand, on the exact word times of the bundled corpus."""

import concurrent.futures
import dataclasses
import itertools
import pathlib
import time

import flax.serialization
import numpy as np
import pytest

from spirit_jax.core.buckets import list_objects
from spirit_jax.corpora import open_corpus
from spirit_jax.corpora.alignment import training
from spirit_jax.corpora.alignment.aligner import AlignmentError, WordTime
from spirit_jax.corpora.alignment.ctc_aligner import CTCAligner
from spirit_jax.corpora.alignment.job import AlignmentSettings, align_corpus
from spirit_jax.corpora.alignment.spelling import spell
from spirit_jax.corpora.alignment.training import AlignerTraining, TrainedAligner, load_network, trained_network
from spirit_jax.corpora.utterance import Utterance

SMALL = AlignerTraining(passes=16, min_hours_seen=0.1, width=48, batch_frames=800)
CLIPS = 48
SECONDS = (3.25, 3.8)
"""Clips of one padded length, because each length is compiled."""


@dataclasses.dataclass(frozen=True)
class Few:
    """Some utterances of a corpus as an input."""

    utterances: tuple[Utterance, ...]
    name: str = "few"
    split: str = "train"
    location: pathlib.Path = pathlib.Path("few")
    has_speech: bool = True

    @property
    def fingerprint(self):
        return " ".join(utterance.id + utterance.text for utterance in self.utterances)

    def __len__(self):
        return len(self.utterances)

    def __getitem__(self, index):
        return self.utterances[index]


@pytest.fixture(scope="module")
def corpus():
    whole = open_corpus("spirit_mini", "train")
    found = (whole[index] for index in range(len(whole)))
    fitting = (u for u in found if SECONDS[0] < u.load().size / 16_000 < SECONDS[1])
    return Few(tuple(itertools.islice(fitting, CLIPS)))


@pytest.fixture(scope="module")
def directory(corpus, tmp_path_factory):
    """Where an aligner was trained for a few seconds on three minutes of speech."""
    path = tmp_path_factory.mktemp("trained") / "train.aligner"
    trained_network(corpus, path, training=SMALL, progress=False)
    return path


def errors(network, utterances):
    found = CTCAligner(network).align([u.load() for u in utterances], [spell(" ".join(u.words)) for u in utterances])
    return np.concatenate(
        [
            np.abs(np.array([(time.start_ms, time.end_ms) for time in times]) - utterance.spans_ms).ravel()
            for times, utterance in zip(found, utterances, strict=True)
        ]
    )


@pytest.mark.slow
def test_boundaries_are_near_the_true_ones(directory, corpus):
    # 25 ms after 15 passes
    assert errors(load_network(directory), corpus.utterances).mean() < 60


def test_a_stored_network_is_used_again_for_the_same_corpus_only(directory, corpus, monkeypatch):
    monkeypatch.setattr(training, "_train", None)  # fails where it is called
    assert trained_network(corpus, directory, training=SMALL, progress=False).name == load_network(directory).name
    other = dataclasses.replace(corpus, utterances=corpus.utterances[1:])
    with pytest.raises(TypeError):
        trained_network(other, directory, training=SMALL, progress=False)


def test_training_resumes_at_its_last_pass_with_the_same_result(corpus, tmp_path, monkeypatch):
    short = dataclasses.replace(SMALL, passes=2, min_hours_seen=0.01, width=16)
    whole = trained_network(corpus, tmp_path / "whole", training=short, progress=False)
    real, calls = training.write_file, []

    def fail_after_one_pass(*arguments):
        real(*arguments)
        calls.append(arguments)
        raise KeyboardInterrupt

    monkeypatch.setattr(training, "write_file", fail_after_one_pass)
    with pytest.raises(KeyboardInterrupt):
        trained_network(corpus, tmp_path / "killed", training=short, progress=False)
    assert len(calls) == 1
    assert not (tmp_path / "killed").exists()
    monkeypatch.setattr(training, "write_file", lambda *arguments: (real(*arguments), calls.append(arguments)))
    resumed = trained_network(corpus, tmp_path / "killed", training=short, progress=False)
    assert len(calls) == 2
    clip = corpus[0].load()
    np.testing.assert_array_equal(resumed.log_probs([clip])[0], whole.log_probs([clip])[0])
    assert [path.name for path in (tmp_path).iterdir() if path.name.startswith(".")] == []


def test_a_network_in_a_bucket_is_trained_by_one_process_and_read_by_the_others(directory, corpus, bucket, monkeypatch):
    trained, states = load_network(directory), []

    def train(clips, alphabet, name, settings, unfinished, progress):
        states.append(training._resume(unfinished, name, trained)[1])
        training.write_file(unfinished, flax.serialization.msgpack_serialize({"name": name, "passes": 3, "state": {}}))
        states.append(training._resume(unfinished, name, {})[1])
        training.remove_file(unfinished)
        time.sleep(0.5)
        return trained

    monkeypatch.setattr(training, "_train", train)
    few = dataclasses.replace(corpus, utterances=corpus.utterances[:2])
    monkeypatch.setattr(training, "_load_clips", lambda *arguments: ([], None))
    monkeypatch.setattr(training, "_network_name", lambda *arguments: trained.name)
    with concurrent.futures.ThreadPoolExecutor(2) as threads:
        found = list(threads.map(lambda _: training.trained_network(few, f"{bucket}/out/train.aligner"), range(2)))
    assert states == [0, 3]
    assert not [name for name in list_objects(f"{bucket}/out") if name.startswith(".")]
    clip = corpus[0].load()
    for network in found:
        np.testing.assert_array_equal(network.log_probs([clip])[0], trained.log_probs([clip])[0])


def test_too_little_speech_is_refused_with_what_there_is(corpus, tmp_path):
    few = dataclasses.replace(corpus, utterances=corpus.utterances[:5])
    with pytest.raises(AlignmentError, match=r"5 clips of at most 30 s with a transcript, 0\.\d minutes; .* 2 minutes"):
        trained_network(few, tmp_path / "aligner", progress=False)


def test_wrong_transcripts_score_lower_and_are_left_out_by_the_filter(directory, corpus, tmp_path):
    utterances = corpus.utterances[:8]
    wrong = [
        dataclasses.replace(u, text=other.text, words=(), spans_ms=np.zeros((0, 2), np.int32))
        for u, other in zip(utterances[:4], utterances[4:], strict=True)
    ]
    mixed = dataclasses.replace(corpus, utterances=(*wrong, *utterances[4:]))
    aligner = CTCAligner(load_network(directory))
    found = aligner.align([u.load() for u in mixed.utterances], [spell(u.text) for u in mixed.utterances])
    means = [np.mean([time.score for time in times]) for times in found if not isinstance(times, AlignmentError)]
    assert max(means[:4]) < min(means[4:])
    threshold = (max(means[:4]) + min(means[4:])) / 2
    settings = AlignmentSettings(min_score=float(threshold))
    summary = align_corpus(mixed, aligner, tmp_path, settings, progress=False)
    assert (summary.utterances, summary.left_out) == (4, 4)


def test_a_refused_job_trains_nothing(corpus, tmp_path, monkeypatch):
    class Sounds:
        name = "sounds"

        def align(self, clips, transcripts):
            return [[WordTime(0, 1, 1.0)] * len(words) for words in transcripts]

    few = dataclasses.replace(corpus, utterances=corpus.utterances[:2])
    align_corpus(few, Sounds(), tmp_path, progress=False)
    monkeypatch.setattr(training, "_load_clips", None)  # fails where it is called
    with pytest.raises(FileExistsError, match="aligner sounds"):
        align_corpus(few, TrainedAligner(few, tmp_path / "train.aligner"), tmp_path, progress=False)
