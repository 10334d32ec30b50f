"""Corpora of speech and text, and their encoding into unit records.

`open_input` opens whatever a user has: a manifest, a folder of audio files, lines of text, a prepared TFDS directory or
the name of a bundled corpus. `write_corpus` prepares a TFDS directory with the features

    id text, text text, speaker text, audio the content of a file, words [{word, start_ms, end_ms}]

which `open_corpus` reads back without TensorFlow. A corpus without `audio` is text only. Three corpora are bundled:
`spirit_mini`, a few hundred English sentences by formant voices with word times, `spirit_mini_text`, short stories of
the same domain (both by `tools/make_mini_corpus.py`), and `asterisk_prompts`, recordings of a human voice with word
times (`tools/make_human_corpus.py`).
"""

from spirit_jax.corpora.inputs import Input, open_input
from spirit_jax.corpora.readers.prepared import BUNDLED, Corpus, open_corpus
from spirit_jax.corpora.utterance import CorpusError, Utterance
from spirit_jax.corpora.writing import write_corpus

__all__ = ["BUNDLED", "Corpus", "CorpusError", "Input", "Utterance", "open_corpus", "open_input", "write_corpus"]
