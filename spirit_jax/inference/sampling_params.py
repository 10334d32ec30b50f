"""Decoding options: how tokens are chosen and where an answer ends. A config needs them, and never starts JAX."""

import dataclasses
import numbers
from collections.abc import Mapping, Sequence
from typing import Any

from spirit_jax.core.errors import SpiritError

RELEASED_TOP_K = 50
"""Hugging Face's default, which the released code samples with when no top_k is given."""


_MAX_COUNT, _MAX_FLOAT = 2**31 - 1, 1e30  # what the device's numbers hold


class SamplingError(SpiritError):
    """A decoding option with an invalid value; the message names the option, the value and what was expected."""


@dataclasses.dataclass(frozen=True)
class SamplingParams:
    """Decoding options: how each token is chosen, and where an answer ends. The defaults decode greedily.

    Raises:
        SamplingError: a value is out of range.
    """

    temperature: float = 0.0
    """Divides the logits before a token is drawn; 0 takes the most likely token."""
    top_k: int = RELEASED_TOP_K
    """Keep this many of the most likely tokens; 0 keeps all."""
    top_p: float = 1.0
    """Keep the fewest most likely tokens that together have at least this probability."""
    min_p: float = 0.0
    """Keep tokens of at least this fraction of the most likely token's probability."""
    repetition_penalty: float = 1.0
    """Divides positive and multiplies negative logits of tokens that occurred in the prompt or the answer."""
    seed: int = 0
    """Draws depend on the seed and the position in the answer, never on the rest of the batch."""
    max_new_tokens: int = 200
    """Longest answer in tokens; the end of the document or of the model's context may come first."""
    stop: Sequence[str] = ()
    """Strings that end an answer; the answer is cut before the first of them. A single string counts as one."""
    grammar: bool = False
    """Keep speech well formed (see `spirit_jax.inference.grammar`); a poorly trained model may need it."""

    def __post_init__(self) -> None:
        if not isinstance(self.stop, str | Sequence):
            raise SamplingError(f"stop must be a string or a list of strings, found {self.stop!r}")
        object.__setattr__(self, "stop", (self.stop,) if isinstance(self.stop, str) else tuple(self.stop))
        for name, kind, valid, expected in (
            ("temperature", float, lambda value: 0 <= value <= _MAX_FLOAT, "0 or more"),
            ("top_k", int, lambda value: 0 <= value <= _MAX_COUNT, "0 or more"),
            ("top_p", float, lambda value: 0 < value <= 1, "above 0 and at most 1"),
            ("min_p", float, lambda value: 0 <= value <= 1, "between 0 and 1"),
            ("repetition_penalty", float, lambda value: 1 / _MAX_FLOAT <= value <= _MAX_FLOAT, "above 0"),
            ("seed", int, lambda value: True, "a whole number"),
            ("max_new_tokens", int, lambda value: 1 <= value <= _MAX_COUNT, "an integer of 1 or more"),
        ):
            value = getattr(self, name)
            if not _is(kind, value) or not valid(value):
                raise SamplingError(f"{name} must be {expected}, found {_shown(value)}")
        for stop in self.stop:
            if not isinstance(stop, str) or not stop:
                raise SamplingError(f"a stop string needs at least one character, found {_shown(stop)}")

    def override(self, **changes: Any) -> "SamplingParams":
        """Return a copy with the given fields replaced; a field given as None keeps its value.

        Raises:
            SamplingError: a value is out of range.
            TypeError: there is no such field.
        """
        return dataclasses.replace(self, **{name: value for name, value in changes.items() if value is not None})

    @classmethod
    def from_generation_config(cls, generation: Mapping[str, Any]) -> "SamplingParams":
        """Return the options that a checkpoint recommends, from the fields of Hugging Face's generation_config.json.

        Decoding is greedy unless `do_sample` is true. A missing or null field keeps the default.

        Raises:
            SamplingError: a value is not a number or is out of range; names the field.
        """
        fields = ("temperature", "top_k", "top_p", "min_p", "repetition_penalty", "max_new_tokens")
        values = {name: generation[name] for name in fields if generation.get(name) is not None}
        for name, value in values.items():
            if isinstance(value, bool) or not isinstance(value, int | float):
                raise SamplingError(f"generation: {name} must be a number, found {value!r}")
        if not generation.get("do_sample"):
            return cls().override(**values | {"temperature": 0.0})
        return cls(temperature=1.0).override(**values)


def _is(kind: type, value: Any) -> bool:
    """Whether a value is a number of a kind; NumPy's numbers count too, True and False do not."""
    if isinstance(value, bool):
        return False
    return isinstance(value, numbers.Integral if kind is int else numbers.Real)


def _shown(value: Any) -> str:
    try:
        return repr(value)[:60]
    except ValueError:  # a whole number of thousands of digits
        return "a number that is far too large"
