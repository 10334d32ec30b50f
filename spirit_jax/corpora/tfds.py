"""Speech that stock TFDS builders prepared (`features.Audio`: librispeech, libritts, ljspeech, vctk, ...), read without TensorFlow.

TFDS itself needs TensorFlow to read `features.Audio`. Records are `tf.train.Example` protos in ArrayRecord or TFRecord
files; the audio of one is its samples, or with `lazy_decode` the bytes of a file.
"""

import bisect
import hashlib
import io
import itertools
import json
import os
import pathlib
import struct
from collections.abc import Sequence
from typing import Any

import numpy as np
import soundfile

from spirit_jax.corpora import CorpusError, Utterance

KEYS = {
    "id": ("id", "utterance_id", "file_name"),
    "text": ("text", "text_normalized", "transcript", "sentence"),
    "speaker": ("speaker", "speaker_id", "client_id"),
}
"""Which features make an utterance: the first that the corpus has. Without an id it is the number of the record."""


class SpeechAlone(Utterance):
    """An utterance that may lack its transcript: speech alone is training data."""

    def check_text(self) -> None:
        """Any transcript will do."""


class PreparedSpeech(Sequence[Utterance]):
    """One split of a TFDS directory with one `features.Audio`; a sequence of utterances, as a `Corpus` is.

    Raises:
        CorpusError: not one audio feature, no sample rate, no such split, or files missing or damaged; names the directory.
    """

    has_speech = True

    def __init__(self, directory: pathlib.Path, split: str):
        self.directory, self.split = directory, split
        info, self._features = _json(directory / "dataset_info.json"), features(directory)
        self.name = info["name"]
        audio = [name for name, feature in self._features.items() if "audio" in feature]
        if len(audio) != 1:
            raise CorpusError(f"{directory}: exactly one audio feature expected, found {', '.join(audio)}")
        self._audio, self._format = audio[0], self._features[audio[0]]["audio"]
        self._lazy = bool(self._format.get("lazyDecode"))
        self._rate = int(self._format.get("sampleRate") or 0)
        if not self._rate and not self._lazy:
            raise CorpusError(f"{directory}: features.json does not say the sample rate of {self._audio!r}")
        splits = {found["name"]: list(map(int, found["shardLengths"])) for found in info["splits"]}
        if split not in splits:
            raise CorpusError(f"{directory} has no split {split!r}; it has {', '.join(sorted(splits))}")
        kind = info.get("fileFormat", "tfrecord")
        if kind not in _READERS:
            raise CorpusError(f"{directory}: files are {kind}; known are {', '.join(_READERS)}")
        shards = len(splits[split])
        self.files = [directory / f"{self.name}-{split}.{kind}-{i:05d}-of-{shards:05d}" for i in range(shards)]
        for file in self.files:
            if not file.is_file():
                raise CorpusError(f"{file}: no such file; the split is not whole")
        self._shards = [_READERS[kind](file) for file in self.files]
        self._ends = list(itertools.accumulate(map(len, self._shards)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Utterance:
        from tensorflow_datasets.proto import tf_example_pb2

        if not 0 <= index < len(self):
            raise IndexError(f"utterance {index} of {len(self)} in {self.directory}")
        shard = bisect.bisect_right(self._ends, index)
        where = index - (self._ends[shard - 1] if shard else 0)
        try:
            found = tf_example_pb2.Example.FromString(self._shards[shard][where]).features.feature
            values = {name: _values(feature) for name, feature in found.items()}
        except Exception as error:  # array_record and protobuf have no common error class
            raise CorpusError(f"{self.files[shard]}: record {where} cannot be read ({error})") from error
        fields = {name: next((_text(values[key]) for key in keys if key in values), "") for name, keys in KEYS.items()}
        fields["id"] = fields["id"] or f"{self.split}-{index:08d}"
        return SpeechAlone(audio=self._file(values.get(self._audio), fields["id"]), **fields)

    def _file(self, values: Any, name: str) -> bytes | None:
        """The audio of a record as the bytes of a file."""
        if values is None or not len(values):
            return None
        if self._lazy:
            return values[0]
        samples, dimensions = np.asarray(values), self._format["shape"].get("dimensions", ["-1"])
        if samples.dtype.kind == "i":
            if np.abs(samples).max() > 32768:
                raise CorpusError(f"utterance {name!r}: samples of more than 16 bits, whose scale is not stored")
            samples = samples.clip(-32768, 32767).astype(np.int16)
        channels = int(dimensions[1]) if len(dimensions) > 1 else 1
        file, kind = io.BytesIO(), "PCM_16" if samples.dtype == np.int16 else "FLOAT"
        soundfile.write(file, samples.reshape(-1, channels), self._rate, format="WAV", subtype=kind)
        return file.getvalue()

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the files' names, sizes and times."""
        digest = hashlib.sha256()
        for file in self.files:
            stat = file.stat()
            digest.update(json.dumps([file.name, stat.st_size, stat.st_mtime_ns]).encode())
        return digest.hexdigest()


def features(directory: pathlib.Path) -> dict[str, dict[str, Any]]:
    """The top-level features of a prepared TFDS directory, as `features.json` describes them."""
    try:
        return _json(directory / "features.json")["featuresDict"]["features"]
    except (KeyError, TypeError) as error:
        raise CorpusError(f"{directory / 'features.json'}: a FeaturesDict expected ({error!r})") from error


def _json(path: pathlib.Path) -> dict[str, Any]:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise CorpusError(f"{path}: cannot be read ({error})") from error


def _values(feature: Any) -> Any:
    kind = feature.WhichOneof("kind")
    return [] if kind is None else getattr(feature, kind).value


def _text(values: Sequence[Any]) -> str:
    if not len(values):
        return ""
    return values[0].decode() if isinstance(values[0], bytes) else str(values[0])


class _ArrayRecord(Sequence[bytes]):
    def __init__(self, path: pathlib.Path):
        from array_record.python import array_record_data_source

        self._source = array_record_data_source.ArrayRecordDataSource(os.fspath(path))

    def __len__(self) -> int:
        return len(self._source)

    def __getitem__(self, index: int) -> bytes:
        return self._source[index]


class _TFRecord(Sequence[bytes]):
    """Random access after one pass over the lengths: length u64, its checksum u32, the record, its checksum u32."""

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


_READERS = {"array_record": _ArrayRecord, "tfrecord": _TFRecord}
