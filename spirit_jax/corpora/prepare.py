"""Preparation of a run that starts from audio and text alone: its tokenizers and its unit records."""

import dataclasses
import os
import pathlib
import shutil

from spirit_jax import checkpoint
from spirit_jax.core.files import atomic_directory
from spirit_jax.corpora.encoding import encode_corpus
from spirit_jax.corpora.readers.prepared import open_corpus
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig, train_speech_tokenizer
from spirit_jax.vocabulary import Variant, Vocabulary

RECORDS = "records"
"""Folder of a run that holds a directory of unit records for each corpus."""


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """Tokenizers and records to build from the corpora before training. Existing outputs are kept.

    Raises:
        ValueError: no corpus is named.
    """

    corpora: list[str] = dataclasses.field(default_factory=list)
    """Names of bundled corpora, or prepared TFDS directories; the records of each go to {run}/records/NAME."""
    text_pieces: int = 512
    """Number of pieces of the SentencePiece model that is trained on the text of the corpora."""
    speech_tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    """Sizes of the speech tokenizer that is trained on the audio of the corpora."""

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("prepare.corpora: name at least one corpus")


def adopt_tokenizers(
    run_directory: str | os.PathLike, variant: Variant, *, tokenizer: str | None, speech_tokenizer: str | None
) -> None:
    """Copy existing tokenizers into a run, so that its steps are complete checkpoints; those that it has are kept.

    Args:
        run_directory: the run.
        variant: speech tokens that a plain text tokenizer is extended by.
        tokenizer: directory of a text tokenizer; None if `prepare` trains one.
        speech_tokenizer: checkpoint or run that holds a speech tokenizer; None if there is none, or if `prepare` trains
            one.

    Raises:
        VocabularyError: no tokenizer of this variant is there.
        CheckpointError: no speech tokenizer is there.
    """
    run = pathlib.Path(run_directory)
    if tokenizer is not None and not (run / checkpoint.TOKENIZER).exists():
        Vocabulary.load(tokenizer, variant).save(run / checkpoint.TOKENIZER)
    if speech_tokenizer is not None and not (run / checkpoint.SPEECH_TOKENIZER).exists():
        with atomic_directory(run / checkpoint.SPEECH_TOKENIZER) as scratch:
            source = checkpoint.find(speech_tokenizer, checkpoint.SPEECH_TOKENIZER)
            shutil.copytree(source, scratch, dirs_exist_ok=True)


def prepare(config: PrepareConfig, run_directory: str | os.PathLike, variant: Variant, seed: int) -> None:
    """Build `tokenizer/`, `speech_tokenizer/` and `records/` in a run directory. Existing outputs are kept.

    Args:
        config: corpora and sizes.
        run_directory: directory of the run.
        variant: which unit streams the run uses.
        seed: of the training of the speech tokenizer.

    Raises:
        CorpusError: a corpus does not exist.
        SpiritError: there is too little text or speech for the sizes in the config.
    """
    run = pathlib.Path(run_directory)
    corpora = [open_corpus(name, "train") for name in config.corpora]
    if not (run / checkpoint.TOKENIZER).exists():
        texts = (corpus[index].text for corpus in corpora for index in range(len(corpus)))
        Vocabulary.train(texts, config.text_pieces, variant).save(run / checkpoint.TOKENIZER)
    spoken = [corpus for corpus in corpora if corpus.has_speech]
    if spoken and not (run / checkpoint.SPEECH_TOKENIZER).exists():
        utterances = [utterance for corpus in spoken for utterance in corpus]
        train_speech_tokenizer(utterances, config.speech_tokenizer, run, seed)
    tokenizer = SpeechTokenizer.from_pretrained(run, variant) if spoken else None
    for name, corpus in zip(config.corpora, corpora, strict=True):
        splits = [split for split in ("train", "validation") if split in corpus.splits]
        records = run / RECORDS / corpus.name
        for summary in encode_corpus(name, tokenizer, records, splits, overwrite=True).values():
            print(f"{corpus.name} {summary}")
