"""Train a speech tokenizer and a text tokenizer on corpora of your own.

    python -m spirit_jax.train_tokenizers --input aligned/train.jsonl --input 'pages/*.jsonl' --output tokenizers/mine
    python -m spirit_jax.encode --checkpoint tokenizers/mine --input aligned/train.jsonl --output records/mine --check

The speech tokenizer is k-means over spectra, F0 and energy: it learns in seconds from any language and voice, and it
speaks through Griffin-Lim. Released tokenizers sound better, where their weights are at hand. The text tokenizer is
SentencePiece, learned from documents and transcripts. Both are in the layout that `train` and `encode` read.
"""

import dataclasses
import pathlib
import shutil
from collections.abc import Sequence
from typing import Literal

from spirit_jax import checkpoint, config
from spirit_jax.core.checks import check_seed
from spirit_jax.core.errors import SpiritError, exit_codes
from spirit_jax.core.working_copy import output_directory
from spirit_jax.speech.config import SpeechTokenizerConfig

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.train_tokenizers"


@dataclasses.dataclass(frozen=True)
class TrainTokenizersConfig:
    """The input to learn tokenizers from, and their sizes.

    Raises:
        ValueError: no input is named.
    """

    input: tuple[str, ...]
    """Everything that `encode` takes as input; repeat the option for several corpora."""
    output: str
    """Directory of `tokenizer/` and, if there is speech, `speech_tokenizer/`."""
    split: str = "train"
    """Split to learn from of corpora that have splits."""
    variant: Literal["base", "expressive"] = "expressive"
    """base: the text tokenizer knows phonetic units only; expressive: also pitch and style units."""
    text_pieces: int = 512
    """Number of pieces of the text tokenizer."""
    speech_tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    """Sizes of the speech tokenizer."""
    seed: int = 0
    """Seed of the choice of clips and of the starts of k-means."""
    overwrite: bool = False
    """Replace tokenizers that are there; records of the old ones cannot be mixed with records of the new ones."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        if not self.input:
            raise ValueError("input: name at least one corpus")


def train_tokenizers(settings: TrainTokenizersConfig) -> None:
    """Train both tokenizers and say what to do next.

    Raises:
        BucketError, BucketJobError: a bucket cannot be used.
        CorpusError: an input cannot be used.
        SpiritError: the directory has tokenizers, or there is too little speech or text for the sizes.
    """
    with output_directory(settings.output, "--output") as directory:
        _train(settings, directory)


def _train(settings: TrainTokenizersConfig, output: pathlib.Path) -> None:
    """As `train_tokenizers`, into a directory on this machine."""
    from spirit_jax.corpora import open_input
    from spirit_jax.corpora.prepare import Joined, train_text_tokenizer
    from spirit_jax.speech import train_speech_tokenizer

    parts = [output / name for name in (checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER)]
    present = [part for part in parts if part.exists()]
    if present and not settings.overwrite:
        raise SpiritError(f"{present[0]}: a tokenizer is here; choose another --output or replace it with --overwrite")
    corpora = [open_input(source, settings.split) for source in settings.input]
    text_tokenizer = train_text_tokenizer(corpora, settings.text_pieces, settings.variant)
    spoken = [corpus for corpus in corpora if corpus.has_speech]
    if spoken:
        train_speech_tokenizer(Joined(spoken), settings.speech_tokenizer, output, settings.seed)
    if parts[0].exists():
        shutil.rmtree(parts[0])
    text_tokenizer.save(parts[0])
    print(f"{parts[0]}: {text_tokenizer.size} tokens, {settings.text_pieces} of them pieces of text")
    if spoken:
        sizes = settings.speech_tokenizer
        print(
            f"{parts[1]}: {sizes.phonetic_units} phonetic, {sizes.pitch_units} pitch and {sizes.style_units} style "
            "units"
        )
        print(f"next: python -m spirit_jax.encode --checkpoint {settings.output} --input INPUT --output DIR --check")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    settings = config.parse(TrainTokenizersConfig, arguments, PROG, __doc__)
    with exit_codes(PROG):
        train_tokenizers(settings)


if __name__ == "__main__":
    main()
