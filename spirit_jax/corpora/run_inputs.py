"""The tokenizers and records in a run directory: made or copied before the first step, and kept after it.

A run directory remembers the options that its inputs were made with, in `config.json`. Other options make the inputs
again as long as no step was trained with them. After that they are refused, because the weights belong to the inputs.
"""

import dataclasses
import json
import os
import pathlib
import shutil
from collections.abc import Iterator, Mapping
from typing import Any

from spirit_jax import checkpoint
from spirit_jax.core.errors import SpiritError
from spirit_jax.corpora.prepare import RECORDS, adopt_tokenizers, open_splits, prepare
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.corpora.summary import EncodingSummary
from spirit_jax.data.records import METADATA
from spirit_jax.speech import speech_fingerprints
from spirit_jax.vocabulary import Variant, Vocabulary, VocabularyError

_PARTS = (checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER)


class RunInputError(SpiritError):
    """Options for the inputs of a run that is already trained with others; the message names both values."""


@dataclasses.dataclass(frozen=True)
class RunInputs:
    """Sources of the tokenizers and records of a run."""

    variant: Variant
    """Which unit streams the run uses."""
    seed: int
    """Seed of the training of the speech tokenizer."""
    tokenizer: str | None
    """Directory of a text tokenizer to copy; None if `prepare` trains one."""
    speech_tokenizer: str | None
    """Checkpoint whose speech tokenizer is copied; None if there is none, or if `prepare` trains one."""
    prepare: PrepareConfig | None
    """Tokenizers and records to make; None if all are ready."""


@dataclasses.dataclass(frozen=True)
class _Change:
    """An option that has another value than when the inputs of the run were made."""

    option: str
    before: Any
    now: Any
    parts: tuple[str, ...] = _PARTS
    """The directories of the run that were made with it."""


def put_inputs(
    run_directory: str | os.PathLike, inputs: RunInputs, before: Mapping[str, Any] | None, *, has_steps: bool
) -> None:
    """Put tokenizers and records into a run directory. Outputs of the same options are kept.

    Args:
        run_directory: the run.
        inputs: what to make them from.
        before: the config that the run directory holds; None in a new one.
        has_steps: whether steps were trained with the inputs that are there.

    Raises:
        RunInputError: steps were trained with other inputs.
        CorpusError, CheckpointError, VocabularyError: a corpus or tokenizer is missing or cannot be used.
    """
    run = pathlib.Path(run_directory)
    changes = [*_changed_tokenizers(run, inputs), *_changed_preparation(run, inputs, before)]
    if changes and has_steps:
        listed = ", ".join(f"{change.option} {change.before} -> {change.now}" for change in changes)
        raise RunInputError(
            f"{run}: its steps were trained with other inputs ({listed}): choose another run_directory, and init_from "
            "to continue from its weights"
        )
    for part in dict.fromkeys(part for change in changes for part in change.parts):
        if (run / part).exists():
            print(f"{run / part}: made again, because {', '.join(change.option for change in changes)} changed")
            shutil.rmtree(run / part)
    adopt_tokenizers(run, inputs.variant, tokenizer=inputs.tokenizer, speech_tokenizer=inputs.speech_tokenizer)
    if inputs.prepare is not None and not (has_steps and _has_records(run)):
        prepare(inputs.prepare, run, inputs.variant, inputs.seed)


def run_vocabulary(run_directory: str | os.PathLike, inputs: RunInputs) -> Vocabulary:
    """The vocabulary that a run copies; the run's own, once the directory that it was copied from is gone.

    Raises:
        VocabularyError: there is no tokenizer of this variant.
    """
    assert inputs.tokenizer is not None  # otherwise `prepare` trains one
    own = pathlib.Path(run_directory, checkpoint.TOKENIZER)
    return Vocabulary.load(
        own if own.exists() and not os.path.exists(inputs.tokenizer) else inputs.tokenizer, inputs.variant
    )


def _has_records(run: pathlib.Path) -> bool:
    """Whether all directories of records that the run has are complete."""
    found = [path for path in (run / RECORDS).glob("*") if path.is_dir()]
    return bool(found) and all((path / METADATA).exists() for path in found)


def _changed_tokenizers(run: pathlib.Path, inputs: RunInputs) -> Iterator[_Change]:
    """Copied tokenizers that are not those of the run. The place that one was copied from need not exist any more."""
    own, source = run / checkpoint.TOKENIZER, inputs.tokenizer
    if source is not None and own.exists() and os.path.exists(source):
        wanted = Vocabulary.load(source, inputs.variant)
        found = _loaded(own, inputs.variant)
        if found is None or found.fingerprint != wanted.fingerprint:
            yield _Change("tokenizer", f"{found.size if found else 'other'} tokens", source, (checkpoint.TOKENIZER,))
    source = inputs.speech_tokenizer
    if source is not None and (run / checkpoint.SPEECH_TOKENIZER).exists() and os.path.exists(source):
        known, wanted = speech_fingerprints(run), speech_fingerprints(source)
        if wanted and known != wanted:
            yield _Change("speech_tokenizer", "another", source, (checkpoint.SPEECH_TOKENIZER,))


def _loaded(directory: pathlib.Path, variant: Variant) -> Vocabulary | None:
    try:
        return Vocabulary.load(directory, variant)
    except VocabularyError:  # of another variant
        return None


def _changed_preparation(run: pathlib.Path, inputs: RunInputs, before: Mapping[str, Any] | None) -> Iterator[_Change]:
    """Options of `prepare` that differ from those in the run directory."""
    if inputs.prepare is None or before is None or not any((run / part).exists() for part in _PARTS):
        return
    options = {"prepare": _values(inputs.prepare), "seed": inputs.seed, "variant": inputs.variant}
    old = checkpoint.flatten({name: before[name] for name in options if before.get(name) is not None})
    new = checkpoint.flatten(options)
    for key in sorted(new):
        # an option that the run directory does not know came with a later version
        if key in old and old[key] != new[key] and not (key == "prepare/corpora" and _holds(run, inputs.prepare)):
            yield _Change(key.replace("/", "."), old[key], new[key])
    if "prepare" in before and before["prepare"] is None:
        yield _Change("prepare", None, "a section")


def _values(config: PrepareConfig) -> dict[str, Any]:
    return json.loads(json.dumps(dataclasses.asdict(config)))


def _holds(run: pathlib.Path, config: PrepareConfig) -> bool:
    """Whether the records of a run were made from these corpora, wherever they are now."""
    for source in config.corpora:
        corpus, *_ = open_splits(source, config.validation_fraction)
        summary = EncodingSummary.load(run / RECORDS / corpus.name, "train")
        if summary is None or summary.corpus != corpus.fingerprint:
            return False
    return len(config.corpora) == sum(path.is_dir() for path in (run / RECORDS).glob("*"))
