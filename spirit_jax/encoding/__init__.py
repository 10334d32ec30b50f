"""Corpora to unit records: `encode_corpus` and the summary that it returns."""

from spirit_jax.encoding.corpus import EncodingError, EncodingSummary, encode_corpus, encode_split

__all__ = ["EncodingError", "EncodingSummary", "encode_corpus", "encode_split"]
