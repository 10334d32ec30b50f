"""Encode speech into unit records that training reads.

    python -m spirit_jax.encode --checkpoint CHECKPOINT --input INPUT --output DIR

INPUT is a manifest (.jsonl or .tsv), a folder or a quoted glob of audio files, a JSONL file or a quoted glob of them with
lines of text, a prepared TFDS directory or the name of a bundled corpus. The same command resumes a job that was killed. On several hosts that share DIR, start one each with
--host_index 0, 1, ... and --host_count N; on one host all local devices share the work.
"""

import dataclasses
import logging
import os
from collections.abc import Sequence
from typing import Literal

from spirit_jax import config
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.corpora import CorpusError
from spirit_jax.corpora.encoding import EncodingError, encode_split
from spirit_jax.corpora.inputs import open_input
from spirit_jax.data.records import RecordError
from spirit_jax.speech import SpeechTokenizer

PROG = "python -m spirit_jax.encode"


@dataclasses.dataclass(frozen=True)
class EncodeConfig:
    """What to encode and with which tokenizer.

    Raises:
        ValueError: a host or a number of shards that makes no sense.
    """

    input: str
    """Manifest (.jsonl, .tsv), folder or glob of audio files, text (.jsonl, or a glob of them), prepared TFDS directory, or name of
    a bundled corpus."""
    output: str
    """Directory of unit records; other splits in it stay."""
    checkpoint: str | None = None
    """Checkpoint directory with the speech tokenizer; not needed for a corpus of text."""
    split: str = "train"
    """Split of the corpus, and what the records are called."""
    variant: Literal["base", "expressive"] = "expressive"
    """base: HuBERT units alone; expressive: pitch and style units too."""
    f0: Literal["fcpe", "pyaapt"] = "fcpe"
    """Pitch extractor of the released tokenizer (pyaapt, as in the paper, is slow and runs on the host)."""
    shards: int = 1
    """Record files of the split."""
    host_index: int = 0
    """Which of `host_count` hosts this is; host 0 waits for the others and writes the records."""
    host_count: int = 1
    """Hosts that share the work and the output directory."""
    host_timeout: float = 1800
    """Seconds without a block from another host after which host 0 gives up waiting; what is finished stays."""

    def __post_init__(self):
        if self.shards < 1:
            raise ValueError(f"shards must be at least 1, found {self.shards}")
        if not 0 <= self.host_index < self.host_count:
            raise ValueError(f"host_index must be in 0..host_count-1, found {self.host_index} of {self.host_count}")


def encode(settings: EncodeConfig) -> None:
    """Run the job and print its summary."""
    corpus = open_input(settings.input, settings.split)
    tokenizer = None
    if settings.checkpoint is not None:
        tokenizer = SpeechTokenizer.from_pretrained(settings.checkpoint, settings.variant, f0=settings.f0)
    summary = encode_split(
        corpus,
        tokenizer,
        settings.output,
        shards=settings.shards,
        host=settings.host_index,
        hosts=settings.host_count,
        host_timeout=settings.host_timeout,
    )
    print(summary if summary is not None else f"host {settings.host_index}: done, host 0 writes the records")


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = config.parse(EncodeConfig, arguments, PROG, __doc__)
    try:
        encode(settings)
    except (CorpusError, CheckpointError) as error:  # what was named on the command line is not there
        config.fail(PROG, error, config.BAD_ARGUMENT)
    except (EncodingError, RecordError, ImportError, OSError) as error:
        config.fail(PROG, error, config.FAILED_JOB)


if __name__ == "__main__":
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    main()
