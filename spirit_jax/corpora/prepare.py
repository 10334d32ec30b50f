"""From corpora to a run's tokenizers and unit records, for runs that start from audio and text alone."""

import dataclasses
import os
import pathlib

from spirit_jax import checkpoint
from spirit_jax.corpora import open_corpus
from spirit_jax.corpora.encoding import encode_corpus
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig, train_speech_tokenizer
from spirit_jax.vocabulary import Variant, Vocabulary

RECORDS = "records"


@dataclasses.dataclass(frozen=True)
class PrepareConfig:
    """What a run makes of its corpora before its first step, where it is not there yet."""

    corpora: list[str] = dataclasses.field(default_factory=list)
    """Bundled corpora by name, or prepared TFDS directories; their units go to {run}/records/NAME."""
    text_pieces: int = 512
    """Pieces of the SentencePiece model that is trained on their text."""
    speech_tokenizer: SpeechTokenizerConfig = SpeechTokenizerConfig()
    """The speech tokenizer that is trained on their audio."""

    def __post_init__(self) -> None:
        if not self.corpora:
            raise ValueError("prepare.corpora: name at least one corpus")


def prepare(config: PrepareConfig, run_directory: str | os.PathLike, variant: Variant, seed: int) -> None:
    """Make `tokenizer/`, `speech_tokenizer/` and `records/` in the run; what is there already stays.

    Raises:
        CorpusError: a corpus that is not there.
        ValueError: too little text or speech for the sizes that the config asks for.
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
        for summary in encode_corpus(name, tokenizer, run / RECORDS / corpus.name, splits).values():
            print(f"{corpus.name} {summary}")
