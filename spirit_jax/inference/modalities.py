"""Names of the modalities of segments, answers and tasks. Importing this module never starts JAX."""

from typing import Literal

Kind = Literal["text", "speech"]
"""Modality of a segment."""
Modality = Literal["text", "speech", "any"]
"""Modalities that an answer may hold."""
MODALITIES: tuple[Modality, ...] = ("text", "speech", "any")
"""All modalities, in the order of the rows of `Constraints.forbidden_mv`."""
Task = Literal["asr", "tts"]
"""A pair that training has a recipe for: speech and its transcript (`asr`), or text and its speech (`tts`)."""
