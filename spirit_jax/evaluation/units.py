"""The units of a benchmark's clips: each clip is encoded once, and kept on disk for other tasks and for a next run."""

import contextlib
import json
import pathlib
from collections.abc import Iterable, Sequence

import numpy as np
from jaxtyping import Float

from spirit_jax.audio import AudioError, load_audio
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.constants import MINIMUM_SAMPLES, SAMPLE_RATE
from spirit_jax.core.files import FileFormatError, read_text
from spirit_jax.evaluation.items import BenchmarkError, Clip
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

_BATCH = 64  # clips in memory at once


class UnitCache:
    """Clips to units. A clip that cannot be encoded gives the reason instead.

    Units are kept in a JSONL file; those of another speech tokenizer, and those of files that have changed, are
    ignored.
    """

    def __init__(self, tokenizer: SpeechTokenizer | None, vocabulary: Vocabulary, path: pathlib.Path | None = None):
        """
        Args:
            tokenizer: encodes clips; None gives a reason for every clip.
            path: where units are kept; None keeps them in memory.
        """
        self._path = path
        self._units: dict[str, SpeechUnits] = {}
        self._reason = "this checkpoint has no speech_tokenizer/ to hear audio with"
        self._tokenizer, self._name = None, ""
        if tokenizer is not None:
            try:
                self._name = f"{tokenizer.fingerprint} {vocabulary.variant}"
                self._tokenizer = tokenizer
            except CheckpointError as error:  # it has a vocoder alone
                self._reason = str(error)
        if path is not None and path.exists():
            with contextlib.suppress(FileFormatError):
                self._restore(read_text(path))

    def _restore(self, text: str) -> None:
        for line in text.split("\n"):
            with contextlib.suppress(ValueError, TypeError, KeyError):
                name, key, hubert, *others = json.loads(line)
                if name == self._name:
                    pitch, style = (None if stream is None else np.asarray(stream, np.int32) for stream in others)
                    self._units[key] = SpeechUnits(np.asarray(hubert, np.int32), pitch, style)

    def encode(self, clips: Iterable[Clip]) -> dict[Clip, SpeechUnits | str]:
        """The units of each clip at their frame rates, or why there are none."""
        result: dict[Clip, SpeechUnits | str] = {}
        missing: list[tuple[Clip, str]] = []
        for clip in dict.fromkeys(clips):
            if self._tokenizer is None:
                result[clip] = self._reason
                continue
            try:
                key = _key(clip)
            except OSError as error:
                result[clip] = f"{error.filename}: {error.strerror}"
                continue
            if key in self._units:
                result[clip] = self._units[key]
            else:
                missing.append((clip, key))
        for first in range(0, len(missing), _BATCH):
            self._encode_batch(missing[first : first + _BATCH], result)
        return result

    def _encode_batch(self, batch: Sequence[tuple[Clip, str]], result: dict[Clip, SpeechUnits | str]) -> None:
        """Encode clips, and put their units or reasons into `result`."""
        assert self._tokenizer is not None
        audios: dict[Clip, Float[np.ndarray, " R"]] = {}
        for clip, _ in batch:
            try:
                audios[clip] = load_clip(clip)
            except AudioError as error:
                result[clip] = str(error)
        try:
            found: list[SpeechUnits | str] = list(self._tokenizer.encode_batch(list(audios.values())))
        except AudioError:  # one clip cannot be used: find it
            found = [self._encode_one(audio) for audio in audios.values()]
        result |= dict(zip(audios, found, strict=True))
        lines = []
        for clip, key in batch:
            units = result[clip]
            if isinstance(units, SpeechUnits):
                self._units[key] = units
                streams = [None if stream is None else stream.tolist() for stream in units.streams]
                lines.append(json.dumps([self._name, key, *streams]) + "\n")
        if self._path is not None and lines:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            with self._path.open("a", encoding="utf-8") as file:
                file.writelines(lines)

    def _encode_one(self, audio: Float[np.ndarray, " R"]) -> SpeechUnits | str:
        assert self._tokenizer is not None
        try:
            return self._tokenizer.encode(audio)
        except AudioError as error:
            return str(error)


def load_clip(clip: Clip) -> Float[np.ndarray, " R"]:
    """The audio of a clip, float32 [R] at 16 kHz.

    Raises:
        AudioError: a file cannot be read, or the clip is shorter than 80 ms; names it.
    """
    audio = np.concatenate([load_audio(path) for path in clip.files])
    if audio.size < MINIMUM_SAMPLES:
        raise AudioError(
            f"{clip}: {audio.size * 1000 // SAMPLE_RATE} ms of audio are too short for units: at least 80 ms are needed"
        )
    return audio


def _key(clip: Clip) -> str:
    """The absolute paths, sizes and times of a clip's files."""
    if not clip.files:
        raise BenchmarkError("a clip has no files")
    parts = []
    for path in clip.files:
        status = path.stat()
        parts.append(f"{path.resolve()}:{status.st_size}:{status.st_mtime_ns}")
    return "|".join(parts)
