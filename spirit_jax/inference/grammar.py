"""An automaton that keeps generated speech well formed, as units out of a speech tokenizer are.

After `[Speech]` come a style, a pitch and a phonetic unit (Base: a phonetic unit), then units in any order, no phonetic or pitch
unit equal to the one before it in its stream, until `[Text]` or the end of the document; units come after `[Speech]` only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Int

from spirit_jax.vocabulary import TOKEN_KINDS, Vocabulary

OUTSIDE, STYLE_NEXT, PITCH_NEXT, HUBERT_NEXT, INSIDE, FREE = range(6)
"""Stages. FREE is that of rows without a grammar: everything may come, always."""

_TEXT, _HUBERT, _PITCH, _STYLE, _CONTROL, _TO_TEXT, _TO_SPEECH = range(7)  # classes of tokens

_ALLOWED = {
    OUTSIDE: (_TEXT, _CONTROL, _TO_TEXT, _TO_SPEECH),
    STYLE_NEXT: (_STYLE,),
    PITCH_NEXT: (_PITCH,),
    HUBERT_NEXT: (_HUBERT,),
    INSIDE: (_HUBERT, _PITCH, _STYLE, _CONTROL, _TO_TEXT),
    FREE: tuple(range(7)),
}


class Grammar(NamedTuple):
    """The automaton of a vocabulary, as arrays."""

    allowed_sv: Bool[Array, "S V"]
    """Which tokens may come in each stage."""
    class_v: Int[Array, " V"]
    """The class of each token."""
    next_sc: Int[Array, "S C"]
    """The stage after a token of each class."""

    @classmethod
    def of(cls, vocabulary: Vocabulary, rows: int) -> "Grammar":
        """That of a vocabulary, for an embedding of `rows` rows."""
        assert TOKEN_KINDS == ("text", "hubert", "pitch", "style", "control")
        class_v = np.full(rows, _CONTROL, np.int32)
        class_v[: vocabulary.size] = vocabulary.token_kinds[: vocabulary.size]
        class_v[vocabulary.text_id], class_v[vocabulary.speech_id] = _TO_TEXT, _TO_SPEECH
        first = STYLE_NEXT if vocabulary.variant == "expressive" else HUBERT_NEXT
        next_sc = np.empty((6, 7), np.int32)
        next_sc[:] = [OUTSIDE, INSIDE, INSIDE, INSIDE, OUTSIDE, OUTSIDE, first]
        next_sc[STYLE_NEXT, _STYLE], next_sc[PITCH_NEXT, _PITCH] = PITCH_NEXT, HUBERT_NEXT
        next_sc[FREE] = FREE
        allowed_sv = np.stack([np.isin(class_v, _ALLOWED[stage]) for stage in range(6)])
        return cls(allowed_sv, class_v, next_sc)

    def start(self, ids: Sequence[int], speech_only: bool) -> np.ndarray:
        """The state after a prompt, int32 [3]: stage, and the last phonetic and pitch ids of its stretch of speech, -1 for none.

        Where only speech may come and the prompt does not say `[Speech]`, the state is that after it.
        """
        state = np.array([OUTSIDE, -1, -1], np.int32)
        for index in ids:
            kind = self.class_v[index]
            state[0] = self.next_sc[state[0], kind]
            if kind in (_HUBERT, _PITCH):
                state[kind] = index
            elif kind != _STYLE:
                state[1:] = -1
        if speech_only and state[0] == OUTSIDE:
            state[0] = self.next_sc[OUTSIDE, _TO_SPEECH]
        return state

    def forbidden(self, state_b3: Int[Array, "B 3"]) -> Bool[Array, "B V"]:
        """What may not come next."""
        ids_v = jnp.arange(self.class_v.shape[0])
        repeated_bv = (ids_v == state_b3[:, 1:2]) | (ids_v == state_b3[:, 2:3])
        return ~self.allowed_sv[state_b3[:, 0]] | (repeated_bv & (state_b3[:, :1] != FREE))

    def advance(self, state_b3: Int[Array, "B 3"], token_b: Int[Array, " B"]) -> Int[Array, "B 3"]:
        """The state after one more token."""
        class_b = self.class_v[token_b]
        stage_b = self.next_sc[state_b3[:, 0], class_b]
        inside_b = (class_b == _HUBERT) | (class_b == _PITCH) | (class_b == _STYLE)
        last = [
            jnp.where(class_b == kind, token_b, jnp.where(inside_b, state_b3[:, kind], -1))
            for kind in (_HUBERT, _PITCH)
        ]
        return jnp.stack([stage_b, *last], axis=1)


NO_GRAMMAR = np.array([FREE, -1, -1], np.int32)
"""The state of a row without a grammar."""
