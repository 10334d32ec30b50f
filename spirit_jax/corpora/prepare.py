"""Preparation of a run that starts from audio and text alone: its tokenizers and its unit records."""

import bisect
import collections
import itertools
import os
import pathlib
import shutil
from collections.abc import Iterator, Sequence

from spirit_jax import checkpoint
from spirit_jax.core.files import atomic_directory
from spirit_jax.corpora.encoding import encode_split
from spirit_jax.corpora.held_out import VALIDATION, hold_out
from spirit_jax.corpora.inputs import Input, open_input
from spirit_jax.corpora.prepare_config import PrepareConfig
from spirit_jax.corpora.readers import position
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.speech import SpeechTokenizer, train_speech_tokenizer
from spirit_jax.vocabulary import Variant, Vocabulary

RECORDS = "records"
"""Folder of a run that holds a directory of unit records for each corpus."""


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
    parts = [open_splits(source, config.validation_fraction) for source in config.corpora]
    names = collections.Counter(train.name for train, *_ in parts)
    for name, count in names.items():
        if count > 1:
            raise CorpusError(f"prepare.corpora: {count} corpora have the name {name!r}; rename a file or folder")
    corpora = [train for train, *_ in parts]
    if not (run / checkpoint.TOKENIZER).exists():
        train_text_tokenizer(corpora, config.text_pieces, variant).save(run / checkpoint.TOKENIZER)
    spoken = [corpus for corpus in corpora if corpus.has_speech]
    if spoken and not (run / checkpoint.SPEECH_TOKENIZER).exists():
        train_speech_tokenizer(Joined(spoken), config.speech_tokenizer, run, seed)
    tokenizer = SpeechTokenizer.from_pretrained(run, variant) if spoken else None
    for part in itertools.chain(*parts):
        summary = encode_split(part, tokenizer, run / RECORDS / part.name, overwrite=True)
        print(f"{part.name} {summary}")


def open_splits(source: str, validation_fraction: float) -> tuple[Input, ...]:
    """The split `train` of an input, and its split `validation`, which is held out of `train` if it has none.

    Args:
        source: as for `open_input`.
        validation_fraction: share to hold out; 0 leaves the second split out where the input has none.

    Raises:
        CorpusError, PathError: as `open_input`.
    """
    corpus = open_input(source, "train")
    if VALIDATION in corpus.splits:
        return corpus, open_input(source, VALIDATION)
    return hold_out(corpus, validation_fraction) if validation_fraction else (corpus,)


def train_text_tokenizer(corpora: Sequence[Input], pieces: int, variant: Variant) -> Vocabulary:
    """Train a SentencePiece model on the transcripts and documents of corpora; unusable ones are left out.

    Raises:
        VocabularyError: there is too little text for that many pieces.
    """
    return Vocabulary.train((text for corpus in corpora for text in _texts(corpus)), pieces, variant)


class Joined(Sequence[Utterance]):
    """Several corpora one after the other, as a sequence whose utterances are read when they are asked for."""

    def __init__(self, corpora: Sequence[Input]):
        self._corpora, self._ends = corpora, list(itertools.accumulate(map(len, corpora)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Utterance:
        index = position(index, len(self), self._corpora[0].location)
        corpus = bisect.bisect_right(self._ends, index)
        return self._corpora[corpus][index - (self._ends[corpus - 1] if corpus else 0)]


def _texts(corpus: Input) -> Iterator[str]:
    """The texts of a corpus; what cannot be read is named when the corpus is encoded."""
    for index in range(len(corpus)):
        try:
            yield corpus[index].text
        except CorpusError:
            continue
