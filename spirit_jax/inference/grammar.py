"""Which tokens may be generated: those of the modality that was asked for and, on request, those of the unit grammar.

The grammar is an automaton that keeps generated speech as a speech tokenizer would have written it. After `[Speech]`
come a style, a pitch and a phonetic unit (Spirit LM Base: a phonetic unit), then units in any order until `[Text]` or
the end of the document. No phonetic or pitch unit equals the one before it in its stream. No unit comes before
`[Speech]`.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from spirit_jax.inference.prompts import MODALITIES
from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary

OUTSIDE, STYLE_NEXT, PITCH_NEXT, HUBERT_NEXT, INSIDE, FREE = range(6)
"""Stages of the automaton. Three of them allow one kind of unit. Rows without a grammar stay in FREE, which allows
every token."""

_TEXT, _HUBERT, _PITCH, _STYLE, _CONTROL, _TO_TEXT, _TO_SPEECH = range(7)  # classes of tokens

_ALLOWED = {
    OUTSIDE: (_TEXT, _CONTROL, _TO_TEXT, _TO_SPEECH),
    STYLE_NEXT: (_STYLE,),
    PITCH_NEXT: (_PITCH,),
    HUBERT_NEXT: (_HUBERT,),
    INSIDE: (_HUBERT, _PITCH, _STYLE, _CONTROL, _TO_TEXT),
    FREE: tuple(range(7)),
}

NO_GRAMMAR = np.array([FREE, -1, -1], np.int32)
"""The state of a row without a grammar."""


class Grammar(NamedTuple):
    """The automaton of a vocabulary, as arrays. A state is int32 [3]: the stage, and the last phonetic and pitch ids of
    the current stretch of speech, or -1."""

    allowed_sv: Bool[Array | np.ndarray, "S V"]
    """Tokens that may come next in each stage."""
    class_v: Int[Array | np.ndarray, " V"]
    """The class of each token."""
    next_sc: Int[Array | np.ndarray, "S C"]
    """The stage after a token of each class."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, embedding_rows: int) -> "Grammar":
        """Build the automaton of a vocabulary, for a model with this many rows in its embedding."""
        assert TOKEN_KINDS == ("text", "hubert", "pitch", "style", "control")
        class_v = np.full(embedding_rows, _CONTROL, np.int32)
        class_v[: vocabulary.size] = vocabulary.token_kinds[: vocabulary.size]
        class_v[vocabulary.text_id], class_v[vocabulary.speech_id] = _TO_TEXT, _TO_SPEECH
        first = STYLE_NEXT if vocabulary.variant == "expressive" else HUBERT_NEXT
        next_sc = np.empty((6, 7), np.int32)
        next_sc[:] = [OUTSIDE, INSIDE, INSIDE, INSIDE, OUTSIDE, OUTSIDE, first]
        next_sc[STYLE_NEXT, _STYLE], next_sc[PITCH_NEXT, _PITCH] = PITCH_NEXT, HUBERT_NEXT
        next_sc[FREE] = FREE
        allowed_sv = np.stack([np.isin(class_v, _ALLOWED[stage]) for stage in range(6)])
        return cls(allowed_sv=allowed_sv, class_v=class_v, next_sc=next_sc)

    def start(self, ids: Sequence[int] | Int[np.ndarray, " N"], speech_only: bool) -> Int[np.ndarray, " 3"]:
        """Return the state after a prompt.

        Args:
            speech_only: only speech may follow, as if `[Speech]` stood at the end of a prompt that ends in text.
        """
        class_v, next_sc = np.asarray(self.class_v), np.asarray(self.next_sc)
        state = np.array([OUTSIDE, -1, -1], np.int32)
        for token in ids:
            token_class = class_v[token]
            state[0] = next_sc[state[0], token_class]
            if token_class in (_HUBERT, _PITCH):
                state[token_class] = token
            elif token_class != _STYLE:
                state[1:] = -1
        if speech_only and state[0] == OUTSIDE:
            state[0] = next_sc[OUTSIDE, _TO_SPEECH]
        return state

    def forbidden(self, state_b3: Int[Array | np.ndarray, "B 3"]) -> Bool[Array, "B V"]:
        """Return which tokens may not come next in each row."""
        state_b3 = jnp.asarray(state_b3)
        allowed_bv = jnp.asarray(self.allowed_sv)[state_b3[:, 0]]
        ids_v = jnp.arange(self.class_v.shape[0])
        repeated_bv = (ids_v == state_b3[:, 1:2]) | (ids_v == state_b3[:, 2:3])
        return ~allowed_bv | (repeated_bv & (state_b3[:, :1] != FREE))

    def advance(
        self, state_b3: Int[Array | np.ndarray, "B 3"], token_b: Int[Array | np.ndarray, " B"]
    ) -> Int[Array, "B 3"]:
        """Return the state of each row after one more token."""
        state_b3, token_b = jnp.asarray(state_b3), jnp.asarray(token_b)
        class_b = jnp.asarray(self.class_v)[token_b]
        stage_b = jnp.asarray(self.next_sc)[state_b3[:, 0], class_b]
        is_unit_b = (class_b == _HUBERT) | (class_b == _PITCH) | (class_b == _STYLE)
        last = [
            jnp.where(class_b == stream, token_b, jnp.where(is_unit_b, state_b3[:, stream], -1))
            for stream in (_HUBERT, _PITCH)
        ]
        return jnp.stack([stage_b, *last], axis=1)


class Constraints(NamedTuple):
    """Tokens that may be generated, as arrays that the compiled steps read."""

    forbidden_mv: Bool[Array | np.ndarray, "M V"]
    """Ids that an answer in each of `MODALITIES` may not hold."""
    grammar: Grammar

    @classmethod
    def of(cls, vocabulary: Vocabulary, embedding_rows: int) -> "Constraints":
        """Build the constraints of a vocabulary, for a model with this many rows in its embedding."""
        return cls(
            forbidden_mv=forbidden_ids(vocabulary, embedding_rows), grammar=Grammar.of(vocabulary, embedding_rows)
        )

    @classmethod
    def none(cls, embedding_rows: int) -> "Constraints":
        """Allow every token: for a model without a vocabulary, as in a benchmark."""
        grammar = Grammar(
            allowed_sv=np.ones((6, embedding_rows), bool),
            class_v=np.zeros(embedding_rows, np.int32),
            next_sc=np.zeros((6, 7), np.int32),
        )
        return cls(forbidden_mv=np.zeros((len(MODALITIES), embedding_rows), bool), grammar=grammar)


def forbidden_ids(vocabulary: Vocabulary, embedding_rows: int) -> Bool[np.ndarray, "M V"]:
    """Return which ids may not be generated in each of `MODALITIES` (docs/formats.md, "Prompts and generation").

    Text forbids the modality tokens and all units. Speech forbids the modality tokens and all text, but `</s>` may end
    it. Any forbids nothing. Rows of the embedding without a token are never generated; the released code allows them
    and then fails.
    """
    forbidden = np.zeros((len(MODALITIES), embedding_rows), bool)
    text, speech = forbidden[MODALITIES.index("text")], forbidden[MODALITIES.index("speech")]
    text[vocabulary.text_size : vocabulary.size] = True
    speech[: vocabulary.hubert_offset] = True
    speech[list(vocabulary.end_ids)] = False
    forbidden[:, vocabulary.size :] = True
    return forbidden
