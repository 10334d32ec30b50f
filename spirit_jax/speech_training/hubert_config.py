"""Configuration of HuBERT's pre-training. Reading it never starts JAX."""

import dataclasses
from typing import Literal

from spirit_jax.models.wav2vec2_config import Wav2Vec2Config, Wav2Vec2Noise
from spirit_jax.speech.features import MEL_HOP, RECEPTIVE_FIELD, UNIT_HOP
from spirit_jax.training.config import LoopConfig, OptimizerConfig

LEAST_FILTER = 80
"""Taps of the shortest first convolution that can begin with mel filters: 5 ms."""


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """Which frames are masked: spans of one length from random starts, which may overlap (arXiv 2006.11477).

    Raises:
        ValueError: a number out of range.
    """

    probability: float = 0.8
    """Frames of all spans as a share of a clip's frames, if they did not overlap."""
    length: int = 10
    """Frames of a span."""
    least_spans: int = 2
    """Spans of a short clip."""

    def __post_init__(self) -> None:
        if not 0 < self.probability < 1:
            raise ValueError(f"masking.probability must lie in (0, 1), found {self.probability}")
        for name in ("length", "least_spans"):
            if getattr(self, name) < 1:
                raise ValueError(f"masking.{name} must be positive, found {getattr(self, name)}")


@dataclasses.dataclass(frozen=True)
class LabelConfig:
    """The classes of frames, which the network learns to predict: clusters of features by k-means.

    Raises:
        ValueError: a number out of range, or a layer without a teacher.
    """

    source: Literal["mfcc", "cepstra", "layer"] = "mfcc"
    """mfcc: MFCC with their first and second differences, for a first iteration, as published; cepstra: those of
    log-mel spectra from which the level of each voice is taken off, for short runs; layer: a layer of the iteration
    before or of `teacher`."""
    layer: int = 6
    """The teacher's layer, from 1."""
    teacher: str | None = None
    """Checkpoint directory whose phonetic part is the teacher; null: the iteration before in this run."""
    clusters: int = 100
    """Number of classes."""
    hours: float = 10.0
    """Most speech that k-means learns from, in clips drawn at random."""
    restarts: int = 5
    """Starts of k-means that are tried."""

    def __post_init__(self) -> None:
        for name in ("layer", "hours", "restarts"):
            if not getattr(self, name) > 0:
                raise ValueError(f"labels.{name} must be positive, found {getattr(self, name)}")
        if not 2 <= self.clusters <= 2**16:  # stored as 16-bit numbers
            raise ValueError(f"labels.clusters must lie in 2..65536, found {self.clusters}")


@dataclasses.dataclass(frozen=True)
class HubertTraining:
    """One iteration of HuBERT's pre-training (arXiv 2106.07447): the network predicts the classes of masked frames.

    Raises:
        ValueError: a value out of range.
    """

    encoder: Wav2Vec2Config = Wav2Vec2Config()
    """The network."""
    labels: LabelConfig = LabelConfig()
    """The classes."""
    masking: MaskConfig = MaskConfig()
    """Which frames are masked."""
    noise: Wav2Vec2Noise = Wav2Vec2Noise()
    """Dropout, layer drop, and the gradient of the feature extractor."""
    start: Literal["random", "previous"] = "random"
    """Initial weights: random ones, as published, or those of the iteration before in this run."""
    filters: Literal["random", "mel"] = "random"
    """Initial weights of the first convolution, if `start` is random: random ones, as published, or band-pass filters
    on the mel scale (arXiv 1711.01161), which save a short run the time to learn what a spectrum is."""
    rows: int = 32
    """Clips of a step, over all devices."""
    samples: int = 250_000
    """Samples of a row; longer clips are cropped, shorter ones padded."""
    shortest: int = 32_000
    """Clips with fewer samples are skipped."""
    projection: int = 256
    """Width in which frames and classes are compared."""
    temperature: float = 0.1
    """Divisor of the cosine similarities."""
    unmasked_weight: float = 0.0
    """Weight of the loss of frames that are not masked."""
    feature_penalty: float = 10.0
    """Weight of the mean square of the convolutional features."""
    accumulate: int = 1
    """Parts that a step works through one after the other to save memory."""
    matmul_precision: Literal["float32", "bfloat16"] = "float32"
    """How TPUs and GPUs multiply. float32: exactly, in six passes of a TPU; bfloat16: in one pass of factors that TPUs
    round to bfloat16 and GPUs to TF32, with sums, weights and all else in float32. CPUs always multiply exactly."""
    optimizer: OptimizerConfig = OptimizerConfig(
        learning_rate=5e-4,
        schedule="linear",
        final_fraction=0.0,
        warmup_steps=32_000,
        beta2=0.98,
        epsilon=1e-6,
        weight_decay=0.01,
        clip_norm=10.0,
    )
    """AdamW with the published values."""
    loop: LoopConfig = LoopConfig(steps=400_000)
    """Run length and intervals."""

    @property
    def label_hop(self) -> int:
        """Samples from one label to the next. Labels of audio stand every 10 ms, as in fairseq, so that a crop may
        begin between two frames; those of a layer are as far apart as its frames."""
        if self.labels.source == "layer" or self.encoder.hop % MEL_HOP:
            return self.encoder.hop
        return MEL_HOP

    def __post_init__(self) -> None:
        for name in ("rows", "projection", "temperature", "accumulate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        for name in ("unmasked_weight", "feature_penalty"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if not self.encoder.receptive_field <= self.shortest <= self.samples:
            raise ValueError(
                f"shortest {self.shortest} must lie between a frame of {self.encoder.receptive_field} samples and "
                f"samples {self.samples}"
            )
        frame = (self.encoder.hop, self.encoder.receptive_field)
        if self.labels.source == "cepstra" and frame != (UNIT_HOP, RECEPTIVE_FIELD):
            raise ValueError(
                f"labels.source cepstra: expected an encoder with a frame of {RECEPTIVE_FIELD} samples each {UNIT_HOP}"
                f", found one of {frame[1]} each {frame[0]}; use mfcc"
            )
        if self.filters == "mel" and self.encoder.conv_layers[0][1] < LEAST_FILTER:
            raise ValueError(
                f"filters mel: the first convolution of encoder.conv_layers has {self.encoder.conv_layers[0][1]} taps, "
                f"too few for a band-pass filter; expected at least {LEAST_FILTER}"
            )
        if self.encoder.position_norm != "weight":
            raise ValueError("encoder.position_norm must be weight: a batch norm of positions is not trained here")
        same = self.encoder.conv_layers[-1][0] == self.encoder.hidden_size
        if self.encoder.project_features == same:
            raise ValueError(
                f"encoder.project_features must be {str(not same).lower()}, as in fairseq, whose encoders project "
                "features to another width, and only then"
            )
        if self.loop.evaluate_tasks:
            raise ValueError("loop.evaluate_tasks: tasks of language models, not of a part of a speech tokenizer")
