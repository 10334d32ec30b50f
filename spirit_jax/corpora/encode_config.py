"""The config of an encoding job. Reading it never starts JAX."""

import dataclasses
from typing import Literal


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
    check_clips: int = 8
    """Clips that `check` speaks again; a word error rate of eight clips is a rough one."""
    validation_fraction: float = 0.0
    """Share of the corpus to hold out as split validation, by the hash of the speaker or the id; whole speakers where
    there are enough."""
    overwrite: bool = False
    """Replace records, and finished blocks of an unfinished job, that come from another input or tokenizer."""
    lease_seconds: float = 120
    """Seconds without a sign of life from another host after which this one takes its work over."""
    runner: str | None = None
    """Encode on Apache Beam (extra beam) with this runner: DirectRunner, FlinkRunner, SparkRunner, DataflowRunner. Its
    workers need the input, the checkpoint and the output at the same paths, so use a bucket where they are on other
    machines. null: this process encodes."""
    runner_options: str = ""
    """Options of the runner in one string, as in 'direct_num_workers=4 direct_running_mode=multi_processing'."""

    def __post_init__(self):
        if self.check_clips < 1:
            raise ValueError(f"check_clips must be at least 1, found {self.check_clips}")
        if self.shards is not None and self.shards < 1:
            raise ValueError(f"shards must be at least 1, found {self.shards}")
        if not 0 <= self.validation_fraction < 1:
            raise ValueError(f"validation_fraction must be in [0, 1), found {self.validation_fraction}")
        from spirit_jax.data.records import check_split_name

        check_split_name(self.split)
        if not self.lease_seconds > 0:
            raise ValueError(f"lease_seconds must be positive, found {self.lease_seconds}")
        if self.runner_options and self.runner is None:
            raise ValueError(f"runner_options {self.runner_options!r}: name the runner too, such as DirectRunner")
