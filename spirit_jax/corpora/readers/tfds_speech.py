"""Speech that stock TFDS builders prepared (librispeech, libritts, ljspeech, vctk, ...), read without TensorFlow.

Such datasets have one `features.Audio`. TFDS itself needs TensorFlow to read it. Records are `tf.train.Example`
protocol buffers in ArrayRecord or TFRecord files. They hold the samples of the audio, or with `lazy_decode` the content
of an audio file.
"""

import bisect
import contextlib
import io
import itertools
import os
import pathlib
import struct
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import soundfile

from spirit_jax.core.files import plain_name, read_json
from spirit_jax.corpora.input_path import InputPath
from spirit_jax.corpora.readers import position, stat_fingerprint
from spirit_jax.corpora.readers.prepared import version_directory
from spirit_jax.corpora.utterance import CorpusError, Utterance

FEATURES = {
    "id": ("id", "utterance_id", "file_name"),
    "text": ("text", "text_normalized", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
"""Names that builders give to the features of an utterance; the first that a corpus has is used."""


class TFDSSpeech(Sequence[Utterance]):
    """One split of a TFDS directory with one `features.Audio`. The id defaults to the number of the record.

    Attributes:
        name: of the dataset.
        split: the opened split.
        splits: names of all its splits.
        location: directory of the files.
        files: the split's files.
        has_speech: True.
    """

    has_speech = True

    def __init__(self, directory: pathlib.Path, split: str):
        """Open the files of a split.

        Raises:
            CorpusError: names the directory; it has no such split, not exactly one audio feature or no sample rate, or
                files are missing or damaged.
        """
        self.location, self.split = directory, split
        features = top_level_features(directory)
        audio = [name for name, feature in features.items() if "audio" in feature]
        if len(audio) != 1:
            raise CorpusError(f"{directory}: exactly one audio feature expected, found {', '.join(audio)}")
        self._audio = audio[0]
        with _as_tfds_writes_it(directory / "features.json"):
            content = features[self._audio]["audio"]
            dimensions = content["shape"].get("dimensions", ["-1"])
            self._holds_files, self._rate = bool(content.get("lazyDecode")), int(content.get("sampleRate") or 0)
            self._channels = int(dimensions[1]) if len(dimensions) > 1 else 1
            if self._rate < 0 or self._channels < 1:
                raise ValueError(f"sample rate {self._rate}, {self._channels} channels")
        if not self._rate and not self._holds_files:
            raise CorpusError(f"{directory}: features.json does not say the sample rate of {self._audio!r}")
        path = directory / "dataset_info.json"
        info = read_json(path, CorpusError)
        with _as_tfds_writes_it(path):
            self.name = plain_name(info["name"], path, CorpusError)
            splits = {plain_name(one["name"], path, CorpusError): len(one["shardLengths"]) for one in info["splits"]}
            file_format = info.get("fileFormat", "tfrecord")
            known = file_format in _RECORD_FILES
        self.splits = tuple(sorted(splits))
        if split not in splits:
            raise CorpusError(f"{directory} has no split {split!r}; it has {', '.join(self.splits)}")
        if not known:
            raise CorpusError(f"{directory}: files are {file_format}; known are {', '.join(_RECORD_FILES)}")
        shards = splits[split]
        if not shards:
            raise CorpusError(f"{directory}: split {split!r} has no files")
        self.files = [directory / f"{self.name}-{split}.{file_format}-{i:05d}-of-{shards:05d}" for i in range(shards)]
        for file in self.files:
            if not file.is_file():
                raise CorpusError(f"{file}: no such file; the split is incomplete")
        self._shards = [_open_file(file_format, file) for file in self.files]
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Utterance:
        from tensorflow_datasets.proto import tf_example_pb2

        index = position(index, len(self), self.location)
        shard = bisect.bisect_right(self._ends, index)
        row = index - (self._ends[shard - 1] if shard else 0)
        try:
            record = self._shards[shard][row]
            # protobuf makes the class when the module is imported
            example = tf_example_pb2.Example.FromString(record)  # pyright: ignore[reportAttributeAccessIssue]
            values = {name: _values(feature) for name, feature in example.features.feature.items()}
        except Exception as error:  # array_record and protobuf have no common error class
            raise CorpusError(f"{self.files[shard]}: record {row} cannot be read ({error})") from error
        name = _first_text(values, FEATURES["id"]) or f"{self.split}-{index:08d}"
        return Utterance(
            id=name,
            audio=self._audio_file(values.get(self._audio), name),
            text=_first_text(values, FEATURES["text"]),
            speaker=_first_text(values, FEATURES["speaker"]),
            transcript_required=False,
        )

    def _audio_file(self, values: Any, name: str) -> bytes | None:
        """The audio of a record as the content of a file."""
        if values is None or not len(values):
            return None
        if self._holds_files:
            return values[0]
        samples = np.asarray(values)
        if samples.dtype.kind == "i":
            if np.abs(samples).max() > 32768:
                raise CorpusError(f"utterance {name!r}: samples of more than 16 bits, whose scale is not stored")
            samples = samples.clip(-32768, 32767).astype(np.int16)
        file, subtype = io.BytesIO(), "PCM_16" if samples.dtype == np.int16 else "FLOAT"
        try:
            frames = samples.reshape(-1, self._channels)
            soundfile.write(file, frames, self._rate, format="WAV", subtype=subtype)
        except (ValueError, OverflowError, soundfile.LibsndfileError) as error:
            raise CorpusError(
                f"utterance {name!r}: {samples.size} samples at {self._rate} Hz in {self._channels} channels ({error})"
            ) from error
        return file.getvalue()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the files' names, sizes and times."""
        return stat_fingerprint(self.files)


def is_tfds_speech(source: InputPath) -> bool:
    """Whether the input is a prepared TFDS directory with a `features.Audio`."""
    return source.holds_dataset and any(
        "audio" in feature for feature in top_level_features(version_directory(source.path)).values()
    )


def open_tfds_speech(source: InputPath, split: str) -> TFDSSpeech:
    """Open a split of a prepared TFDS directory, or of the newest version in it."""
    return TFDSSpeech(version_directory(source.path), split)


def top_level_features(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The features of a prepared TFDS directory, as `features.json` describes them.

    Raises:
        CorpusError: the file is missing or describes something else; names it.
    """
    path = directory / "features.json"
    content = read_json(path, CorpusError)
    with _as_tfds_writes_it(path):
        features = content["featuresDict"]["features"]
        if not all(isinstance(feature, dict) for feature in features.values()):
            raise TypeError("a feature that is no object")
        return features


@contextlib.contextmanager
def _as_tfds_writes_it(path: pathlib.Path) -> Iterator[None]:
    """Name the file of an entry that is missing or of another type."""
    try:
        yield
    except CorpusError:
        raise
    except (LookupError, TypeError, ValueError, AttributeError, OverflowError) as error:
        reason = " ".join(repr(error).split())[:100]
        raise CorpusError(f"{path}: an entry is not as TFDS writes it ({reason})") from error


def _open_file(file_format: str, path: pathlib.Path) -> Sequence[bytes]:
    """Open a file of records; array_record has no error class of its own."""
    try:
        return _RECORD_FILES[file_format](path)
    except CorpusError:
        raise
    except Exception as error:
        raise CorpusError(f"{path}: cannot be opened ({' '.join(str(error).split())[:200]})") from error


def _values(feature: Any) -> Any:
    """The list that a feature of a `tf.train.Example` holds."""
    kind = feature.WhichOneof("kind")
    return [] if kind is None else getattr(feature, kind).value


def _first_text(values: dict[str, Any], names: Sequence[str]) -> str:
    """The first of several features that a record has, as text; "" if it has none."""
    found: Sequence[Any] = next((values[name] for name in names if name in values), [])
    if not len(found):
        return ""
    return found[0].decode() if isinstance(found[0], bytes) else str(found[0])


class _ArrayRecordFile(Sequence[bytes]):
    """Records of an ArrayRecord file."""

    def __init__(self, path: pathlib.Path):
        from array_record.python import array_record_data_source

        self._source = array_record_data_source.ArrayRecordDataSource(os.fspath(path))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        return self._source[index]


class _TFRecordFile(Sequence[bytes]):
    """Records of a TFRecord file, with random access after one pass over their lengths.

    A record is its length (uint64), a checksum (uint32), its content and another checksum (uint32).
    """

    def __init__(self, path: pathlib.Path):
        self._path, self._places = path, []
        size = path.stat().st_size
        with path.open("rb") as file:
            at = 0
            while at < size:
                header = file.read(12)
                length = struct.unpack("<Q", header[:8])[0] if len(header) == 12 else size
                if at + length + 16 > size:
                    raise CorpusError(f"{path}: ends within record {len(self._places)}")
                self._places.append((at + 12, length))
                at = file.seek(at + length + 16)

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, index: int) -> bytes:
        at, length = self._places[index]
        with self._path.open("rb") as file:
            file.seek(at)
            return file.read(length)


_RECORD_FILES: dict[str, type[_ArrayRecordFile] | type[_TFRecordFile]] = {
    "array_record": _ArrayRecordFile,
    "tfrecord": _TFRecordFile,
}
"""Readers of the file formats that TFDS writes, by their name in `dataset_info.json`."""
