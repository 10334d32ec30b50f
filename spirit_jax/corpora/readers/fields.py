"""Names of the fields of a manifest line, those of other tools among them, and the utterance that a line describes.

NeMo writes `audio_filepath`, SpeechBrain `wav`, Hugging Face `file_name` or `{"audio": {"path": ...}}`, and lhotse cuts
with a `recording` and `supervisions`.
"""

import math
import os
import pathlib
import posixpath
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax.audio import AUDIO_SUFFIXES
from spirit_jax.core.buckets import SCHEME, is_bucket, split
from spirit_jax.core.files import shown
from spirit_jax.corpora.alignment.formats import in_milliseconds
from spirit_jax.corpora.utterance import CorpusError, Utterance

AUDIO = ("audio", "audio_filepath", "audio_path", "wav")
"""Fields whose value is the path of the audio."""
FILES = ("file_name", "path", "file")
"""Fields that hold the path of the audio if they name an audio file; a text corpus has fields of these names too."""
TEXT = ("text", "transcript", "transcription", "sentence")
SPEAKER = ("speaker", "speaker_id", "client_id")
ID = ("id", "utterance_id", "utt_id")

_LHOTSE = ("recording", "supervisions", "start", "duration", "channel", "type")
_REMARKS = ("score", "seconds", "samples", "transcript_by")
"""Fields that `align` adds for people and filters. Reading ignores them, fairseq's `samples`, and the `score` and
`interpolated` of a word."""
_KNOWN = {*AUDIO, *FILES, *TEXT, *SPEAKER, *ID, *_REMARKS, "words", "offset", "duration"}

_SHORTEST_MEAN_MS = 10
"""Word times with fractions and words shorter than this on average are in seconds."""


def has_audio(fields: Any) -> bool:
    """Whether a line describes audio; otherwise it may be a document of text."""
    return isinstance(fields, dict) and (
        any(name in fields for name in (*AUDIO, "recording")) or any(_is_audio_file(fields.get(name)) for name in FILES)
    )


def unused(fields: Mapping[str, Any]) -> set[str]:
    """Fields of a line that are not read."""
    return set(fields) - _KNOWN - (set(_LHOTSE) if "recording" in fields else set())


def utterance(fields: Any, where: str, folder: pathlib.Path | str) -> Utterance:
    """The utterance that a line describes.

    Args:
        fields: the value of the line.
        where: file and line, for messages.
        folder: what paths are relative to; an address for a manifest in a bucket.

    Raises:
        CorpusError: names the file and line; the value is not an object with audio, or a field cannot be used.
    """
    if not isinstance(fields, dict):
        raise CorpusError(f"{where}: needs an object with an 'audio' path, found {shown(fields)}")
    if "recording" in fields:
        fields = _cut(fields, where)
    path = _place(_audio(fields, where), folder)
    offset = _seconds(fields, "offset", where) or 0.0
    duration = _seconds(fields, "duration", where) if "offset" in fields else None
    name = _string(fields, ID, where) or relative_id(path, folder) + (f"@{offset:g}" if "offset" in fields else "")
    return Utterance(
        id=name,
        audio=path,
        offset_s=offset,
        duration_s=duration,
        **spoken(fields, where),
    )


def _place(audio: str, folder: pathlib.Path | str) -> pathlib.Path | str:
    """The path of an audio file, or its address in a bucket."""
    if is_bucket(audio):
        return audio
    if isinstance(folder, pathlib.Path):
        return folder / audio
    if audio.startswith("/"):
        return pathlib.Path(audio)
    bucket, name = split(folder)
    return f"{SCHEME}{bucket}/{posixpath.normpath(posixpath.join(name, audio))}"


def spoken(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Fields of `Utterance` about the speech of a line: text, words with their times, speaker.

    Raises:
        CorpusError: names the file and line; a field cannot be used.
    """
    words, spans_ms = _words(fields.get("words"), where)
    return {
        "text": _string(fields, TEXT, where),
        "words": words,
        "spans_ms": spans_ms,
        "speaker": _string(fields, SPEAKER, where),
        "transcript_required": False,
    }


def relative_id(path: pathlib.Path | str, root: pathlib.Path | str) -> str:
    """The id of a file without one: its path or address relative to `root`, without the suffix."""
    return pathlib.PurePath(os.path.relpath(path, root)).with_suffix("").as_posix()


def string(value: Any, name: str, where: str) -> str:
    """A field that is a string or a number, as a string; "" for none. 0 is "0".

    Raises:
        CorpusError: the value is of another type; names the file and line.
    """
    if value is None or isinstance(value, str):
        return value or ""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    raise CorpusError(f"{where}: {name!r} must be a string, found {shown(value)}")


def _string(fields: Mapping[str, Any], names: Sequence[str], where: str) -> str:
    """The first of several fields that a line has."""
    name = next((name for name in names if fields.get(name) is not None), names[0])
    return string(fields.get(name), name, where)


def _audio(fields: Mapping[str, Any], where: str) -> str:
    names = (*AUDIO, *(name for name in FILES if _is_audio_file(fields.get(name))))
    name = next((name for name in names if fields.get(name) is not None), None)
    value = fields[name] if name else None
    if isinstance(value, dict):
        value = value.get("path")
    if not isinstance(value, str) or not value or "\0" in value:
        found = f"found {name!r}: {shown(fields[name])}" if name else f"found the fields {shown(list(fields))}"
        raise CorpusError(f"{where}: needs an 'audio' path (or {', '.join(AUDIO[1:])}), {found}")
    return value


def _cut(fields: Mapping[str, Any], where: str) -> dict[str, Any]:
    """The fields of a lhotse cut as those of other lines."""
    try:
        (source,) = fields["recording"]["sources"]
        if source["type"] != "file":
            raise ValueError(f"a source of type {source['type']!r}")
        audio = source["source"]
    except (KeyError, TypeError, ValueError) as error:
        raise CorpusError(f"{where}: a lhotse cut with one recording in one file is needed ({error!r})") from error
    return {
        "audio": audio,
        "id": fields.get("id"),
        "offset": fields.get("start", 0.0),
        "duration": fields.get("duration"),
        **supervised(fields, where),
    }


def supervised(cut: Mapping[str, Any], where: str) -> dict[str, Any]:
    """Text, speaker and aligned words of the supervisions of a lhotse cut, as the fields of a manifest line.

    Raises:
        CorpusError: names the file and line; the supervisions are not as lhotse writes them.
    """
    try:
        supervisions = cut.get("supervisions") or []
        text = " ".join(each["text"] for each in supervisions if each.get("text"))
        words = [item for each in supervisions for item in (each.get("alignment") or {}).get("word", ())]
        timed = in_milliseconds([(item[0], float(item[1]), float(item[1]) + float(item[2])) for item in words], where)
        speaker = supervisions[0].get("speaker") if supervisions else None
    except CorpusError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        raise CorpusError(f"{where}: needs supervisions with text, speaker and alignments ({error!r})") from error
    described = zip(timed.words, timed.spans_ms.tolist(), strict=True)
    return {
        "text": text,
        "speaker": speaker,
        "words": [{"word": word, "start_ms": start, "end_ms": end} for word, (start, end) in described],
    }


def _seconds(fields: Mapping[str, Any], name: str, where: str) -> float | None:
    value = fields.get(name)
    if value is None:
        return None
    try:
        seconds = float(value) if not isinstance(value, bool) else math.nan
    except (TypeError, ValueError, OverflowError):
        seconds = math.nan
    if not 0 <= seconds < 1e9:
        raise CorpusError(f"{where}: {name!r} must be seconds, found {shown(value)}")
    return seconds


def _words(value: Any, where: str) -> tuple[tuple[str, ...], np.ndarray]:
    """Words and their times in milliseconds, int32 [W, 2]."""
    if not isinstance(value, list | None):
        raise CorpusError(f"{where}: words must be a list of {{word, start_ms, end_ms}}, found {shown(value)}")
    names, times = [], []
    for number, word in enumerate(value or []):
        if not isinstance(word, dict) or "word" not in word:
            raise CorpusError(f"{where}: words must be a list of {{word, start_ms, end_ms}}, found {shown(word)}")
        names.append(string(word["word"], "word", where))
        for key in ("start_ms", "end_ms"):
            time = word.get(key)
            if not isinstance(time, int | float) or isinstance(time, bool) or not abs(time) < 1 << 31:
                found = shown(time) if key in word else "none"
                raise CorpusError(
                    f"{where}: word {number} ({names[-1]!r}) needs a {key} in milliseconds, found {found}"
                )
            times.append(time)
    spans = np.array(times, np.float64).reshape(-1, 2)
    if (spans % 1).any() and (spans[:, 1] - spans[:, 0]).mean() < _SHORTEST_MEAN_MS:
        raise CorpusError(
            f"{where}: word times such as {times[1]} seem to be seconds; start_ms and end_ms are milliseconds"
        )
    return tuple(names), np.rint(spans).astype(np.int32)


def _is_audio_file(value: Any) -> bool:
    return isinstance(value, str) and value.lower().endswith(AUDIO_SUFFIXES)
