"""Configuration of a speech tokenizer that is trained from scratch."""

import dataclasses

from spirit_jax.units import SIZES


@dataclasses.dataclass(frozen=True)
class SpeechTokenizerConfig:
    """Numbers of units of a speech tokenizer trained from scratch, and the amount of speech to learn them from.

    Raises:
        ValueError: a number is outside the range given below.
    """

    phonetic_units: int = 200
    """k-means clusters at 25 Hz, 2 to 500. Each needs a hundred frames (4 s) or more of training speech."""
    pitch_units: int = 32
    """F0 units at 12.5 Hz, 3 to 64. The first one is unvoiced."""
    style_units: int = 12
    """Clusters of F0 and energy statistics at 1 Hz, 1 to 100."""
    max_hours: float = 2.0
    """Most speech to learn from, in utterances drawn at random; 2 h take about 40 s."""

    def __post_init__(self):
        hubert, pitch, style = SIZES
        for name, units, lowest, highest in (
            ("phonetic_units", self.phonetic_units, 2, hubert - 1),
            ("pitch_units", self.pitch_units, 3, pitch),
            ("style_units", self.style_units, 1, style),
        ):
            if not lowest <= units <= highest:
                raise ValueError(f"{name} must lie in {lowest}..{highest}, found {units}")
        if not self.max_hours > 0:
            raise ValueError(f"max_hours must be positive, found {self.max_hours}")
