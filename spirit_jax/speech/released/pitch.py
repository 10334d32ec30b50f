"""Pitch units of the released kind: F0 by FCPE or pYAAPT, normalised and quantized by a VQ-VAE to 12.5 Hz."""

import functools
from collections.abc import Sequence
from typing import Any, ClassVar

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models.fcpe import FCPE, PITCH_HOP, FCPEConfig, contour, f0_from_bins, log_mel
from spirit_jax.models.vqvae import VQVAE, VQVAEConfig, normalize_f0
from spirit_jax.speech.released.batches import PADDED_LENGTHS, encode_clips, exact, replicate

F0_EXTRACTORS = ("fcpe", "pyaapt")


def pyaapt(audio: Float[np.ndarray, " R"], interpolate: bool = True) -> tuple[np.ndarray, np.ndarray]:
    """F0 in Hz and voicing (0 or 1) at 200 Hz by pYAAPT, float64 [R // 80] each (the paper's extractor).

    With `interpolate`, unvoiced frames take the line between their voiced neighbours; a clip without a voice is 0.

    Raises:
        ImportError: AMFM-decompy is not installed; says how to get it.
    """
    try:
        from amfm_decompy import basic_tools, pYAAPT
    except ImportError as error:
        raise ImportError("f0='pyaapt' needs AMFM-decompy: pip install 'spirit_jax[pyaapt]'") from error
    audio = np.asarray(audio[: len(audio) // PITCH_HOP * PITCH_HOP], np.float32)
    peak = np.abs(audio).max(initial=np.float32(0))
    scaled = audio / peak * np.float32(0.95) if peak else audio  # float32 like the reference: the last bit moves lags
    signal = basic_tools.SignalObj(np.pad(scaled, 2 * PITCH_HOP), SAMPLE_RATE)
    options = {"frame_length": 20.0, "frame_space": 1000 * PITCH_HOP / SAMPLE_RATE, "nccf_thresh1": 0.25}
    pitch = pYAAPT.yaapt(signal, **options, tda_frame_length=25.0)
    f0 = np.array(pitch.samp_values, np.float64)
    (voiced,) = np.nonzero(f0)
    if interpolate and len(voiced):
        f0 = np.interp(np.arange(len(f0)), voiced, f0[voiced])
    return f0, np.asarray(pitch.vuv, np.float64)


class VQVAEPitch:
    """Part kind "vqvae": an F0 contour at 200 Hz, less its mean over the voiced frames, as one code every 80 ms.

    config.json: `vqvae` (the fields of `VQVAEConfig`), `interpolate` and `normalize` (bool), `fcpe` (the fields of
    `FCPEConfig`) where FCPE's weights are part of the checkpoint, and `speaker_f0_mean` (Hz by speaker) where it came
    with statistics of speakers. Arrays: `vqvae/...` and `fcpe/...`.

    Args:
        f0: "fcpe", or "pyaapt" (host only, and slow: as the quantizer was trained).
    """

    kind: ClassVar[str] = "vqvae"

    def __init__(self, config: dict[str, Any], arrays: dict[str, Any], f0: str = "fcpe"):
        if f0 not in F0_EXTRACTORS:
            raise ValueError(f"f0 must be one of {F0_EXTRACTORS}, found {f0!r}")
        if f0 == "fcpe" and "fcpe" not in config:
            raise CheckpointError("the pitch part holds no FCPE weights: convert with them, or use f0='pyaapt'")
        self._config, self._arrays, self.f0 = config, arrays, f0
        vqvae = VQVAE(VQVAEConfig(**config["vqvae"]))
        self.minimum = PITCH_HOP * (vqvae.config.hop - (f0 == "fcpe"))  # FCPE gives R // 80 + 1 frames, pYAAPT R // 80
        interpolate, normalize = config["interpolate"], config["normalize"]

        def extract(params, audio_br, lengths_b):
            mel, frames = log_mel(audio_br, lengths_b)
            likelihood = FCPE(FCPEConfig(**config["fcpe"])).apply({"params": params["fcpe"]}, mel, frames)
            f0_bt = f0_from_bins(likelihood, params["fcpe"]["cent_table"])
            return contour(f0_bt, lengths_b, audio_br.shape[1], interpolate)

        def quantize(params, f0_bt, voiced_bt, frames_b, mean_b):
            if normalize or mean_b is not None:
                f0_bt = normalize_f0(f0_bt, voiced_bt, mean_b)
            return vqvae.apply({"params": params["vqvae"]}, f0_bt, voiced_bt, frames_b, method="encode")

        def encode(params, audio_br, lengths_b):
            return quantize(params, *extract(params, audio_br, lengths_b), None)

        run_extract, run_quantize, run_encode = exact(extract), exact(quantize), exact(encode)
        params = replicate({name: arrays[name] for name in ("vqvae", "fcpe")[: 1 + (f0 == "fcpe")]})
        self._extract = lambda *batch: run_extract(params, *batch)
        self._quantize = lambda *batch: run_quantize(params, *batch)
        self._encode = lambda *batch: run_encode(params, *batch)

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any], f0: str = "fcpe") -> "VQVAEPitch":
        return cls(config, arrays, f0)

    def config(self) -> dict[str, Any]:
        return self._config

    def arrays(self) -> dict[str, Any]:
        return self._arrays

    def encode(
        self, audio: Float[np.ndarray, " R"], f0_mean: float | None = None, speaker: str | None = None
    ) -> Int[np.ndarray, " N"]:
        """int32 units of 0.08 s to 100 s of audio, (R // 80 + 1) // 16 of them; silence and noise have units too.

        Args:
            f0_mean: Hz, the speaker's mean F0 where it is known, instead of the clip's own.
            speaker: one whose mean F0 the checkpoint holds, in its place.
        """
        if f0_mean is None:
            return self.encode_batch([audio], speaker)[0]
        return self.quantize(*self.contours([audio])[0], f0_mean)

    def encode_batch(
        self, clips: Sequence[Float[np.ndarray, " R"]], speaker: str | None = None
    ) -> list[Int[np.ndarray, " N"]]:
        """`encode` of each clip, in batches; whatever its neighbours, a clip gives what it gives alone.

        Raises:
            AudioError: a clip is too short or too long; says which and the bounds.
            ValueError: a speaker of whom the checkpoint holds no mean F0; names those of whom it does.
        """
        if self.f0 == "fcpe" and speaker is None:
            return [codes for (codes,) in encode_clips(self._encode, clips, self.minimum, "pitch units")]
        mean = None if speaker is None else self._mean_of(speaker)
        return [self.quantize(*contour_, mean) for contour_ in self.contours(clips)]

    def _mean_of(self, speaker: str) -> float:
        means = self._config.get("speaker_f0_mean", {})
        if speaker not in means:
            known = ", ".join(sorted(means)[:8]) + (", ..." if len(means) > 8 else "") if means else "nobody"
            raise ValueError(f"speaker {speaker!r} is not known: the checkpoint holds the mean F0 of {known}")
        return means[speaker]

    def contours(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[tuple[np.ndarray, np.ndarray]]:
        """(F0 in Hz, voiced 0 or 1) of each clip at 200 Hz, not normalised."""
        if self.f0 == "fcpe":
            return encode_clips(self._extract, clips, self.minimum, "pitch units")
        for index, clip in enumerate(clips):
            if clip.size < self.minimum:
                raise AudioError(f"clip {index}: pitch units need {self.minimum} samples (16 kHz), found {clip.size}")
        return [pyaapt(clip, self._config["interpolate"]) for clip in clips]

    def quantize(
        self, f0: Float[np.ndarray, " T"], voiced: Float[np.ndarray, " T"], f0_mean: float | None = None
    ) -> Int[np.ndarray, " N"]:
        """Codes int32 [T // 16] of a contour at 200 Hz; `f0_mean` as for `encode`."""
        size = next(size for length in PADDED_LENGTHS if (size := length // PITCH_HOP + 1) >= len(f0))
        pad = functools.partial(np.pad, pad_width=(0, size - len(f0)))
        mean = None if f0_mean is None else jnp.full(1, f0_mean, jnp.float32)
        rows = [pad(np.asarray(x, np.float32))[None] for x in (f0, voiced)]
        codes, count = self._quantize(*rows, np.array([len(f0)], np.int32), mean)
        return np.asarray(codes)[0, : int(count[0])]
