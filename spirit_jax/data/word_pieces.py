"""Fast encoding of text: the pieces of a word are looked up instead of computed again."""

from collections.abc import Sequence

from spirit_jax.vocabulary import Vocabulary


class WordPieces:
    """`vocabulary.encode_text` with a cache of the pieces of each word: the same ids, faster.

    A SentencePiece model with Llama's training settings has no piece with a space inside or at its end, except for runs
    of spaces. So each word with the one space before it has pieces of its own. Texts with longer runs of spaces, and
    other kinds of tokenizers, are encoded by the tokenizer as a whole.

    Args:
        vocabulary: its tokenizer.

    Attributes:
        by_word: whether texts are encoded word by word.
    """

    MAX_WORDS = 1 << 19
    """Words in each cache; a full cache is emptied, which bounds the memory."""

    def __init__(self, vocabulary: Vocabulary):
        self._encode = vocabulary.encode_text
        self._after_space: dict[str, list[int]] = {}  # pieces of a word after a space
        self._at_start: dict[str, list[int]] = {}  # pieces of a word at the start of a text
        self._letter = len(self._encode("a"))
        sample = "This is one of the things that we had to do in order to be at the end of it."
        self.by_word = len(vocabulary.prefix) == 2 and self._join(sample) == self._encode(sample)

    def __call__(self, text: str) -> list[int]:
        """Ids of text that follows a special token."""
        if not self.by_word or "  " in text:
            return self._encode(text)
        ids = self._join(text)
        return self._encode(text) if ids is None else ids

    def _join(self, text: str) -> list[int] | None:
        """The ids of the words one after another, None if they may differ from those of the text."""
        first, *words = text.split(" ")
        known, pieces = self._after_space, self._at_start.get(first)
        if pieces is None:
            if len(self._at_start) >= self.MAX_WORDS:
                self._at_start.clear()
            pieces = self._at_start[first] = self._encode(first)
        ids = pieces.copy()
        for word in words:
            pieces = known.get(word)
            if pieces is None:
                if len(word.replace("\n", "").split()) > 1:  # white space that a normalizer could turn into a space
                    return None
                if len(known) >= self.MAX_WORDS:
                    known.clear()
                # encoded after a letter, so that the space is not at the start of the text
                pieces = known[word] = self._encode("a " + word)[self._letter :]
            ids += pieces
        return ids


def shared_prefix(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of ids that both begin with."""
    pairs = enumerate(zip(first, second, strict=False))
    return next((index for index, (a, b) in pairs if a != b), min(len(first), len(second)))
