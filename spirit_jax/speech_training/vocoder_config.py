"""Configuration of a vocoder's training. Reading it never starts JAX."""

import dataclasses
from typing import Literal

from spirit_jax.models.hifigan_config import DiscriminatorConfig, HifiGanConfig, MelConfig
from spirit_jax.training.config import LoopConfig


@dataclasses.dataclass(frozen=True)
class GanOptimizerConfig:
    """AdamW of the generator and of the discriminators, each with its own moments. The defaults are published.

    Raises:
        ValueError: a value out of range.
    """

    learning_rate: float = 2e-4
    """Learning rate of the first epoch."""
    beta1: float = 0.8
    """Decay of the mean of gradients."""
    beta2: float = 0.99
    """Decay of the mean of squared gradients."""
    epsilon: float = 1e-8
    """Added to the root of the mean of squared gradients."""
    weight_decay: float = 0.01
    """Decoupled decay of all parameters, PyTorch's default."""
    decay: float = 0.999
    """Factor of the learning rate after each epoch."""
    decay_steps: int | None = None
    """Steps of an epoch; null: as many as the clips fill."""

    def __post_init__(self) -> None:
        for name in ("learning_rate", "epsilon"):
            if not getattr(self, name) > 0:
                raise ValueError(f"optimizer.{name} must be positive, found {getattr(self, name)}")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ValueError(f"optimizer.{name} must lie in [0, 1), found {getattr(self, name)}")
        if self.weight_decay < 0 or not 0 < self.decay <= 1:
            raise ValueError(
                f"optimizer: weight_decay must not be negative and decay must lie in (0, 1], found "
                f"{self.weight_decay} and {self.decay}"
            )
        if self.decay_steps is not None and self.decay_steps < 1:
            raise ValueError(f"optimizer.decay_steps must be positive, found {self.decay_steps}")


@dataclasses.dataclass(frozen=True)
class VocoderTraining:
    """Training of a unit HiFi-GAN on the units of the parts before it. The defaults are the Expresso recipe's.

    Clips shorter than a crop are not used. The sizes of the tables of units and speakers in `network` are
    those of the encoders and of the corpus.

    Raises:
        ValueError: a value out of range.
    """

    network: HifiGanConfig = HifiGanConfig()
    """Shape of the generator."""
    discriminators: DiscriminatorConfig = DiscriminatorConfig()
    """Shape of the discriminators, which are dropped after training."""
    mel: MelConfig = MelConfig()
    """Spectrum of the mel loss."""
    samples: int = 8960
    """Samples of a crop."""
    rows: int = 16
    """Crops of a step."""
    peak: float | None = 0.95
    """Peak that every clip is scaled to; null leaves clips as they are."""
    mel_weight: float = 45.0
    """Weight of the mel loss."""
    feature_weight: float = 2.0
    """Weight of the feature matching loss."""
    duration_weight: float = 1.0
    """Weight of the duration predictor's loss."""
    adversarial_start: int = 0
    """Step from which the discriminators take part. Before it, the mel and the duration loss alone train the generator,
    which saves the discriminators' share of the time; published recipes start at 0."""
    encoders: str | None = None
    """A checkpoint directory whose encoders give the units, such as the converted released one; null: this run's."""
    init_from: str | None = None
    """A checkpoint directory whose vocoder training begins with, to add a voice to it; null for fresh weights. The
    encoders must be those of the vocoder."""
    speakers: list[str] | None = None
    """Speakers whose clips are used, such as those of clean recordings; null: all."""
    styles: str | None = None
    """Table of each clip's style (`id,label` in CSV or TSV, or a JSON object) for the global styles of a Base vocoder,
    such as the speaking styles of Expresso; null for none."""
    on_bad_label: Literal["stop", "skip"] = "stop"
    """Whether clips that the table does not name stop the run or are skipped."""
    optimizer: GanOptimizerConfig = GanOptimizerConfig()
    """How both networks are updated."""
    loop: LoopConfig = LoopConfig(steps=500_000, evaluate_every=5000, sample_every=5000)
    """Run length and intervals."""
    measured_clips: int = 16
    """Held-out clips that each evaluation speaks again in full: mel distance, F0 and, if the packages are installed,
    word error rate and predicted opinion score. 0: none."""
    sampled_clips: int = 3
    """Held-out clips whose audio and spectra are written as samples."""

    def __post_init__(self) -> None:
        hop = self.network.code_hop_size
        if self.samples % hop or self.samples < 3 * hop:
            raise ValueError(f"samples must be a multiple of {hop} and at least {3 * hop}, found {self.samples}")
        if self.samples <= (self.mel.window - self.mel.hop) // 2 or self.samples < self.mel.hop:
            raise ValueError(f"samples {self.samples} are too short for the mel spectrum's window {self.mel.window}")
        for name in ("rows", "mel_weight"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")
        counted = ("feature_weight", "duration_weight", "adversarial_start", "measured_clips", "sampled_clips")
        for name in counted:
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, found {getattr(self, name)}")
        if self.peak is not None and not 0 < self.peak <= 1:
            raise ValueError(f"peak must lie in (0, 1], found {self.peak}")
        if self.on_bad_label not in ("stop", "skip"):
            raise ValueError(f"on_bad_label must be stop or skip, found {self.on_bad_label!r}")
        if self.loop.evaluate_tasks:
            raise ValueError("loop.evaluate_tasks: tasks of language models, not of a part of a speech tokenizer")
