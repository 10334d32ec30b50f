"""Divides a corpus into a part for training and a part for validation, the same on every machine and at every run."""

import hashlib
import logging
from collections.abc import Sequence

from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.readers import position
from spirit_jax.corpora.utterance import CorpusError, Utterance

VALIDATION = "validation"
"""Name of the split that is held out."""

_LOG = logging.getLogger(__name__)


class Subset(Sequence[Utterance]):
    """Some utterances of a corpus as a split of their own; the members are those of `inputs.Input`."""

    def __init__(self, corpus: Input, split: str, indices: Sequence[int], what: str):
        """Choose the utterances.

        Args:
            corpus: the whole.
            split: name of the split.
            indices: positions of the utterances in the corpus.
            what: describes the choice, for the fingerprint.
        """
        self._corpus, self._indices, self._what = corpus, indices, what
        self.name, self.split, self.location, self.has_speech = corpus.name, split, corpus.location, corpus.has_speech
        self.splits = corpus.splits

    def __len__(self) -> int:
        return len(self._indices)

    def __getitem__(self, index: int) -> Utterance:
        return self._corpus[self._indices[position(index, len(self), self.location)]]

    @property
    def fingerprint(self) -> str:
        """sha256 (hex) of the fingerprint of the corpus and the choice."""
        return hashlib.sha256(f"{self._corpus.fingerprint} {self._what} {self.split}".encode()).hexdigest()


def hold_out(corpus: Input, fraction: float) -> tuple[Subset, Subset]:
    """The corpus without about `fraction` of it, and that part as the split `validation`.

    Whole speakers are held out if there are enough of them, so that validation hears voices that training did not;
    otherwise utterances or documents. The choice depends on the hash of the speaker's name or the id. It stays the same
    when the corpus grows.

    Raises:
        CorpusError: fewer than two utterances can be read, or both parts would have one name.
    """
    if corpus.split == VALIDATION:
        raise CorpusError(f"{corpus.location}: split {VALIDATION!r} cannot be divided into itself; name another split")
    names: list[tuple[str, str] | None] = [_names(corpus, index) for index in range(len(corpus))]
    speakers = {name[0] for name in names if name} - {""}
    by_speaker = len(speakers) * fraction >= 1
    groups = [name and (name[0] if by_speaker and name[0] else name[1]) for name in names]
    shares = {group: _share(group) for group in groups if group is not None}
    if len(shares) < 2:
        raise CorpusError(f"{corpus.location}: at least two utterances are needed to hold some of them out")
    least = min(shares, key=lambda group: (shares[group], group))
    chosen = {group for group, share in shares.items() if share < fraction} or {least}
    if len(chosen) == len(shares):
        chosen.discard(max(shares, key=lambda group: (shares[group], group)))
    held = [index for index, group in enumerate(groups) if group is not None and group in chosen]
    kept = [index for index, group in enumerate(groups) if group is None or group not in chosen]
    what = f"{len(chosen)} of {len(speakers)} speakers" if by_speaker else "chosen by the hash of the id"
    _LOG.info("%s: %d of %d utterances for validation, %s", corpus.name, len(held), len(names), what)
    choice = f"held out {fraction}"
    return Subset(corpus, corpus.split, kept, choice), Subset(corpus, VALIDATION, held, choice)


def _names(corpus: Input, index: int) -> tuple[str, str] | None:
    """Speaker and id of an utterance; None if it cannot be read, which the part for training then counts."""
    try:
        utterance = corpus[index]
    except CorpusError:
        return None
    return utterance.speaker, utterance.id


def _share(name: str) -> float:
    """A number in [0, 1) from the hash of a name."""
    return int.from_bytes(hashlib.sha256(name.encode("utf-8", "surrogatepass")).digest()[:8], "big") / 2.0**64
