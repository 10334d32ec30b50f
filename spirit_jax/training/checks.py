"""Checks before the first step, so that a run that cannot work fails at once and with a clear message."""

import pathlib
import re
from collections.abc import Collection, Mapping
from typing import Any

from spirit_jax import checkpoint
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json
from spirit_jax.data.config import DataConfig, SourceConfig
from spirit_jax.data.pairs import LineFile, split_file
from spirit_jax.data.preference_config import PreferenceData
from spirit_jax.data.records import RecordSource, read_metadata
from spirit_jax.data.unit_record import RecordError
from spirit_jax.speech import speech_fingerprints
from spirit_jax.vocabulary import Variant

_LISTED = 5  # Differences that a message lists.
_TRIED = 20  # Records that are looked at.
# Places of data, because the data streams know their content, and evaluation data, which change no weights.
_FREE = re.compile(r"(data/sources/.+|preferences/data)/(path|held_out_split)")


class RunError(SpiritError):
    """A run whose config does not fit its directory, its data or its vocabulary; the message names the fields."""


def check_vocabulary_size(size: int, rows: int) -> None:
    """Check that an embedding of `rows` rows holds a vocabulary of `size` tokens.

    Raises:
        RunError: it does not.
    """
    if size > rows:
        raise RunError(f"model.vocab_size {rows} is less than the {size} tokens of the vocabulary")


def stored_config(directory: pathlib.Path) -> dict[str, Any] | None:
    """The config that a run directory holds; None in a new one.

    Raises:
        RunError: it cannot be read.
    """
    path = directory / checkpoint.CONFIG
    if not path.is_file():
        return None
    config = read_json(path, RunError)
    if not isinstance(config, dict):
        raise RunError(f"{path}: not the config of a run; restore it, or remove it if no step is to be resumed")
    return config


def check_resumable(
    directory: str,
    before: Mapping[str, Any] | None,
    config: Mapping[str, Any],
    mutable: Collection[str],
    remedy: str = "choose another run_directory, and init_from to continue from its weights",
) -> None:
    """Check that a run directory with steps holds a run of the same weights and data.

    Paths may be spelled otherwise, and records may have moved: what they hold is compared when they are opened.

    Args:
        directory: the run directory, which has steps.
        before: the config that it holds; None if it was lost.
        config: the run's config as plain values.
        mutable: keys that may change when a run resumes, and those whose parts may, joined by "/".
        remedy: what to do about another config, for the message.

    Raises:
        RunError: the directory holds checkpoints of a run with another config.
    """
    if before is None:
        return
    old, now = checkpoint.flatten(before), checkpoint.flatten(config)
    changed = [key for key in sorted(old.keys() | now.keys()) if old.get(key) != now.get(key)]
    changed = [
        key
        for key in changed
        if not any(f"{key}/".startswith(f"{free}/") for free in mutable) and not _FREE.fullmatch(key)
    ]
    if changed:
        listed = ", ".join(f"{key.replace('/', '.')} {old.get(key)} -> {now.get(key)}" for key in changed[:_LISTED])
        raise RunError(f"{directory} holds a run with another config ({listed}): {remedy}")


def check_units(data: DataConfig, directory: pathlib.Path, preferences: PreferenceData | None = None) -> None:
    """Check that one speech tokenizer, the run's if it has one, encoded all unit records of the sources.

    Raises:
        RunError: units of different speech tokenizers, whose ids mean different sounds, would be mixed.
    """
    sources: dict[str, str] = {}  # by fingerprint of the speech tokenizer
    files: list[tuple[str, SourceConfig | PreferenceData]] = []
    for name in data.source_names:
        source = data.sources[name]
        if source.recipe == "pairs":
            files.append((name, source))
        elif units := read_metadata(source.path).get("units"):  # one for all splits
            sources.setdefault(units, f"{name} ({source.path})")
    if preferences is not None:
        files.append(("preferences", preferences))
    for name, source in files:
        for split in (source.split, source.held_out_split):
            if split is not None and (units := LineFile(split_file(source.path, split)).units):
                sources.setdefault(units, f"{name} ({source.path}, split {split})")
    if len(sources) > 1:
        raise RunError(
            f"data.sources: {' and '.join(sources.values())} hold units of different speech tokenizers: "
            "encode all with one"
        )
    known = speech_fingerprints(directory)
    if known and not sources.keys() <= known:
        raise RunError(
            f"data.sources: {' and '.join(sources.values())} was not encoded with the speech tokenizer in {directory}: "
            "encode it again, or name the one that did as speech_tokenizer"
        )


def check_streams(data: DataConfig, variant: Variant) -> None:
    """Check that the speech of an Expressive run has pitch and style units.

    Raises:
        RunError: the records of a source have phonetic units alone; names it.
    """
    if variant == "base":
        return
    for name in data.source_names:
        source = data.sources[name]
        for split in (source.split, source.held_out_split):
            if source.recipe not in ("text", "pairs") and split is not None and _lacks_prosody(source, split):
                raise RunError(
                    f"data.sources.{name} ({source.path}, split {split}): its records have no pitch and style units, "
                    "which variant expressive needs: encode them again with --variant expressive, or train with "
                    "variant base"
                )


def _lacks_prosody(source: SourceConfig, split: str) -> bool:
    """Whether the first record of a split that can be read and has speech has phonetic units alone.

    One command encodes a whole split, so its records are alike.
    """
    records = RecordSource(source.path, split, allow_damaged=True)
    for index in range(min(len(records), _TRIED)):
        try:
            units = records[index].units
        except RecordError:  # reported when it is used
            continue
        if units is not None:
            return units.pitch is None or units.style is None
    return False
