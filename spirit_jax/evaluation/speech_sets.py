"""Recordings with what a model should say about them: transcripts, or the fields of an intent."""

import dataclasses
import pathlib
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Float

from spirit_jax.audio import AudioError, load_audio
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text
from spirit_jax.corpora import CorpusError, Input, open_input
from spirit_jax.evaluation.items import BenchmarkError, csv_table


@dataclasses.dataclass(frozen=True)
class Recording:
    """A recording and its text."""

    id: str
    text: str
    """Value compared with the answer: a transcript, or an intent."""
    load: Callable[[], Float[np.ndarray, " R"]]
    """Reads the audio, float32 [R] at 16 kHz; raises AudioError or CorpusError."""


SpeechSet = Sequence[Recording]


def open_speech_set(place: pathlib.Path | str, split: str) -> SpeechSet:
    """The recordings of a split.

    LibriSpeech's layout (`SPLIT/SPEAKER/CHAPTER/*.trans.txt`) is read where there are such files, and each line of a
    transcript is an item, so that missing recordings are counted. Otherwise everything that `encode` takes is read: a
    folder with a `.txt` beside each recording, a manifest, a prepared or bundled corpus.

    Raises:
        BenchmarkError: nothing can be read there, or LibriSpeech is there without the split.
    """
    root = pathlib.Path(place).expanduser()
    folder = root / split if (root / split).is_dir() else root
    transcripts = sorted(folder.rglob("*.trans.txt")) if folder.is_dir() else []
    if transcripts and folder == root:  # the user named a split, or one of LibriSpeech is missing
        splits = {"/".join(path.relative_to(root).parts[:-3]) for path in transcripts} - {""}
        if splits:
            raise BenchmarkError(f"{root}: no split {split!r} of LibriSpeech there, only {', '.join(sorted(splits))}")
    if transcripts:
        return [item for path in transcripts for item in _librispeech(path)]
    try:
        corpus = open_input(str(place), split)
    except SpiritError as error:
        raise BenchmarkError(str(error)) from error
    if not corpus.has_speech:
        raise BenchmarkError(f"{place}: holds text without recordings")
    return [_utterance(corpus, index) for index in range(len(corpus))]


def open_prompts(place: pathlib.Path | str, split: str) -> SpeechSet:
    """The prompts of a split: lines of a `.txt` file, which have no recordings, or what `open_speech_set` reads.

    Raises:
        BenchmarkError: nothing can be read there.
    """
    path = pathlib.Path(place).expanduser()
    if path.suffix != ".txt" or not path.is_file():
        return open_speech_set(place, split)

    def fail() -> Float[np.ndarray, " R"]:
        raise AudioError(f"{path}: holds text without recordings")

    lines = enumerate(read_text(path, BenchmarkError).splitlines(), 1)
    return [Recording(f"line {number}", line.strip(), fail) for number, line in lines if line.strip()]


def _librispeech(path: pathlib.Path) -> list[Recording]:
    """The utterances of a chapter: lines `ID WORDS`."""
    items = []
    for line in read_text(path, BenchmarkError).splitlines():
        name, _, text = line.partition(" ")
        if name:
            audio = path.parent / f"{name}.flac"
            items.append(Recording(name, text, lambda audio=audio: load_audio(audio)))
    return items


def _utterance(corpus: Input, index: int) -> Recording:
    try:
        utterance = corpus[index]
    except CorpusError as error:
        problem = error

        def fail() -> Float[np.ndarray, " R"]:
            raise problem

        return Recording(f"{corpus.name}-{index}", "", fail)
    return Recording(utterance.id, utterance.text, utterance.load)


def open_intents(place: pathlib.Path | str, split: str) -> SpeechSet:
    """Fluent Speech Commands: `data/SPLIT_data.csv` with `path`, `action`, `object` and `location`, and the recordings.

    The text of a recording is the intent, `activate lights bedroom`. A field with the value `none` is left out.

    Raises:
        BenchmarkError: the file is missing or lacks a column.
    """
    path = pathlib.Path(place) / "data" / f"{split}_data.csv"
    fields = ("action", "object", "location")
    items = []
    for row in csv_table(path, ("path", *fields)):
        words = [row[name].strip() for name in fields]
        audio = pathlib.Path(place) / row["path"]
        text = " ".join(word for word in words if word and word != "none")
        items.append(Recording(row["path"], text, lambda audio=audio: load_audio(audio)))
    return items


def load(recording: Recording) -> Float[np.ndarray, " R"] | str:
    """The audio of a recording, or why it cannot be used."""
    try:
        return recording.load()
    except (AudioError, CorpusError) as error:
        return str(error)
