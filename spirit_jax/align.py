"""Find the times of words in recordings, so that training can interleave text and speech at word boundaries.

    python -m spirit_jax.align --input clips/ --output aligned
    python -m spirit_jax.align --input manifest.jsonl --output aligned --min-score 0.3 --write textgrid
    python -m spirit_jax.align --input clips/ --output aligned --transcribe moonshine
    python -m spirit_jax.align --input chapters/ --output aligned --max-seconds 20
    python -m spirit_jax.encode --checkpoint CHECKPOINT --input aligned/train.jsonl --output records/mine

The input is anything with speech that `encode` takes: a folder of recordings with a `.txt` file beside each, a
manifest, a prepared TFDS directory, a published corpus (`librispeech:DIR`) or a bundled one. The result is a manifest
with word times, a list of the clips that were left out and why, and a summary with a histogram of the word scores. The
same command resumes a job that was killed.
"""

import dataclasses
import logging
from collections.abc import Callable, Sequence

from spirit_jax import config
from spirit_jax.core.errors import exit_codes
from spirit_jax.corpora.alignment.aligner import Aligner
from spirit_jax.corpora.alignment.attach import attach_alignments
from spirit_jax.corpora.alignment.job import AlignmentSettings, align_corpus, plot_scores
from spirit_jax.corpora.alignment.sphinx import SphinxAligner
from spirit_jax.corpora.alignment.writers import WRITERS
from spirit_jax.corpora.inputs import open_input
from spirit_jax.speech.asr import open_recognizer

PROG = "python -m spirit_jax.align"

ALIGNERS: dict[str, Callable[[], Aligner]] = {"pocketsphinx": SphinxAligner}
"""Aligners by the name that `--aligner` takes."""


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """What to align, with which aligner, and where to.

    Raises:
        ValueError: an unknown aligner or kind of file, or a score outside 0 to 1.
    """

    input: str
    """Folder or glob of audio files, manifest (.jsonl, .tsv), prepared TFDS directory, published corpus (NAME:DIR), or
    name of a bundled corpus."""
    output: str
    """Directory of the manifest, SPLIT.jsonl, and of what goes with it."""
    split: str = "train"
    """Split of the corpus to align; also the name of the manifest."""
    aligner: str = "pocketsphinx"
    """pocketsphinx (English, no download)."""
    transcribe: str | None = None
    """Recognizer that transcribes clips without a transcript: moonshine (English, no download) or whisper:DIR. Their
    words are flagged in the manifest."""
    write: tuple[str, ...] = ()
    """Further files to write: textgrid, ctm, librispeech."""
    language: str = "en"
    """Language of the transcripts, for numbers and abbreviations: a code that num2words knows."""
    min_score: float = 0.0
    """Clips whose words have a lower mean score are left out and counted; scores of different aligners differ."""
    max_seconds: float | None = None
    """Cut longer recordings at pauses and sentence ends into utterances of at most this many seconds; 20 suits
    training. Without it nothing is cut."""
    alignments: str | None = None
    """File or folder with word times of other tools (.TextGrid, .ctm, .lab, .alignment.txt, .json); clips that have
    them there keep them, as with `keep_times`."""
    keep_times: bool = False
    """Clips whose words have times in the input keep them; only the others are aligned."""
    overwrite: bool = False
    """Replace a finished alignment of another input, aligner or setting."""

    def __post_init__(self) -> None:
        self.alignment()
        if self.aligner not in ALIGNERS:
            raise ValueError(f"aligner {self.aligner!r} is unknown; choose among {', '.join(ALIGNERS)}")
        unknown = [name for name in self.write if name not in WRITERS]
        if unknown:
            raise ValueError(f"write: {unknown[0]!r} is unknown; choose among {', '.join(WRITERS)}")

    def alignment(self) -> AlignmentSettings:
        """The options that decide words and times."""
        keep_times = self.keep_times or self.alignments is not None
        return AlignmentSettings(self.language, self.min_score, self.max_seconds, keep_times)


def align(settings: AlignConfig) -> None:
    """Run the job, print its summary and draw its histogram.

    Raises:
        CorpusError, AlignmentError, RecognizerError: the input, the aligner or the recognizer cannot be used.
        JobError: no clip could be aligned.
    """
    corpus = open_input(settings.input, settings.split)
    if settings.alignments is not None:
        corpus = attach_alignments(corpus, settings.alignments)
    recognizer = open_recognizer(settings.transcribe) if settings.transcribe else None
    summary = align_corpus(
        corpus,
        ALIGNERS[settings.aligner](),
        settings.output,
        settings.alignment(),
        recognizer=recognizer,
        write=settings.write,
        overwrite=settings.overwrite,
    )
    print(summary)
    try:
        plot_scores(summary, f"{settings.output}/{settings.split}.scores.png")
    except ImportError:
        print("no histogram of the scores: install matplotlib, pip install 'spirit_jax[plots]'")
    manifest = f"{settings.output}/{settings.split}.jsonl"
    print(f"next: python -m spirit_jax.encode --input {manifest} --checkpoint CHECKPOINT --output DIR")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = config.parse(AlignConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command resumes the job"):
        align(settings)


if __name__ == "__main__":
    main()
