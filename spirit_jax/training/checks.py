"""Checks before the first step, so that a run that cannot work fails at once and with a clear message."""

import pathlib
from collections.abc import Collection, Mapping
from typing import Any

from spirit_jax import checkpoint
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_json
from spirit_jax.data.config import DataConfig
from spirit_jax.data.records import read_metadata
from spirit_jax.speech import speech_fingerprints

_LISTED = 5  # Differences that a message lists.


class RunError(SpiritError):
    """A run whose config does not fit its directory, its data or its vocabulary; the message names the fields."""


def check_vocabulary_size(size: int, rows: int) -> None:
    """Check that an embedding of `rows` rows holds a vocabulary of `size` tokens.

    Raises:
        RunError: it does not.
    """
    if size > rows:
        raise RunError(f"model.vocab_size {rows} is less than the {size} tokens of the vocabulary")


def check_resumable(directory: pathlib.Path, config: Mapping[str, Any], mutable: Collection[str]) -> None:
    """Check that a run directory is new or holds a run of the same weights and data.

    Args:
        directory: the run directory.
        config: the run's config as plain values.
        mutable: top-level keys that may change when a run resumes.

    Raises:
        RunError: the directory holds checkpoints of a run with another config.
    """
    path = directory / checkpoint.CONFIG
    if not path.is_file() or checkpoint.latest_step(directory) is None:
        return
    before, now = checkpoint.flatten(read_json(path, RunError)), checkpoint.flatten(dict(config))
    changed = [key for key in sorted(before.keys() | now.keys()) if before.get(key) != now.get(key)]
    changed = [key for key in changed if key.split("/")[0] not in mutable]
    if changed:
        listed = ", ".join(f"{key.replace('/', '.')} {before.get(key)} -> {now.get(key)}" for key in changed[:_LISTED])
        raise RunError(
            f"{directory} holds a run with another config ({listed}): choose another run_directory, "
            "and init_from to continue from its weights"
        )


def check_units(data: DataConfig, directory: pathlib.Path) -> None:
    """Check that one speech tokenizer, the run's if it has one, encoded all unit records of the sources.

    Raises:
        RunError: units of different speech tokenizers, whose ids mean different sounds, would be mixed.
    """
    sources: dict[str, str] = {}  # by fingerprint of the speech tokenizer
    for name in data.source_names:
        path = data.sources[name].path
        units = read_metadata(path).get("units")
        if units:
            sources.setdefault(units, f"{name} ({path})")
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
