"""Where somebody speaks in a recording: by its energy, or by silero-vad's network where that package is installed."""

import functools
import importlib.metadata
import importlib.util
import pathlib
from typing import Any, Literal, Protocol, get_args

import numpy as np
from jaxtyping import Bool, Float, Int

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError

VoiceDetector = Literal["energy", "silero"]
DETECTORS: tuple[VoiceDetector, ...] = get_args(VoiceDetector)
"""What `open_voice_activity` opens by name."""

_FRAME_MS = 10
_WINDOW = 3 * _FRAME_MS * SAMPLE_RATE // 1000
_QUIET_DB = 35.0  # below the loudest part of a recording: no voice
_ABOVE_NOISE_DB = 6.0  # above the quietest part
_SHORTEST_PAUSE_MS, _SHORTEST_VOICE_MS = 200, 80

_CHUNK, _CONTEXT, _STATE = 512, 64, (2, 1, 128)  # samples, samples before them, and state of silero's network
_STARTS, _CONTINUES = 0.5, 0.35  # probabilities at which voice starts, and down to which it continues (silero's own)


class VoiceActivityError(SpiritError):
    """A detector of voice that is not installed; says what to install."""


class VoiceActivity(Protocol):
    """Finds the stretches of voice in recordings."""

    @property
    def name(self) -> str:
        """Name and version; work done under another name is done again."""
        ...

    def spans(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, "N 2"]:
        """Start and end of each stretch of voice, in milliseconds.

        Pauses shorter than 200 ms are part of a stretch, and stretches shorter than 80 ms are dropped.

        Args:
            audio: float32 [R] at 16 kHz.
        """
        ...


class EnergyActivity:
    """A frame holds voice if it is at most 35 dB below the loud frames of the recording and 6 dB above the quiet ones.

    Music and other sounds are taken for voice.
    """

    name: str = "energy"

    def spans(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, "N 2"]:
        """As `VoiceActivity.spans`."""
        hop = _FRAME_MS * SAMPLE_RATE // 1000
        if audio.size < _WINDOW:
            return np.zeros((0, 2), np.int64)
        # sums over hops, so that memory is a number a frame and not a window a frame
        count = audio.size // hop
        energy = np.square(audio[: count * hop].reshape(count, hop), dtype=np.float64).sum(axis=1)
        smooth = np.convolve(energy, np.ones(_WINDOW // hop), "same") / _WINDOW
        level = 10 * np.log10(smooth + 1e-12)
        loud, quiet = np.percentile(level, 95), np.percentile(level, 5)
        threshold = max(loud - _QUIET_DB, min(quiet + _ABOVE_NOISE_DB, loud - _ABOVE_NOISE_DB), -70.0)
        return _without_gaps(_stretches(level > threshold) * _FRAME_MS)


ENERGY = EnergyActivity()
"""The detector that is always there."""


class SileroActivity:
    """The network of silero-vad (MIT license), whose ONNX file is inside its wheel. It knows voice from other sounds.

    The package itself is not imported, because that would import torch.
    """

    def __init__(self) -> None:
        """
        Raises:
            VoiceActivityError: silero-vad or onnxruntime is not installed.
        """
        package = importlib.util.find_spec("silero_vad")
        if package is None or package.origin is None or importlib.util.find_spec("onnxruntime") is None:
            raise VoiceActivityError("silero-vad is not installed: pip install 'spirit_jax[vad]', or use energy")
        self.name = f"silero-vad {importlib.metadata.version('silero-vad')}"
        self._path = pathlib.Path(package.origin).parent / "data" / "silero_vad.onnx"

    @functools.cached_property
    def _session(self) -> Any:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.inter_op_num_threads = options.intra_op_num_threads = 1  # chunks are small and follow each other
        return onnxruntime.InferenceSession(str(self._path), options, providers=["CPUExecutionProvider"])

    def spans(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, "N 2"]:
        """As `VoiceActivity.spans`."""
        count = ceil_div(audio.size, _CHUNK)
        padded = np.pad(audio.astype(np.float32), (_CONTEXT, count * _CHUNK - audio.size))
        state, rate = np.zeros(_STATE, np.float32), np.array(SAMPLE_RATE, np.int64)
        active, speaking = np.zeros(count, bool), False
        for index in range(count):
            chunk = padded[None, index * _CHUNK : (index + 1) * _CHUNK + _CONTEXT]
            probability, state = self._session.run(None, {"input": chunk, "state": state, "sr": rate})
            speaking = bool(probability.item() >= (_CONTINUES if speaking else _STARTS))
            active[index] = speaking
        spans = _stretches(active) * (_CHUNK * 1000 // SAMPLE_RATE)
        return _without_gaps(np.minimum(spans, audio.size * 1000 // SAMPLE_RATE))


def open_voice_activity(name: VoiceDetector | None = None) -> VoiceActivity:
    """A detector of voice by name; without one, silero-vad where it is installed, and energy otherwise.

    Raises:
        VoiceActivityError: the detector is not installed.
    """
    if name == "energy":
        return ENERGY
    try:
        return SileroActivity()
    except VoiceActivityError:
        if name == "silero":
            raise
        return ENERGY


def _stretches(active: Bool[np.ndarray, " N"]) -> Int[np.ndarray, "M 2"]:
    """First frame of each run of active frames, and the frame after its last."""
    edges = np.flatnonzero(np.diff(np.concatenate([[False], active, [False]]).astype(np.int8)))
    return edges.reshape(-1, 2)


def _without_gaps(spans_ms: Int[np.ndarray, "M 2"]) -> Int[np.ndarray, "N 2"]:
    """Stretches with short pauses filled and short stretches dropped."""
    if len(spans_ms):
        gaps = spans_ms[1:, 0] - spans_ms[:-1, 1] >= _SHORTEST_PAUSE_MS
        starts, ends = np.concatenate([[True], gaps]), np.concatenate([gaps, [True]])
        spans_ms = np.stack([spans_ms[starts, 0], spans_ms[ends, 1]], axis=1)
    return spans_ms[spans_ms[:, 1] - spans_ms[:, 0] >= _SHORTEST_VOICE_MS]
