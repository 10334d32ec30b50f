"""Stop strings while an answer streams: nothing that may belong to a stop string is handed out."""

from collections.abc import Iterable, Iterator, Sequence

import numpy as np

from spirit_jax.inference.answers import answer_text, find_stop
from spirit_jax.inference.prompts import EncodedPrompt
from spirit_jax.vocabulary import Vocabulary


class StopFilter:
    """Passes on the ids of an answer up to its first stop string.

    Attributes:
        stopped: whether a stop string was found.
        rest: text before the stop string that is part of a token across its border.
    """

    def __init__(self, vocabulary: Vocabulary, prompt: EncodedPrompt, stop: Sequence[str]):
        self.stopped, self.rest = False, ""
        self._vocabulary, self._prompt, self._stop = vocabulary, prompt, stop

    def filter(self, arrivals: Iterable[list[int]]) -> Iterator[list[int]]:
        """Yield the ids that come before the first stop string, as soon as they cannot be part of one."""
        ids: list[int] = []
        passed = 0
        for arrived in arrivals:
            ids += arrived
            text = self._text(ids)
            end = find_stop(text, self._stop)
            if end is not None:
                self.stopped = True
                count = self._count(ids, passed, end)
                yield ids[passed:count]
                self.rest = text[len(self._text(ids[:count])) : end]
                return
            count = self._count(ids, passed, len(text) - self._held_back(text))
            if count > passed:
                yield ids[passed:count]
                passed = count
        yield ids[passed:]

    def _text(self, ids: Sequence[int]) -> str:
        return answer_text(self._vocabulary, self._prompt, np.array(ids, np.int32))

    def _count(self, ids: Sequence[int], passed: int, length: int) -> int:
        """Return how many ids have at most `length` characters together."""
        count = len(ids)
        while count > passed and len(self._text(ids[:count])) > length:
            count -= 1
        return count

    def _held_back(self, text: str) -> int:
        """Return the length of the longest end of the text that begins a stop string."""
        longest = min(len(text), max(map(len, self._stop)) - 1)
        return next((n for n in range(longest, 0, -1) if any(s.startswith(text[-n:]) for s in self._stop)), 0)
