"""The job of the command `encode`: opens the input and the tokenizer, encodes the splits, prints their summaries."""

import dataclasses
import logging

from spirit_jax.checkpoint import local_directory
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.paths import output_path
from spirit_jax.core.working_copy import output_directory
from spirit_jax.corpora.alignment.attach import attach_alignments
from spirit_jax.corpora.encode_config import EncodeConfig
from spirit_jax.corpora.encoding import encode_split
from spirit_jax.corpora.held_out import hold_out
from spirit_jax.corpora.inputs import Input, open_input
from spirit_jax.corpora.resynthesis import check_resynthesis
from spirit_jax.corpora.shared_work import Sharing
from spirit_jax.corpora.utterance import CorpusError
from spirit_jax.speech import SpeechTokenizer


@dataclasses.dataclass(frozen=True)
class OpenedJob:
    """The input and the tokenizer of a job."""

    parts: tuple[Input, ...]
    """The splits to encode: the one that was asked for, and what is held out of it."""
    tokenizer: SpeechTokenizer | None
    """The speech tokenizer; None for text."""


def open_job(settings: EncodeConfig) -> OpenedJob:
    """Open the input and load the encoders, in the process of the command or in a worker of Beam.

    Raises:
        BucketError, BucketJobError: a path is in a bucket that cannot be used.
        CorpusError, CheckpointError: the input or the tokenizer cannot be used, or a corpus of text has a tokenizer.
    """
    corpus = open_input(settings.input, settings.split)
    if settings.checkpoint is not None and not corpus.has_speech:
        raise CorpusError(
            f"{settings.input}: holds text without audio, but --checkpoint was given; leave it out to encode text, or "
            "name the audio of each line in a field 'audio'"
        )
    if settings.alignments is not None:
        corpus = attach_alignments(corpus, settings.alignments)
    parts = hold_out(corpus, settings.validation_fraction) if settings.validation_fraction else (corpus,)
    if settings.checkpoint is None:
        if settings.f0 is not None:
            raise SpiritError(f"--f0 {settings.f0}: text has no pitch; leave it out, or name the --checkpoint")
        return OpenedJob(tuple(parts), None)
    checkpoint = local_directory(settings.checkpoint, "--checkpoint")
    tokenizer = SpeechTokenizer.from_pretrained(checkpoint, settings.variant, settings.f0).load_encoders()
    if settings.variant is None and not tokenizer.expressive:
        logging.warning("%s has a phonetic encoder alone: units of Spirit LM Base", checkpoint)
    return OpenedJob(tuple(parts), tokenizer)


def run(settings: EncodeConfig, index: int = 0, count: int = 1) -> None:
    """Run the job and print the summary of each split.

    Args:
        settings: the config.
        index: number of this process among those that share the job.
        count: number of these processes.

    Raises:
        PathError: not a path.
        BucketError, BucketJobError: a path is in a bucket that cannot be used.
        CorpusError, CheckpointError: the input or the tokenizer cannot be used, or a corpus of text has a tokenizer.
        OutputError, RecordError: the output holds other records, or units of another tokenizer.
        EncodingError: the job cannot be finished.
        BeamError, PipelineError: the runner cannot be used, or its pipeline failed.
        LockError: the output was removed while the job ran.
    """
    output = output_path(settings.output, "--output")
    opened = open_job(settings)
    parts, tokenizer = opened.parts, opened.tokenizer
    if settings.check and index == 0:
        if tokenizer is None:
            raise CorpusError(
                "--check: speaks clips again from their units; it needs --checkpoint and an input with audio"
            )
        check = f"{output}/check-{parts[-1].split}"
        with output_directory(check, "--output") as directory:
            print(check_resynthesis(parts[-1], tokenizer, directory, count=settings.check_clips))
    sharing = Sharing(settings.lease_seconds, index, count)
    for number, part in enumerate(parts):
        store_blocks = None
        if settings.runner is not None:
            from spirit_jax.corpora.beam import BeamWorkers

            store_blocks = BeamWorkers(settings, number)
        summary = encode_split(
            part,
            tokenizer,
            output,
            shards=settings.shards,
            sharing=sharing,
            overwrite=settings.overwrite,
            store_blocks=store_blocks,
        )
        print(summary)
