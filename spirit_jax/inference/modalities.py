"""What segments, answers and tasks may hold. Reading a config needs these names, and never starts JAX."""

from typing import Literal

Kind = Literal["text", "speech"]
"""What a segment holds."""
Modality = Literal["text", "speech", "any"]
"""What an answer may hold."""
MODALITIES: tuple[Modality, ...] = ("text", "speech", "any")
"""All modalities, in the order of the rows of `Constraints.forbidden_mv`."""
Task = Literal["asr", "tts"]
"""A pair that training has a recipe for: speech and its transcript (`asr`), or text and its speech (`tts`)."""
