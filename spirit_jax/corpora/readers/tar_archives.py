"""Speech in tar archives, read in place: WebDataset shards and lhotse Shar.

Names inside an archive are keys and ids. Nothing is unpacked, so they never become paths; links and devices in an
archive are passed over.
"""

import collections
import dataclasses
import pathlib
import tarfile
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from spirit_jax.audio import AUDIO_SUFFIXES
from spirit_jax.core.files import decode_text, open_regular, parse_json, read_bytes
from spirit_jax.corpora.readers import SPLITS, fields, official_names, position, stat_fingerprint
from spirit_jax.corpora.readers.manifest import expand
from spirit_jax.corpora.utterance import CorpusError, Utterance


@dataclasses.dataclass(frozen=True)
class Place:
    """Where the content of a member lies."""

    archive: pathlib.Path
    """The tar file."""
    offset: int
    """Bytes before it."""
    size: int
    """Bytes of it."""

    def read(self) -> bytes:
        """The content.

        Raises:
            CorpusError: the archive cannot be read or ends within the member; names it.
        """
        with open_regular(self.archive, CorpusError) as file:
            file.seek(self.offset)
            content = file.read(self.size)
        if len(content) < self.size:
            raise CorpusError(f"{self.archive}: ends within a member of {self.size} bytes at byte {self.offset}")
        return content


@dataclasses.dataclass(frozen=True)
class ArchivedClip:
    """One clip of an archive."""

    name: str
    """The id of the utterance."""
    where: str
    """Archive and key, for messages."""
    audio: Place
    """The audio file."""
    text: Place | None = None
    """A text file with the transcript."""
    description: Place | Mapping[str, Any] | None = None
    """A JSON object with the transcript, the speaker and the words, or such an object that was read before."""


class TarCorpus(Sequence[Utterance]):
    """The clips of tar archives, in the order of the archives; the members are those of `inputs.Input`.

    The headers are read once. Audio and text are read when they are needed.
    """

    has_speech = True

    def __init__(
        self,
        name: str,
        location: pathlib.Path,
        split: str,
        clips: Sequence[ArchivedClip | CorpusError],
        files: Sequence[pathlib.Path],
        splits: tuple[str, ...] = (),
    ):
        """
        Args:
            name: of the corpus.
            location: directory of the archives.
            split: name of the split.
            clips: the clips, and why others cannot be used.
            files: what the fingerprint depends on.
            splits: names of all splits, () for none.

        Raises:
            CorpusError: there is no clip.
        """
        self.name, self.location, self.split, self.splits = name, location, split, splits
        usable = [clip for clip in clips if isinstance(clip, ArchivedClip)]
        if not usable:
            reasons = [str(clip) for clip in clips if isinstance(clip, CorpusError)]
            raise CorpusError(reasons[0] if reasons else f"{location}: no audio in the archives of split {split!r}")
        counts = collections.Counter(clip.name for clip in usable)
        if max(counts.values()) > 1:  # keys are unique within an archive
            usable = [dataclasses.replace(clip, name=f"{clip.audio.archive.stem}/{clip.name}") for clip in usable]
        self._items = [*usable, *(clip for clip in clips if isinstance(clip, CorpusError))]
        self._files = files

    def __len__(self) -> int:
        return len(self._items)

    def __getitem__(self, index: int) -> Utterance:
        """One utterance with the content of its audio file.

        Raises:
            CorpusError: it cannot be read, or its description cannot be used; names archive and key.
        """
        clip = self._items[position(index, len(self), self.location)]
        if isinstance(clip, CorpusError):
            raise CorpusError(str(clip))
        found = clip.description or {}
        if isinstance(found, Place):
            found = parse_json(decode_text(found.read(), clip.where, CorpusError), clip.where, CorpusError)
        if not isinstance(found, Mapping):
            raise CorpusError(f"{clip.where}: its .json must be an object")
        values = fields.spoken(found, clip.where)
        if clip.text is not None:
            values["text"] = decode_text(clip.text.read(), clip.where, CorpusError).strip()
        return Utterance(id=clip.name, audio=clip.audio.read(), **values)

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the files' names, sizes and times."""
        return stat_fingerprint(self._files)


def open_webdataset(root: pathlib.Path, split: str) -> TarCorpus:
    """Open tar archives whose members `KEY.flac`, `KEY.json` and `KEY.txt` describe a clip.

    Where names of archives begin with the name of a split, those of the split are read, otherwise all.

    Raises:
        CorpusError: there is no archive, or no audio in the archives; names the directory.
    """
    archives = sorted(root.rglob("*.tar"))
    if not archives:
        raise CorpusError(f"{root}: no .tar archive here")
    splits = tuple(each for each in SPLITS if any(_belongs(path, each) for path in archives))
    chosen = [path for path in archives if _belongs(path, split)] if splits else archives
    clips: list[ArchivedClip | CorpusError] = []
    for archive in chosen:
        try:
            groups: dict[str, dict[str, Place]] = {}
            for member, place in _members(archive):
                key, suffix = _key_and_suffix(member)
                groups.setdefault(key, {})[suffix] = place
        except CorpusError as error:
            clips.append(error)
            continue
        for key, group in groups.items():
            audio = next((group[suffix] for suffix in group if f".{suffix.split('.')[-1]}" in AUDIO_SUFFIXES), None)
            if audio is not None:
                clips.append(ArchivedClip(key, f"{archive}:{key}", audio, group.get("txt"), group.get("json")))
    return TarCorpus(root.resolve().name, root, split, clips, chosen, splits)


def open_shar(root: pathlib.Path, split: str) -> TarCorpus:
    """Open a directory of lhotse Shar: `cuts.000000.jsonl.gz` beside `recording.000000.tar`, and so on.

    Raises:
        CorpusError: there are no cuts, or no recording for any cut; names the directory.
    """
    manifests = sorted([*root.glob("cuts.*.jsonl.gz"), *root.glob("cuts.*.jsonl")])
    if not manifests:
        raise CorpusError(f"{root}: no cuts.NUMBER.jsonl.gz here, as lhotse Shar has")
    clips: list[ArchivedClip | CorpusError] = []
    files = []
    for manifest in manifests:
        archive = root / f"recording.{manifest.name.split('.')[1]}.tar"
        files += [manifest, archive] if archive.is_file() else [manifest]
        try:
            recordings = {
                pathlib.PurePosixPath(member).with_suffix("").as_posix(): place
                for member, place in _members(archive)
                if pathlib.PurePosixPath(member).suffix.lower() in AUDIO_SUFFIXES
            }
            clips += _cuts(manifest, recordings)
        except CorpusError as error:
            clips.append(error)
    return TarCorpus(root.resolve().name, root, split, clips, files)


def _cuts(manifest: pathlib.Path, recordings: Mapping[str, Place]) -> Iterator[ArchivedClip | CorpusError]:
    content = read_bytes(manifest, CorpusError)
    if manifest.suffix == ".gz":
        content = expand(content, manifest)
    for number, line in enumerate(decode_text(content, manifest, CorpusError).splitlines(), 1):
        where = f"{manifest}:{number}"
        try:
            cut = parse_json(line, where, CorpusError)
            if not isinstance(cut, dict) or not isinstance(cut.get("id"), str):
                raise CorpusError(f"{where}: needs a cut with an id")
            if cut["id"] not in recordings:
                raise CorpusError(f"{where}: no recording of cut {cut['id']!r} in the archive")
            yield ArchivedClip(cut["id"], where, recordings[cut["id"]], description=fields.supervised(cut, where))
        except CorpusError as error:
            yield error


def _members(archive: pathlib.Path) -> Iterator[tuple[str, Place]]:
    """Names and places of the regular files in an archive."""
    with open_regular(archive, CorpusError) as file:
        try:
            with tarfile.open(fileobj=file, mode="r:") as tar:
                for member in tar:
                    if member.isreg() and not member.issparse():
                        yield member.name, Place(archive, member.offset_data, member.size)
        except (tarfile.TarError, OSError, ValueError, OverflowError, RecursionError) as error:
            raise CorpusError(
                f"{archive}: not a tar archive that can be read in place ({error}); decompress it if it is compressed"
            ) from error


def _key_and_suffix(member: str) -> tuple[str, str]:
    """WebDataset's key of a member, up to the first dot of its name, and what follows the dot, in lower case."""
    folder, slash, name = member.removeprefix("./").rpartition("/")
    stem, _, suffix = name.partition(".")
    return folder + slash + stem, suffix.lower()


def _belongs(archive: pathlib.Path, split: str) -> bool:
    return archive.name.startswith(official_names(split))
