"""Released pitch units: F0 by FCPE or pYAAPT, normalized and quantized by a VQ-VAE to 12.5 Hz."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self, get_args

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models.fcpe import FCPE, PITCH_HOP, FCPEConfig, contour, f0_from_bins, log_mel
from spirit_jax.models.vqvae import VQVAE, normalize_f0
from spirit_jax.models.vqvae_config import VQVAEConfig
from spirit_jax.speech.f0 import contour as contour_by_autocorrelation
from spirit_jax.speech.protocols import F0Extractor, VoiceError
from spirit_jax.speech.released.batches import PADDED_LENGTHS, encode_clips, jit_float32, replicate

AUTOCORRELATION = "autocorrelation"
"""The extractor of `speech.f0`, with which parts are trained here that need neither FCPE's weights nor pYAAPT."""

Contour = tuple[Float[np.ndarray, " T"], Float[np.ndarray, " T"]]
"""F0 in Hz and voicing (0 or 1) at 200 Hz."""


def pyaapt(audio: Float[np.ndarray, " R"], interpolate: bool = True) -> Contour:
    """F0 and voicing by pYAAPT, the paper's extractor: float64 [R // 80] each (docs/formats.md, "Pitch").

    Args:
        audio: float32 [R] at 16 kHz.
        interpolate: give unvoiced frames the line between their voiced neighbors. A clip without a voice is 0.

    Raises:
        ImportError: AMFM-decompy is not installed; says how to get it.
    """
    try:
        from amfm_decompy import basic_tools, pYAAPT
    except ImportError as error:
        raise ImportError("f0='pyaapt' needs AMFM-decompy: pip install 'spirit_jax[pyaapt]'") from error
    audio = np.asarray(audio[: len(audio) // PITCH_HOP * PITCH_HOP], np.float32)
    peak = np.abs(audio).max(initial=np.float32(0))
    # float32 as in the reference: the last bit of a sample can move a lag.
    scaled = audio / peak * np.float32(0.95) if peak else audio
    signal = basic_tools.SignalObj(np.pad(scaled, 2 * PITCH_HOP), SAMPLE_RATE)
    options = {"frame_length": 20.0, "frame_space": 1000 * PITCH_HOP / SAMPLE_RATE, "nccf_thresh1": 0.25}
    pitch = pYAAPT.yaapt(signal, **options, tda_frame_length=25.0)
    f0 = np.array(pitch.samp_values, np.float64)
    (voiced,) = np.nonzero(f0)
    if interpolate and len(voiced):
        f0 = np.interp(np.arange(len(f0)), voiced, f0[voiced])
    return f0, np.asarray(pitch.vuv, np.float64)


class VQVAEPitch:
    """Part kind "vqvae": an F0 contour at 200 Hz, relative to its mean over voiced frames, as one code every 80 ms.

    config.json holds `vqvae` (the fields of `VQVAEConfig`), `interpolate` and `normalize` (bool), `fcpe` (the fields of
    `FCPEConfig`) if FCPE's weights are part of the checkpoint, `speaker_f0_mean` (Hz by speaker) if the released files
    had statistics of speakers, and `f0` if the part was trained with an extractor of its own: "pyaapt", or
    "autocorrelation", that of `speech.f0`. The arrays are `vqvae/...` and `fcpe/...` (docs/formats.md, "Pitch").
    """

    kind: ClassVar[str] = "vqvae"

    def __init__(self, config: Mapping[str, Any], arrays: dict[str, Any], f0: F0Extractor = "fcpe"):
        """The part from its config.json and arrays.

        Args:
            config: the content of config.json.
            arrays: the arrays, as stored.
            f0: "fcpe", or "pyaapt", with which the released quantizer was trained; it runs on the host and is slow. A
                part whose config has `f0` uses that one.

        Raises:
            KeyError, TypeError: an entry or an array is missing.
            CheckpointError: "fcpe" is asked for and the checkpoint has no FCPE weights.
            ValueError: an unknown extractor.
        """
        if f0 not in get_args(F0Extractor):
            raise ValueError(f"f0 must be one of {', '.join(get_args(F0Extractor))}, found {f0!r}")
        extractor = config.get("f0", f0)
        if extractor not in (*get_args(F0Extractor), AUTOCORRELATION):
            raise CheckpointError(f"the pitch part finds F0 by {extractor!r}, which is unknown")
        if extractor == "fcpe" and "fcpe" not in config:
            raise CheckpointError("the pitch part holds no FCPE weights: convert with them, or use f0='pyaapt'")
        self._config, self._arrays, self.f0 = config, arrays, extractor
        vqvae = VQVAE(VQVAEConfig(**config["vqvae"]))
        # pYAAPT gives R // 80 frames, the others one more.
        self.minimum = PITCH_HOP * (vqvae.config.hop - (extractor != "pyaapt"))
        """Samples of the shortest clip that has a unit."""
        interpolate, normalize = config["interpolate"], config["normalize"]

        def extract(params: dict, audio_br: Array, lengths_b: Array):
            mel_btm, frames_b = log_mel(audio_br, lengths_b)
            likelihood_btk = FCPE(FCPEConfig(**config["fcpe"])).apply({"params": params["fcpe"]}, mel_btm, frames_b)
            f0_bt = f0_from_bins(jnp.asarray(likelihood_btk), params["fcpe"]["cent_table"])
            return contour(f0_bt, lengths_b, audio_br.shape[1], interpolate)

        def quantize(params: dict, f0_bt: Array, voiced_bt: Array, frames_b: Array, mean_b: Array | None):
            if normalize or mean_b is not None:
                f0_bt = normalize_f0(f0_bt, voiced_bt, mean_b)
            return vqvae.apply({"params": params["vqvae"]}, f0_bt, voiced_bt, frames_b, method="encode")

        def encode(params: dict, audio_br: Array, lengths_b: Array):
            return quantize(params, *extract(params, audio_br, lengths_b), None)

        params = replicate({name: arrays[name] for name in (("vqvae", "fcpe") if extractor == "fcpe" else ("vqvae",))})
        self._extract = functools.partial(jit_float32(extract), params)
        self._quantize = functools.partial(jit_float32(quantize), params)
        self._encode = functools.partial(jit_float32(encode), params)

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any], f0: F0Extractor = "fcpe") -> Self:
        """The part from its config.json and arrays; arguments and errors as in `__init__`."""
        return cls(config, arrays, f0)

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return dict(self._config)

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return self._arrays

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        return VQVAEConfig(**self._config["vqvae"]).codes

    def encode(
        self, audio: Float[np.ndarray, " R"], f0_mean: float | None = None, speaker: str | None = None
    ) -> Int[np.ndarray, " N"]:
        """Units of one clip, int32 [(R // 80 + 1) // 16]. Silence and noise have units too.

        Args:
            audio: float32 [R], 0.08 s to 100 s.
            f0_mean: the speaker's mean F0 in Hz, used instead of the clip's own.
            speaker: a speaker whose mean F0 the checkpoint stores, used instead of `f0_mean`.

        Raises:
            AudioError, VoiceError: as in `encode_batch`.
        """
        if f0_mean is None:
            return self.encode_batch([audio], speaker)[0]
        f0, voiced = self.contours([audio])[0]
        return self.quantize(f0, voiced, f0_mean)

    def encode_batch(
        self, clips: Sequence[Float[np.ndarray, " R"]], speaker: str | None = None
    ) -> list[Int[np.ndarray, " N"]]:
        """Units of each clip, in batches. A clip's units do not depend on the other clips.

        Raises:
            AudioError: a clip is too short or too long; says which one and the bounds.
            VoiceError: the checkpoint stores no mean F0 of this speaker; names speakers whose mean it stores.
        """
        if self.f0 == "fcpe" and speaker is None:
            return [codes for (codes,) in encode_clips(self._encode, clips, self.minimum, "pitch units")]
        mean = None if speaker is None else self._mean_of(speaker)
        return [self.quantize(f0, voiced, mean) for f0, voiced in self.contours(clips)]

    def _mean_of(self, speaker: str) -> float:
        means = self._config.get("speaker_f0_mean", {})
        if speaker not in means:
            known = ", ".join(sorted(means)[:8]) + (", ..." if len(means) > 8 else "") if means else "nobody"
            raise VoiceError(f"speaker {speaker!r} is not known: the checkpoint holds the mean F0 of {known}")
        return means[speaker]

    def contours(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Contour]:
        """F0 in Hz and voicing (0 or 1) of each clip at 200 Hz, not normalized.

        Raises:
            AudioError: a clip is too short or too long; says which one and the bounds.
        """
        if self.f0 == "fcpe":
            found = encode_clips(self._extract, clips, self.minimum, "pitch units")
            return [(f0, voiced) for f0, voiced in found]
        for index, clip in enumerate(clips):
            if clip.size < self.minimum:
                raise AudioError(f"clip {index}: pitch units need {self.minimum} samples (16 kHz), found {clip.size}")
        extract = contour_by_autocorrelation if self.f0 == AUTOCORRELATION else pyaapt
        return [extract(clip, self._config["interpolate"]) for clip in clips]

    def quantize(
        self, f0: Float[np.ndarray, " T"], voiced: Float[np.ndarray, " T"], f0_mean: float | None = None
    ) -> Int[np.ndarray, " N"]:
        """Codes of a contour at 200 Hz, int32 [T // 16].

        Args:
            f0: Hz.
            voiced: 0 or 1.
            f0_mean: the speaker's mean F0 in Hz, used instead of the contour's own.
        """
        # The contour of the shortest padded length that is long enough: no other shapes are compiled.
        size = next(size for length in PADDED_LENGTHS if (size := length // PITCH_HOP + 1) >= len(f0))
        f0_bt, voiced_bt = (np.pad(np.asarray(x, np.float32), (0, size - len(f0)))[None] for x in (f0, voiced))
        mean_b = None if f0_mean is None else jnp.full(1, f0_mean, jnp.float32)
        codes_bn, count_b = self._quantize(f0_bt, voiced_bt, np.array([len(f0)], np.int32), mean_b)
        return np.asarray(codes_bn)[0, : int(count_b[0])]
