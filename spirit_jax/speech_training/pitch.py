"""The training of the pitch VQ-VAE as a part of a run: F0 of the clips, crops, and measures in Hz and cents."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, find, load_arrays
from spirit_jax.core.checksums import read_checksums
from spirit_jax.core.errors import SpiritError
from spirit_jax.parallel.processes import report
from spirit_jax.speech import f0
from spirit_jax.speech.released.pitch import AUTOCORRELATION, Contour, VQVAEPitch, pyaapt
from spirit_jax.speech.storage import read_part_config
from spirit_jax.speech_training.crops import Clips, Crop, CropData, CropShape, empty_crop
from spirit_jax.speech_training.labels import cached, compute_clips
from spirit_jax.speech_training.part import ConfiguredPart, Context, Outline, Prepared, RatioSummary
from spirit_jax.speech_training.pitch_config import PitchTraining
from spirit_jax.speech_training.pitch_rule import RATIOS, PitchRule
from spirit_jax.speech_training.release import save_trained_part
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.state import Params

Extract = Callable[[Sequence[np.ndarray]], Sequence[Contour]]
"""Finds the contours of clips."""


@dataclasses.dataclass(frozen=True, eq=False)
class Contours:
    """F0 and voicing of the clips of a split at 200 Hz, one clip after the other."""

    hertz: np.ndarray
    voiced: np.ndarray
    offsets: np.ndarray
    """Where each clip begins; clips that cannot be used, or have no voice, have no frames."""

    def of(self, index: int) -> Contour:
        """The contour of a clip.

        Raises:
            SpiritError: the clip cannot be used, or has no voiced frame.
        """
        part = slice(int(self.offsets[index]), int(self.offsets[index + 1]))
        if part.start == part.stop:
            raise SpiritError(f"clip {index} has no voiced frame, or could not be used")
        return np.asarray(self.hertz[part]), np.asarray(self.voiced[part], np.float32)


@dataclasses.dataclass(frozen=True)
class PitchRows:
    """Makes the arrays of a row from a crop of a clip and the clip's contour."""

    config: PitchTraining
    contours: Contours

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Mapping[str, Any]:
        """F0 as the encoder reads it, voicing [T], the mean that was taken from it, and the frames of the crop.

        Raises:
            SpiritError: the clip has no voiced frame.
        """
        del rng
        hertz, voiced = self.contours.of(crop.index)
        mean = float(hertz[voiced > 0].mean()) if self.config.normalize else 0.0
        total, first = self.config.samples // f0.CONTOUR_HOP, crop.start // f0.CONTOUR_HOP
        part = slice(first, first + min(total, crop.length // f0.CONTOUR_HOP))
        centered = np.where(hertz[part] != 0, hertz[part] - mean, 0)
        rest = total - len(centered)
        return {
            "f0_bt": np.pad(centered, (0, rest)).astype(np.float32),
            "voiced_bt": np.pad(voiced[part], (0, rest)).astype(np.float32),
            "mean_b": np.float32(mean),
            "frames_b": np.int32(len(centered)),
        }


@dataclasses.dataclass(frozen=True)
class PitchPart(ConfiguredPart):
    """The pitch quantizer of a run."""

    config: PitchTraining

    @property
    def name(self) -> str:
        """`pitch`."""
        return "pitch"

    def outline(self) -> Outline:
        """The step of the config."""
        c = self.config
        frames = c.samples // f0.CONTOUR_HOP
        contours = Contours(np.ones(frames), np.ones(frames), np.array([0, frames]))
        rule = PitchRule(c, make_optimizer(c.optimizer, c.loop.steps))
        return Outline(rule, PitchRows(c, contours)(empty_crop(c.samples), np.random.default_rng(0)))

    def prepare(self, context: Context) -> Prepared:
        """Find the F0 of the clips, and put the pieces together.

        Raises:
            SpiritError: no clip has a voice, or the extractor cannot be used.
        """
        config = self.config
        extract, described = extractor(config)
        made_from = {"extractor": described, "data": context.data}

        def make() -> dict[str, np.ndarray]:
            splits = (("train", context.train), ("held_out", context.held_out))
            return {
                f"{split}_{name}": array for split, clips in splits for name, array in _contours(clips, extract).items()
            }

        arrays = cached(context.directory / "contours", made_from, make)
        train, held_out = (
            Contours(*(arrays[f"{split}_{name}"] for name in ("hertz", "voiced", "offsets")))
            for split in ("train", "held_out")
        )
        mute = int((np.diff(train.offsets) == 0).sum())
        if mute == len(context.train):
            raise SpiritError(f"none of {mute} clips has a voiced frame: there is no pitch to learn from")
        if mute:
            report(f"pitch: {mute} of {len(context.train)} clips have no voiced frame or cannot be used: skipped")
        hop = f0.CONTOUR_HOP * config.network.hop
        data = CropData(
            train=context.train,
            held_out=context.held_out,
            shape=CropShape(config.samples, hop, hop),
            train_row=PitchRows(config, train),
            held_out_row=PitchRows(config, held_out),
            rows=config.rows,
            seed=context.seed,
        )

        def finish(params: Params) -> None:
            save_trained_part(context.run / SPEECH_TOKENIZER, self.name, self.trained(params))

        return Prepared(
            rule=PitchRule(
                config, make_optimizer(config.optimizer, config.loop.steps), context.seed, context.spike_sigmas
            ),
            summary=RatioSummary(RATIOS),
            batches=data.batches,
            held_out=data.held_out_batches,
            finish=finish,
        )

    def trained(self, params: Params) -> VQVAEPitch:
        """The part with these parameters."""
        config = self.config
        described: dict[str, Any] = {
            "interpolate": config.interpolate,
            "normalize": config.normalize,
            "vqvae": dataclasses.asdict(config.network),
        }
        arrays = {"vqvae": jax.device_get(params["vqvae"])}
        if config.fcpe_from is None:
            described["f0"] = config.f0
        else:
            fcpe, weights = read_fcpe(config.fcpe_from)
            described["fcpe"], arrays["fcpe"] = fcpe, weights
        return VQVAEPitch({"kind": VQVAEPitch.kind, **described}, arrays)


def read_fcpe(checkpoint: str) -> tuple[dict[str, Any], Params]:
    """Config and weights of FCPE in the pitch part of a checkpoint directory.

    Raises:
        CheckpointError: there are none.
    """
    directory = find(checkpoint, f"{SPEECH_TOKENIZER}/pitch")
    config = read_part_config(directory, (VQVAEPitch.kind,))
    if "fcpe" not in config:
        raise CheckpointError(f"{directory}: holds no weights of FCPE; convert with them, or choose another f0")
    return config["fcpe"], load_arrays(directory)["fcpe"]


def extractor(config: PitchTraining) -> tuple[Extract, Any]:
    """The function that finds the contours of clips, and what its results depend on, as JSON.

    Raises:
        SpiritError: it needs a package that is not installed, or weights that are not there.
    """
    described: dict[str, Any] = {"f0": config.f0, "interpolate": config.interpolate}
    if config.f0 == AUTOCORRELATION:
        return lambda clips: [f0.contour(clip, config.interpolate) for clip in clips], described
    if config.f0 == "pyaapt":

        def by_pyaapt(clips: Sequence[np.ndarray]) -> list[Contour]:
            try:
                return [pyaapt(clip, config.interpolate) for clip in clips]
            except ImportError as error:
                raise SpiritError(str(error)) from error

        return by_pyaapt, described
    assert config.fcpe_from is not None  # PitchTraining asks for it
    fcpe, weights = read_fcpe(config.fcpe_from)
    described["weights"] = read_checksums(find(config.fcpe_from, f"{SPEECH_TOKENIZER}/pitch"))
    part = {
        "interpolate": config.interpolate,
        "normalize": config.normalize,
        "vqvae": dataclasses.asdict(config.network),
        "fcpe": fcpe,
    }
    return VQVAEPitch(part, {"fcpe": weights, "vqvae": {}}).contours, described


def _contours(clips: Clips, extract: Extract) -> dict[str, np.ndarray]:
    """The contours of a split as arrays that `cached` can keep; those of clips without a voice are empty."""
    found = dict(compute_clips(clips.usable(), extract))
    none = np.zeros(0, np.float32)
    kept = [found[index] if index in found and found[index][1].any() else (none, none) for index in range(len(clips))]
    return {
        "hertz": np.concatenate([none, *(hertz for hertz, _ in kept)]).astype(np.float32),
        "voiced": np.concatenate([none, *(voiced for _, voiced in kept)]).astype(np.uint8),
        "offsets": np.cumsum([0, *(len(hertz) for hertz, _ in kept)]),
    }
