"""Speech corpora in the directory layouts that they are published in: `--input librispeech:DIR`.

Each row of `NAMED_CORPORA` is one small function that yields the clips of a split. A function walks the audio files
first and looks up what transcripts and lists say about them. So a name in a list is compared with names on disk, and is
never a path that is opened.
"""

import dataclasses
import itertools
import os
import pathlib
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TypeVar

from spirit_jax.audio import AUDIO_SUFFIXES
from spirit_jax.core.files import parse_json, read_json, read_text, shown
from spirit_jax.core.paths import local_path, walk_files
from spirit_jax.corpora.alignment.formats import AlignedWords, in_milliseconds, read_alignment, with_words
from spirit_jax.corpora.readers import SPLITS, official_names, tar_archives
from spirit_jax.corpora.readers.audio_files import AudioFiles
from spirit_jax.corpora.utterance import CorpusError, Utterance

_Row = TypeVar("_Row")

Clips = Iterator[Utterance | CorpusError]
"""The clips of a split, and why others cannot be used."""


@dataclasses.dataclass(frozen=True)
class NamedCorpus:
    """The layout of a published corpus."""

    layout: str
    """Where its files are, for messages and the documentation."""
    read: Callable[[pathlib.Path, str], Clips]
    """The clips of a split below a directory."""
    splits: Callable[[pathlib.Path], tuple[str, ...]] = lambda root: ()
    """The official splits that are there, out of train, validation and test; () for a corpus without splits."""


def is_named(source: str) -> bool:
    """Whether an input is a name with a directory, such as `librispeech:/data/LibriSpeech`; neither a path nor an
    address."""
    return re.match(r"[a-z][a-z0-9_]+:(?!//)", source) is not None and not os.path.lexists(source)


def open_named(source: str, split: str) -> AudioFiles | tar_archives.TarCorpus:
    """Open a split of a corpus in its published layout.

    Args:
        source: `NAME:DIR`.
        split: train, validation or test, or an official name such as `train-clean-100`; corpora without splits use it
            as the name of the records.

    Raises:
        CorpusError: an unknown name, or the directory does not exist or holds no clip in this layout; names both.
        PathError: the directory is not a path, or is an address such as `s3://`.
        BucketError, BucketJobError: it is in a bucket that cannot be read.
    """
    name, _, directory = source.partition(":")
    if name not in NAMED_CORPORA and name not in ARCHIVES:
        known = ", ".join((*NAMED_CORPORA, *ARCHIVES))
        raise CorpusError(f"{source}: no such file, and {name!r} is not the name of a corpus: {known}")
    root = pathlib.Path(local_path(directory, "--input"))
    if not root.is_dir():
        raise CorpusError(f"{source}: {root} is not a directory")
    if name in ARCHIVES:
        return ARCHIVES[name](root, split)
    corpus = NAMED_CORPORA[name]
    clips, splits = list(corpus.read(root, split)), corpus.splits(root)
    if not clips:
        found = f"; splits here: {', '.join(splits)}" if splits else ""
        raise CorpusError(f"{root}: no clip of split {split!r} in the layout of {name}: {corpus.layout}{found}")
    opened = AudioFiles(name, root, split, clips)
    opened.splits = splits
    return opened


def _librispeech(root: pathlib.Path, split: str) -> Clips:
    """Transcripts of a chapter are in one file, and so are word times where someone put LibriSpeech alignments."""
    for folder, paths in itertools.groupby(_audio_in_splits(root, split), lambda path: path.parent):
        chapter = f"{folder.parent.name}-{folder.name}"
        try:
            texts = _lines_by_id(folder / f"{chapter}.trans.txt")
            alignment = folder / f"{chapter}.alignment.txt"
            words = (read_alignment(alignment) or {}) if alignment.is_file() else {}
        except CorpusError as error:
            yield error
            continue
        for path in paths:
            yield with_words(_clip(path, texts.get(path.stem, ""), folder.parent.name), words.get(path.stem))


def _libritts(root: pathlib.Path, split: str) -> Clips:
    for path in _audio_in_splits(root, split):
        text = path.with_name(f"{path.stem}.normalized.txt")
        try:
            yield _clip(path, read_text(text, CorpusError) if text.is_file() else "", path.parent.parent.name)
        except CorpusError as error:
            yield error


def _librilight(root: pathlib.Path, split: str) -> Clips:
    """Whole chapters without transcripts, in SIZE/SPEAKER/BOOK."""
    for path in _audio(root):
        yield _clip(path, "", path.parent.parent.name, path.relative_to(root).with_suffix("").as_posix())


def _mls(root: pathlib.Path, split: str) -> Clips:
    for folder in _split_folders(root, split):
        texts = _lines_by_id(folder / "transcripts.txt", "\t")
        for path in _audio(folder):
            yield _clip(path, texts.get(path.stem, ""), path.stem.split("_")[0])


def _voxpopuli(root: pathlib.Path, split: str) -> Clips:
    for name in official_names(split):
        for table in _find(root, f"asr_{name}.tsv"):
            yield from _listed(table, table.parent, _rows(table), _voxpopuli_row)


def _voxpopuli_row(row: Mapping[str, str]) -> tuple[str, str, str]:
    return row["id"], row.get("raw_text") or row["normalized_text"], row["speaker_id"]


def _expresso(root: pathlib.Path, split: str) -> Clips:
    """Read speech; the improvised dialogues have two speakers in two channels and no transcripts."""
    for table in _find(root, "read_transcriptions.txt"):
        chosen, texts = _expresso_split(table.parent, split), _lines_by_id(table, "\t")
        for path in _audio(table.parent):
            if "read" in path.relative_to(table.parent).parts and (chosen is None or path.stem in chosen):
                yield _clip(path, texts.get(path.stem, ""), path.stem.split("_")[0])


def _expresso_split(root: pathlib.Path, split: str) -> set[str] | None:
    """Names of the clips of a split; None without lists of splits."""
    if not (root / "splits").is_dir():
        return None
    lists = [root / "splits" / f"{name}.txt" for name in official_names(split)]
    lines = (line.split() for path in lists if path.is_file() for line in read_text(path, CorpusError).splitlines())
    return {line[0] for line in lines if line}


def _emovdb(root: pathlib.Path, split: str) -> Clips:
    """Sentences of CMU Arctic; the last digits of a file name are the number of its sentence."""
    prompts: dict[str, str] = {}
    for table in _find(root, "cmuarctic.data"):
        found = re.findall(r'\(\s*arctic_a(\d+)\s+"(.*)"\s*\)', read_text(table, CorpusError))
        prompts |= {number.lstrip("0"): text for number, text in found}
    for path in _audio(root):
        number = re.search(r"(\d+)$", path.stem)
        parts = path.relative_to(root).with_suffix("").parts
        text = prompts.get(number[1].lstrip("0"), "") if number else ""
        yield _clip(path, text, parts[0].split("_")[0].lower() if len(parts) > 1 else "", "/".join(parts))


def _ljspeech(root: pathlib.Path, split: str) -> Clips:
    for table in _find(root, "metadata.csv"):
        rows = (line.split("|") for line in read_text(table, CorpusError).splitlines() if "|" in line)
        yield from _listed(table, table.parent, rows, lambda row: (row[0], row[1], "lj"))


def _vctk(root: pathlib.Path, split: str) -> Clips:
    """The first microphone of version 0.92, or the only one of earlier versions."""
    folder = next((path for name in ("wav48_silence_trimmed", "wav48") for path in _find(root, name)), None)
    for path in _audio(folder) if folder else ():
        if path.stem.endswith("_mic2"):
            continue
        name, speaker = path.stem.removesuffix("_mic1"), path.parent.name
        text = path.parents[2] / "txt" / speaker / f"{name}.txt"
        try:
            yield _clip(path, read_text(text, CorpusError) if text.is_file() else "", speaker, name)
        except CorpusError as error:
            yield error


def _common_voice(root: pathlib.Path, split: str) -> Clips:
    for name in official_names(split):
        for table in _find(root, f"{name}.tsv"):
            yield from _listed(table, table.parent / "clips", _rows(table), _common_voice_row)


def _common_voice_row(row: Mapping[str, str]) -> tuple[str, str, str]:
    return pathlib.PurePath(row["path"]).stem, row["sentence"], row["client_id"]


def _peoples_speech(root: pathlib.Path, split: str) -> Clips:
    """Lists such as `train/clean.json` with an object a line, and the audio in a folder of the same name."""
    for folder in _split_folders(root, split):
        for table in sorted(folder.glob("*.json")):
            audio_folder = table.with_suffix("")
            known = {path.relative_to(audio_folder).as_posix(): path for path in _audio(audio_folder)}
            for number, line in enumerate(read_text(table, CorpusError).splitlines(), 1):
                where = f"{table}:{number}"
                try:
                    item = parse_json(line, where, CorpusError)
                    data = item["training_data"]
                    rows = list(zip(data["name"], data["label"], strict=True))
                except CorpusError as error:
                    yield error
                    continue
                except (KeyError, TypeError, ValueError) as error:
                    yield CorpusError(f"{where}: needs training_data with as many names as labels ({error!r})")
                    continue
                for name, label in rows:
                    path = known.get(name) if isinstance(name, str) else None
                    if path is None or not isinstance(label, str):
                        yield CorpusError(f"{where}: no audio file {name!r} in {audio_folder}")
                    else:
                        yield _clip(path, label, str(item.get("identifier", "")), f"{table.stem}/{name}")


def _spotify(root: pathlib.Path, split: str) -> Clips:
    """Episodes in a folder a show, and transcripts with word times as Google's recognizer writes them."""
    transcripts = {path.stem: path for path in walk_files(root) if path.suffix == ".json"}
    for path in _audio(root):
        try:
            table = transcripts.get(path.stem)
            words = _recognized_words(table) if table else None
            yield with_words(_clip(path, "", path.parent.name), words)
        except CorpusError as error:
            yield error


def _recognized_words(path: pathlib.Path) -> AlignedWords:
    found = read_json(path, CorpusError)
    try:
        # the last result repeats all words with the number of the speaker, without a transcript
        heard = [best for each in found["results"] for best in each["alternatives"][:1] if "transcript" in best]
        return in_milliseconds(
            [
                (word["word"], float(word["startTime"].rstrip("s")), float(word["endTime"].rstrip("s")))
                for best in heard
                for word in best["words"]
            ],
            str(path),
        )
    except CorpusError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CorpusError(f"{path}: needs results with alternatives and words with times ({error!r})") from error


def _clip(path: pathlib.Path, text: str, speaker: str, name: str | None = None) -> Utterance:
    return Utterance(name or path.stem, path, text.strip(), speaker=speaker, transcript_required=False)


def _listed(
    table: pathlib.Path, folder: pathlib.Path, rows: Iterable[_Row], read: Callable[[_Row], tuple[str, str, str]]
) -> Clips:
    """The clips that a list names.

    Args:
        table: the list, for messages.
        folder: where the audio files are, or above them.
        rows: the rows of the list.
        read: from a row to the name of its audio file without suffix, its text and its speaker.
    """
    known = {path.stem: path for path in _audio(folder)}
    for row in rows:
        try:
            name, text, speaker = read(row)
        except (KeyError, IndexError) as error:
            yield CorpusError(f"{table}: a row lacks a column ({error!r}): {shown(row)}")
            continue
        if name in known:
            yield _clip(known[name], text, speaker)
        else:
            yield CorpusError(f"{table}: no audio file named {name!r} in {folder}")


def _rows(table: pathlib.Path) -> Iterator[Mapping[str, str]]:
    """Rows of a table with tabs, without quoting; the first line names the columns."""
    lines = read_text(table, CorpusError).replace("\r\n", "\n").split("\n")
    header, *rows = [line.split("\t") for line in lines if line] or [[]]
    return (dict(zip(header, row, strict=False)) for row in rows)


def _audio(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    return (path for path in walk_files(folder) if path.suffix.lower() in AUDIO_SUFFIXES)


def _split_folders(root: pathlib.Path, split: str) -> list[pathlib.Path]:
    """Folders of a split, such as train-clean-100 for train: in the root, in a folder in it, or the root itself."""
    for base in (root, *_folders(root)):
        found = [folder for folder in _folders(base) if _in_split(folder.name, split)]
        if found:
            return found
    return [root] if _in_split(root.name, split) else []


def _in_split(name: str, split: str) -> bool:
    return any(name == each or name.startswith(f"{each}-") for each in official_names(split))


def _folders(root: pathlib.Path) -> list[pathlib.Path]:
    return sorted(path for path in root.iterdir() if path.is_dir())


def _audio_in_splits(root: pathlib.Path, split: str) -> Iterator[pathlib.Path]:
    return (path for folder in _split_folders(root, split) for path in _audio(folder))


def _splits_by_folder(root: pathlib.Path) -> tuple[str, ...]:
    return tuple(split for split in SPLITS if _split_folders(root, split))


def _splits_by_table(pattern: str) -> Callable[[pathlib.Path], tuple[str, ...]]:
    """The splits that have a table; `{}` in its name is the official name of the split."""
    return lambda root: tuple(
        split for split in SPLITS if any(_find(root, pattern.format(name)) for name in official_names(split))
    )


def _find(root: pathlib.Path, name: str) -> list[pathlib.Path]:
    """Files or folders of a name in the root or in folders at most two levels below it; the highest level wins."""
    for pattern in ("", "*/", "*/*/"):
        found = sorted(root.glob(f"{pattern}{name}"))
        if found:
            return found
    return []


def _lines_by_id(path: pathlib.Path, separator: str = " ") -> dict[str, str]:
    """Lines `ID TEXT` of a file; none if there is no such file."""
    if not path.is_file():
        return {}
    rows = (line.split(separator, 1) for line in read_text(path, CorpusError).splitlines() if separator in line)
    return {name.strip(): text.strip() for name, text in rows}


NAMED_CORPORA: dict[str, NamedCorpus] = {
    "librispeech": NamedCorpus(
        "SUBSET/SPEAKER/CHAPTER/ID.flac with SPEAKER-CHAPTER.trans.txt", _librispeech, _splits_by_folder
    ),
    "libritts": NamedCorpus("SUBSET/SPEAKER/CHAPTER/ID.wav with ID.normalized.txt", _libritts, _splits_by_folder),
    "librilight": NamedCorpus("SIZE/SPEAKER/BOOK/NAME.flac", _librilight),
    "mls": NamedCorpus("SPLIT/audio/SPEAKER/BOOK/ID.flac with SPLIT/transcripts.txt", _mls, _splits_by_folder),
    "voxpopuli": NamedCorpus(
        "transcribed_data/LANGUAGE/YEAR/ID.ogg with asr_SPLIT.tsv", _voxpopuli, _splits_by_table("asr_{}.tsv")
    ),
    "expresso": NamedCorpus(
        "audio_48khz/read/SPEAKER/STYLE/... with read_transcriptions.txt and splits/SPLIT.txt",
        _expresso,
        _splits_by_table("splits/{}.txt"),
    ),
    "emovdb": NamedCorpus("SPEAKER_EMOTION/EMOTION_FROM-TO_NUMBER.wav with cmuarctic.data", _emovdb),
    "ljspeech": NamedCorpus("wavs/ID.wav with metadata.csv", _ljspeech),
    "vctk": NamedCorpus("wav48_silence_trimmed/SPEAKER/ID_mic1.flac with txt/SPEAKER/ID.txt", _vctk),
    "common_voice": NamedCorpus("clips/NAME.mp3 with SPLIT.tsv", _common_voice, _splits_by_table("{}.tsv")),
    "peoples_speech": NamedCorpus("SPLIT/SUBSET/... with SPLIT/SUBSET.json", _peoples_speech, _splits_by_folder),
    "spotify": NamedCorpus(
        "podcasts-audio/.../SHOW/EPISODE.ogg with podcasts-transcripts/.../SHOW/EPISODE.json", _spotify
    ),
}
"""Published corpora by the name that `--input NAME:DIR` takes."""

ARCHIVES: dict[str, Callable[[pathlib.Path, str], tar_archives.TarCorpus]] = {
    "shar": tar_archives.open_shar,
    "webdataset": tar_archives.open_webdataset,
}
"""Corpora in tar archives, by the same names."""
