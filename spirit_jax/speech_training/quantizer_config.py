"""Configuration of the quantizers of HuBERT's features. Reading it never starts JAX."""

import dataclasses
from typing import Literal

from spirit_jax.training.config import LoopConfig, OptimizerConfig
from spirit_jax.units import HUBERT, SIZES


@dataclasses.dataclass(frozen=True)
class UnitsConfig:
    """Phonetic units: clusters of a layer of a HuBERT by k-means.

    Raises:
        ValueError: a number out of range.
    """

    layer: int = 11
    """The layer, from 1."""
    units: int = 500
    """Number of clusters."""
    hours: float = 100.0
    """Most speech that k-means learns from, in clips drawn at random."""
    restarts: int = 20
    """Starts of k-means that are tried."""
    encoder: str | None = None
    """Checkpoint directory whose HuBERT is used; null: the last iteration of this run."""

    def __post_init__(self) -> None:
        most = SIZES[HUBERT] - 1  # the last of the vocabulary's units is the blank of the linear quantizer
        if not 2 <= self.units <= most:
            raise ValueError(f"units.units must lie in 2..{most}, found {self.units}")
        for name in ("layer", "hours", "restarts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"units.{name} must be positive, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """How audio is changed while its words stay the same; each row gets one of the four changes at random.

    The ranges are those of Gat et al. 2022 (arXiv 2209.15483, section 4), except that reverberation and noise are
    made here and not taken from recordings.

    Raises:
        ValueError: a range that is empty or out of bounds.
    """

    stretch: tuple[float, float] = (0.8, 1.2)
    """Factors of the speed at equal pitch."""
    shift: tuple[float, float] = (-4.0, 4.0)
    """Change of the pitch in semitones at equal speed."""
    reverberation_s: tuple[float, float] = (0.1, 0.5)
    """Seconds in which an echo falls by 60 dB."""
    noise_db: tuple[float, float] = (5.0, 15.0)
    """Level of the speech above white or pink noise or another clip, in dB."""

    def __post_init__(self) -> None:
        bounds = {"stretch": (0.25, 4), "shift": (-24, 24), "reverberation_s": (0, 5), "noise_db": (-60, 120)}
        for name, (lowest, highest) in bounds.items():
            low, high = getattr(self, name)
            if not lowest <= low <= high <= highest:
                raise ValueError(f"augment.{name} must be two ascending numbers in {lowest}..{highest}")


@dataclasses.dataclass(frozen=True)
class QuantizerTraining:
    """The augmentation-invariant linear quantizer (Gat et al. 2022, arXiv 2209.15483).

    A student of three linear layers reads the features of changed audio, and CTC teaches it the units that the teacher
    gives for the unchanged audio. The first teacher is k-means; each further round has the student before as teacher.

    Raises:
        ValueError: a value out of range.
    """

    rounds: int = 2
    """How often a student is trained."""
    start: Literal["random", "teacher"] = "random"
    """Initial weights: random ones, as published, or such that the student gives its teacher's units, which saves a
    short run the time to learn them."""
    augment: AugmentConfig = AugmentConfig()
    """How audio is changed."""
    rows: int = 32
    """Clips of a step, over all devices."""
    samples: int = 160_000
    """Samples of a row before its audio is changed; longer clips are cropped, shorter ones padded."""
    shortest: int = 16_000
    """Clips with fewer samples are skipped."""
    accumulate: int = 1
    """Parts that a step works through one after the other to save memory."""
    matmul_precision: Literal["float32", "bfloat16"] = "float32"
    """How TPUs and GPUs multiply. float32: exactly, in six passes of a TPU; bfloat16: in one pass of factors that TPUs
    round to bfloat16 and GPUs to TF32, with sums, weights and all else in float32. CPUs always multiply exactly."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=1e-4, beta2=0.999, epsilon=1e-8, weight_decay=0.0, clip_norm=1.0
    )
    """Adam."""
    loop: LoopConfig = LoopConfig(steps=20_000)
    """Run length of a round, and intervals."""

    def __post_init__(self) -> None:
        for name in ("rounds", "rows", "accumulate"):
            if getattr(self, name) < 1:
                raise ValueError(f"quantizer.{name} must be positive, found {getattr(self, name)}")
        if not 1280 <= self.shortest <= self.samples:
            raise ValueError(f"quantizer.shortest {self.shortest} must lie between 1280 and samples {self.samples}")
        if self.loop.evaluate_tasks:
            raise ValueError("loop.evaluate_tasks: tasks of language models, not of a part of a speech tokenizer")
