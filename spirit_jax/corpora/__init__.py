"""Corpora of speech and text as prepared TFDS directories, read and written without TensorFlow.

`open_corpus("spirit_mini", "train")` opens a bundled corpus, `open_corpus("/data/my_corpus", "train")` any directory that
`write_corpus` (or another TFDS builder with the same features) prepared:

    id text, text text, speaker text, audio the bytes of an encoded file, words [{word, start_ms, end_ms}]

A corpus without `audio` is text only. Bundled are `spirit_mini`, a few hundred spoken English sentences with word times, and
`spirit_mini_text`, short stories of the same domain; `tools/make_mini_corpus.py` made both.
"""

from spirit_jax.corpora.reading import BUNDLED, Corpus, CorpusError, Utterance, open_corpus
from spirit_jax.corpora.writing import write_corpus

__all__ = ["BUNDLED", "Corpus", "CorpusError", "Utterance", "open_corpus", "write_corpus"]
