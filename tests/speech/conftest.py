"""A speech tokenizer trained from scratch, and speech that it has not seen."""

import pytest

from spirit_jax.core.threads import one_thread
from spirit_jax.corpora import open_corpus
from spirit_jax.speech import SpeechTokenizer, SpeechTokenizerConfig, train_speech_tokenizer


@pytest.fixture(scope="session")
def corpus():
    """The bundled corpus of 16 speakers."""
    return open_corpus("spirit_mini", "train")


@pytest.fixture(scope="session")
def scratch_checkpoint(corpus, tmp_path_factory):
    """A checkpoint directory, trained on 96 utterances, six of each speaker."""
    directory = tmp_path_factory.mktemp("scratch_checkpoint")
    config = SpeechTokenizerConfig(phonetic_units=80, pitch_units=32, style_units=10)
    train_speech_tokenizer([corpus[index] for index in range(96)], config, directory, 0, progress=False)
    return directory


@pytest.fixture(scope="session")
def scratch_tokenizer(scratch_checkpoint):
    """The tokenizer of that checkpoint."""
    return SpeechTokenizer.from_pretrained(scratch_checkpoint, "expressive")


@pytest.fixture(scope="session")
def heard(scratch_tokenizer):
    """Sixteen utterances outside the training set, one a speaker: (utterance, audio, units)."""
    validation = open_corpus("spirit_mini", "validation")
    clips = [(validation[index], validation[index].load()) for index in range(16)]
    with one_thread():
        return [(utterance, audio, scratch_tokenizer.encode(audio)) for utterance, audio in clips]
