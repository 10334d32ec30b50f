"""Encode speech or text into the unit records that training reads.

    python -m spirit_jax.encode --checkpoint CHECKPOINT --input INPUT --output DIR

INPUT is a manifest (.jsonl, .json, .csv or .tsv), an audio file, a folder or a quoted glob of them, a JSONL file or a
quoted glob of them with lines of text, a prepared TFDS directory, a published corpus in its layout (librispeech:DIR),
or the name of a bundled corpus. INPUT, CHECKPOINT and DIR may also be in a bucket (gs://BUCKET/NAME). The same command
resumes a job that was killed. Start it on any number of hosts that share DIR, and they divide the work; the work of a
host that is lost is done by the others. On one host all local devices share the work.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Literal

from spirit_jax import config
from spirit_jax.core.errors import SpiritError, exit_codes
from spirit_jax.core.paths import output_path
from spirit_jax.core.working_copy import output_directory

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.encode"


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """Input, tokenizer and output of an encoding job.

    Raises:
        ValueError: an invalid number of shards, name of a split, fraction or time.
    """

    input: str
    """Manifest (.jsonl, .json, .csv, .tsv), audio file, folder or glob of audio files, text (.jsonl, or a glob of
    them), prepared TFDS directory, published corpus (NAME:DIR), or name of a bundled corpus."""
    output: str
    """Directory of unit records; other splits in it stay."""
    checkpoint: str | None = None
    """Checkpoint directory with the speech tokenizer; leave it out for a corpus of text."""
    split: str = "train"
    """Split of the corpus to encode; also the name of the split in the output."""
    variant: Literal["base", "expressive"] | None = None
    """base: HuBERT units alone; expressive: pitch and style units too. null: base if the checkpoint has HuBERT alone,
    else expressive."""
    f0: Literal["fcpe", "pyaapt"] | None = None
    """Pitch extractor of the released tokenizer; pyaapt, as in the paper, is slow and runs on the host. null: fcpe."""
    shards: int | None = None
    """Number of record files of the split; by default one, or what a finished split has. A finished split with another
    number is written again without encoding."""
    alignments: str | None = None
    """File or folder with word times of other tools (.TextGrid, .ctm, .lab, .alignment.txt, .json), named after ids or
    audio files. Files beside the recordings of a folder are read without this."""
    check: bool = False
    """First speak a few clips again from their units, and report how far that is from the recordings; a voice that the
    tokenizer does not fit is a warning. Sound files of both go to OUTPUT/check-SPLIT."""
    validation_fraction: float = 0.0
    """Share of the corpus to hold out as split validation, by the hash of the speaker or the id; whole speakers where
    there are enough."""
    overwrite: bool = False
    """Replace records, and finished blocks of an unfinished job, that come from another input or tokenizer."""
    lease_seconds: float = 120
    """Seconds without a sign of life from another host after which this one takes its work over."""

    def __post_init__(self):
        if self.shards is not None and self.shards < 1:
            raise ValueError(f"shards must be at least 1, found {self.shards}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), found {self.validation_fraction}")
        from spirit_jax.data.records import check_split_name

        check_split_name(self.split)
        if not self.lease_seconds > 0:
            raise ValueError(f"lease_seconds must be positive, found {self.lease_seconds}")


def encode(settings: EncodeConfig) -> None:
    """Run the job and print its summary.

    Raises:
        PathError: not a path.
        BucketError, BucketJobError: a path is in a bucket that cannot be used.
        CorpusError, CheckpointError: the input or the tokenizer cannot be used, or a corpus of text has a tokenizer.
        OutputError, RecordError: the output holds other records, or units of another tokenizer.
        EncodingError: the job cannot be finished.
        LockError: the output was removed while the job ran.
    """
    from spirit_jax.corpora import CorpusError, open_input
    from spirit_jax.corpora.alignment.attach import attach_alignments
    from spirit_jax.corpora.encoding import encode_split
    from spirit_jax.corpora.held_out import hold_out
    from spirit_jax.corpora.resynthesis import check_resynthesis
    from spirit_jax.corpora.shared_work import Sharing
    from spirit_jax.parallel.processes import place_in_job

    output = output_path(settings.output, "--output")
    corpus = open_input(settings.input, settings.split)
    if settings.checkpoint is not None and not corpus.has_speech:
        raise CorpusError(
            f"{settings.input}: holds text without audio, but --checkpoint was given; leave it out to encode text, or "
            "name the audio of each line in a field 'audio'"
        )
    if settings.alignments is not None:
        corpus = attach_alignments(corpus, settings.alignments)
    parts = hold_out(corpus, settings.validation_fraction) if settings.validation_fraction else (corpus,)
    tokenizer = None
    if settings.checkpoint is not None:
        from spirit_jax.checkpoint import local_directory
        from spirit_jax.speech import SpeechTokenizer

        checkpoint = local_directory(settings.checkpoint, "--checkpoint")
        tokenizer = SpeechTokenizer.from_pretrained(checkpoint, settings.variant, settings.f0).load_encoders()
        if settings.variant is None and not tokenizer.expressive:
            logging.warning("%s has a phonetic encoder alone: units of Spirit LM Base", checkpoint)
    elif settings.f0 is not None:
        raise SpiritError(f"--f0 {settings.f0}: text has no pitch; leave it out, or name the --checkpoint")
    index, count = place_in_job()
    if settings.check and index == 0:
        if tokenizer is None:
            raise CorpusError(
                "--check: speaks clips again from their units; it needs --checkpoint and an input with audio"
            )
        check = f"{output}/check-{parts[-1].split}"
        with output_directory(check, "--output") as directory:
            print(check_resynthesis(parts[-1], tokenizer, directory))
    sharing = Sharing(settings.lease_seconds, index, count)
    for part in parts:
        summary = encode_split(
            part, tokenizer, output, shards=settings.shards, sharing=sharing, overwrite=settings.overwrite
        )
        print(summary)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    for name in ("spirit_jax.corpora", "spirit_jax.speech"):  # whether anything is to do, and what is compiled
        logging.getLogger(name).setLevel(logging.INFO)
    settings = config.parse(EncodeConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command resumes the job"):
        encode(settings)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
