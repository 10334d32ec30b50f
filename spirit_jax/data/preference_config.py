"""The preferences of a run. Reading a config needs this, and never starts JAX."""

import dataclasses
from typing import Literal

from spirit_jax.data.pairs import check_template


@dataclasses.dataclass(frozen=True)
class PreferenceData:
    """The preferences of a run.

    Raises:
        ValueError: an unknown template.
    """

    path: str
    """Directory of `SPLIT.jsonl` files."""
    split: str = "train"
    """Split to train on."""
    held_out_split: str | None = None
    """Split to evaluate on; null for none."""
    template: str = "plain"
    """Text around inputs and answers: plain, asr, tts, intent, emotion, answer, chat."""
    on_bad_record: Literal["error", "skip"] = "error"
    """Reaction to a preference that cannot be used, such as one with an answer that is longer than a row: stop, or
    count it and leave it out."""

    def __post_init__(self) -> None:
        check_template(self.template)
