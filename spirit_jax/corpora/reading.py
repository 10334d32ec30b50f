"""Reading corpora: random access to utterances of a prepared TFDS directory."""

import dataclasses
import hashlib
import os
import pathlib
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.audio import AudioError, load_audio
from spirit_jax.core.constants import MINIMUM_SAMPLES, SAMPLE_RATE
from spirit_jax.core.errors import SpiritError

BUNDLED = pathlib.Path(__file__).parent / "bundled"
"""TFDS data directory of the corpora that come with the package."""

_TOLERANCE_MS = 20
"""Word times may pass the end of the audio by this much (encoders trim and pad); they are cut to it."""


class CorpusError(SpiritError):
    """A corpus or an utterance that cannot be used; the message names the directory or the utterance."""


@dataclasses.dataclass(frozen=True, eq=False)
class Utterance:
    """One example of a corpus as stored.

    `audio` are the bytes of an encoded file (FLAC, OGG, WAV), None in a text-only corpus; `spans_ms` int32 [W, 2] are start and
    end of each of the W `words`, in ms from the start of the audio.
    """

    id: str
    audio: bytes | None
    text: str
    words: tuple[str, ...] = ()
    spans_ms: Int[np.ndarray, "W 2"] = dataclasses.field(default_factory=lambda: np.zeros((0, 2), np.int32))
    speaker: str = ""

    def load(self) -> Float[np.ndarray, " R"]:
        """The decoded audio, float32 [R] at 16 kHz, of a sound utterance.

        Raises:
            CorpusError: naming this utterance: no or corrupt audio, a clip shorter than 80 ms, an empty transcript, or words
                that are out of order or lie outside the audio.
        """
        self.check_text()
        if self.audio is None:
            raise CorpusError(f"utterance {self.id!r} has no audio")
        try:
            audio = load_audio(self.audio)
        except AudioError as error:
            raise CorpusError(f"utterance {self.id!r}: {error}") from error
        if audio.size < MINIMUM_SAMPLES:
            raise CorpusError(
                f"utterance {self.id!r}: {audio.size} samples are shorter than a frame of each unit stream; "
                f"at least {MINIMUM_SAMPLES} (80 ms) are needed"
            )
        self._check_spans(audio.size * 1000 / SAMPLE_RATE)
        return audio

    def check_text(self) -> None:
        """Raises CorpusError, naming this utterance, if its transcript is empty."""
        if not self.text.strip():
            raise CorpusError(f"utterance {self.id!r}: its transcript is empty")

    def _check_spans(self, duration_ms: float) -> None:
        spans = self.spans_ms
        if spans.shape != (len(self.words), 2):
            raise CorpusError(f"utterance {self.id!r}: {len(self.words)} words, but word times of shape {spans.shape}")
        bad = (spans[:, 0] < 0) | (spans[:, 1] < spans[:, 0]) | (spans[:, 1] > duration_ms + _TOLERANCE_MS)
        bad[1:] |= spans[1:, 0] < spans[:-1, 0]
        if bad.any():
            word = int(np.argmax(bad))
            raise CorpusError(
                f"utterance {self.id!r}: word {word} ({self.words[word]!r}) at {spans[word, 0]}..{spans[word, 1]} ms is out of order "
                f"or outside the {duration_ms:.0f} ms of audio"
            )


class Corpus(Sequence[Utterance]):
    """One split of a prepared corpus: `corpus[i] -> Utterance`, `len(corpus)`; reads from disk at each access."""

    def __init__(self, directory: str | os.PathLike, split: str):
        """Open `split` of the TFDS directory that holds `dataset_info.json` (or of the newest version under `directory`).

        Raises:
            CorpusError: no prepared corpus there, no such split, or features other than ours.
        """
        import tensorflow_datasets as tfds  # a second to import; needs no TensorFlow for what we do

        self.directory, self.split = version_directory(pathlib.Path(directory)), split
        try:
            builder = tfds.builder_from_directory(self.directory)
        except Exception as error:  # TFDS raises what its files and features raise
            raise CorpusError(
                f"{self.directory}: cannot be opened as a TFDS directory ({' '.join(str(error).split())})"
            ) from error
        if split not in builder.info.splits:
            raise CorpusError(
                f"{self.directory} has no split {split!r}; it has {', '.join(sorted(builder.info.splits))}"
            )
        missing = {"id", "text"} - set(builder.info.features)
        if missing:
            raise CorpusError(
                f"{self.directory}: features {sorted(missing)} are missing; found {sorted(builder.info.features)}"
            )
        self.name = builder.info.name
        self.splits = tuple(sorted(builder.info.splits))
        self.has_speech = "audio" in builder.info.features
        self._source = builder.as_data_source(split)

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> Utterance:
        if not -len(self) <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)} in {self.directory}")
        try:
            example = self._source[index % len(self)]
        except Exception as error:  # array_record and protobuf have no common error class
            raise CorpusError(
                f"{self.directory}: record {index} of split {self.split!r} cannot be read ({error})"
            ) from error
        words = example.get("words") or {"word": [], "start_ms": [], "end_ms": []}
        return Utterance(
            id=_text(example["id"]),
            audio=example["audio"] if self.has_speech else None,
            text=_text(example["text"]),
            words=tuple(map(_text, words["word"])),
            spans_ms=np.stack([words["start_ms"], words["end_ms"]], axis=1).astype(np.int32),
            speaker=_text(example.get("speaker", b"")),
        )

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the names and bytes of the split's files: what anything derived from it depends on."""
        digest = hashlib.sha256()
        for path in sorted(self.directory.glob(f"*-{self.split}.*")):
            digest.update(path.name.encode())
            with path.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        return digest.hexdigest()


def open_corpus(name_or_directory: str | os.PathLike, split: str) -> Corpus:
    """Open a split of a bundled corpus by name ("spirit_mini", "spirit_mini_text"), or of a prepared TFDS directory.

    Raises:
        CorpusError: neither a bundled name nor a prepared directory, or no such split.
    """
    bundled = BUNDLED / str(name_or_directory)
    return Corpus(bundled if str(name_or_directory).isidentifier() and bundled.is_dir() else name_or_directory, split)


def version_directory(directory: pathlib.Path) -> pathlib.Path:
    """The directory of a prepared builder: the given one, or its newest version."""
    if (directory / "dataset_info.json").is_file():
        return directory
    found = [path.parent for path in directory.glob("*/dataset_info.json")]
    versions = [path for path in found if all(part.isdigit() for part in path.name.split("."))]
    if not versions:
        names = sorted(path.name for path in BUNDLED.iterdir())
        raise CorpusError(
            f"{directory}: no prepared corpus (dataset_info.json) here; bundled ones are {', '.join(names)}"
        )
    return max(versions, key=lambda path: [int(part) for part in path.name.split(".")])


def _text(value: bytes | str) -> str:
    return value.decode() if isinstance(value, bytes) else str(value)
