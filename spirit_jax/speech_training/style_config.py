"""Configuration of the style encoder's and of a classifier's training. Reading it never starts JAX."""

import dataclasses
from typing import Literal

from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.training.config import LoopConfig, OptimizerConfig

WAV2VEC2_BASE = ((512, 10, 5),) + ((512, 3, 2),) * 4 + ((512, 2, 2),) * 2
"""Convolutions of wav2vec 2.0: a frame every 20 ms."""


@dataclasses.dataclass(frozen=True)
class StyleTargets:
    """The classes of each second of speech that the style encoder learns to predict.

    Raises:
        ValueError: a value out of range.
    """

    features: Literal["prosody", "layer"] = "prosody"
    """Features that are pooled over each second: statistics of pitch, brightness and pace (`prosody`), or the mean of a
    layer of a HuBERT (`layer`), which is closer to the Speechprop features of the paper; they were never released."""
    layer: int = 6
    """The layer, counted from 1."""
    teacher: str | None = None
    """A checkpoint directory with the HuBERT of `layer`; null: that of this run."""
    clusters: int = 100
    """k-means clusters: the style units."""
    by_speaker: bool = True
    """Whether features are normalized to mean 0 and variance 1 within each speaker, so that clusters are styles and
    not voices."""
    hours: float = 20.0
    """Most speech to cluster, in clips drawn at random."""

    def __post_init__(self) -> None:
        if not 1 <= self.clusters <= 100:
            raise ValueError(f"targets.clusters must lie in 1..100, found {self.clusters}")
        if self.layer < 1 or not self.hours > 0:
            raise ValueError(f"targets: layer and hours must be positive, found {self.layer} and {self.hours}")


@dataclasses.dataclass(frozen=True)
class _Classifier:
    """The options that the style encoder and a classifier of labels share."""

    encoder: Wav2Vec2Config = Wav2Vec2Config(conv_layers=WAV2VEC2_BASE)
    """Shape of the wav2vec 2.0 encoder; the defaults are wav2vec2-base, 95 M parameters with the head."""
    projection_size: int = 256
    """Width of the layer between the encoder and the mean over a second."""
    init_from: str | None = None
    """A checkpoint directory whose style part gives the encoder's first weights, such as a converted wav2vec2; null for
    fresh weights."""
    samples: int = 64_000
    """Samples of a crop; a multiple of the 50 frames of a window, 16,000 samples."""
    shortest: int = 16_000
    """Clips with fewer samples are skipped."""
    rows: int = 32
    """Crops of a step."""
    accumulate: int = 1
    """Parts that a step is worked through in, to save memory."""
    matmul_precision: Literal["float32", "bfloat16"] = "float32"
    """How TPUs and GPUs multiply. float32: exactly, in six passes of a TPU; bfloat16: in one pass of factors that TPUs
    round to bfloat16 and GPUs to TF32, with sums, weights and all else in float32. CPUs always multiply exactly."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=3e-5,
        schedule="linear",
        final_fraction=0.0,
        warmup_steps=1000,
        beta2=0.999,
        epsilon=1e-8,
        weight_decay=0.01,
        clip_norm=1.0,
    )
    """AdamW."""
    loop: LoopConfig = LoopConfig(steps=20_000, evaluate_every=1000, sample_every=0)
    """Run length and intervals."""

    def __post_init__(self) -> None:
        window = 50 * self.encoder.hop
        if self.samples < window or self.samples % window:
            raise ValueError(f"samples must be a multiple of the {window} samples of a window, found {self.samples}")
        if not self.encoder.receptive_field <= self.shortest <= self.samples:
            raise ValueError(
                f"shortest must lie between a frame of {self.encoder.receptive_field} samples and samples "
                f"{self.samples}, found {self.shortest}"
            )
        for name in ("rows", "accumulate", "projection_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        if self.loop.evaluate_tasks:
            raise ValueError("loop.evaluate_tasks: tasks of language models, not of a part of a speech tokenizer")


@dataclasses.dataclass(frozen=True)
class StyleTraining(_Classifier):
    """Training of the style encoder: a wav2vec 2.0 that predicts the cluster of each second (paper, section 3.1).

    Raises:
        ValueError: a value out of range.
    """

    targets: StyleTargets = StyleTargets()
    """The classes."""


@dataclasses.dataclass(frozen=True)
class ClassifierTraining(_Classifier):
    """Training of a wav2vec 2.0 that predicts labels of clips, such as emotions or speakers, for evaluation.

    Raises:
        ValueError: a value out of range.
    """

    labels: str = "speaker"
    """`speaker`, or a table of each clip's label: `id,label` in CSV or TSV, or a JSON object."""
    on_bad_label: Literal["stop", "skip"] = "stop"
    """Whether clips that the table does not name stop the run or are skipped."""
