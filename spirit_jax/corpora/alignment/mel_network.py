"""The network of an aligner that was trained on the user's own corpus: its features, its files, and its emissions."""

import functools
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar, Self

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.arithmetic import round_up
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora.alignment.alphabet import Alphabet
from spirit_jax.corpora.alignment.ctc_aligner import FrameGrid
from spirit_jax.corpora.alignment.padding import padded_batches
from spirit_jax.models.mel_ctc import MelCTC, MelCTCConfig
from spirit_jax.speech.features import (
    MEL_FRAMES_PER_UNIT,
    MEL_HOP,
    RECEPTIVE_FIELD,
    UNIT_HOP,
    hubert_frames,
    log_mel,
)

HOP_MS = MEL_HOP * 1000 // SAMPLE_RATE
"""Milliseconds from one frame to the next."""

_UNITS_AT_ONCE = 1500  # one minute: an hour of spectra would take a gigabyte
_WINDOW = 2048  # frames of the longest window that the network sees at once, without context
_BATCH_FRAMES = 1 << 14
_FLOOR = 0.1  # of a band's standard deviation: a band without sound stays near zero


def mel_features(audio: Float[np.ndarray, " R"]) -> Float[np.ndarray, "T bands"]:
    """Log-mel features of a clip, each band with mean 0 and variance about 1 over the clip, in bounded memory.

    Zeros follow the clip, so that its last samples have frames too.
    """
    audio = np.pad(audio, (0, RECEPTIVE_FIELD))
    units = hubert_frames(audio.size)
    pieces = []
    for first in range(0, units, _UNITS_AT_ONCE):
        last, before = min(first + _UNITS_AT_ONCE, units), min(first, 1)
        # One unit more on each side, because frames reach beyond the audio of their unit.
        piece = log_mel(audio[UNIT_HOP * (first - before) : UNIT_HOP * last + RECEPTIVE_FIELD])
        pieces.append(piece[MEL_FRAMES_PER_UNIT * before :][: MEL_FRAMES_PER_UNIT * (last - first)])
    mel = np.concatenate(pieces)
    return (mel - mel.mean(axis=0)) / (mel.std(axis=0) + _FLOOR)


class MelNetwork:
    """A `CTCNetwork` on log-mel features. Frames of 10 ms; blanks are pauses between words only."""

    kind: ClassVar[str] = "mel_ctc"
    grid: FrameGrid = FrameGrid(hop_ms=HOP_MS, offset_ms=2.5)  # the first frame is centered at 7.5 ms
    blanks_in_words: bool = False

    def __init__(
        self,
        name: str,
        alphabet: Alphabet,
        network: MelCTCConfig,
        params: dict[str, Any],
        bias_v: Float[np.ndarray, " V"],
    ) -> None:
        self.name, self.alphabet, self.bias_v = name, alphabet, bias_v
        self._network, self._params = network, params
        model = MelCTC(network)

        def log_probs(params, mel_btc, frames_b):
            return jax.nn.log_softmax(jnp.asarray(model.apply({"params": params}, mel_btc, frames_b)))

        self._log_probs = functools.partial(jax.jit(log_probs), params)

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> Self:
        """The network from its config.json and arrays.

        Raises:
            KeyError, TypeError: an entry or an array is missing.
            CheckpointError: the numbers of symbols differ.
        """
        alphabet = Alphabet(tuple(config["symbols"]))
        network = MelCTCConfig(**config["network"])
        bias_v = np.asarray(arrays["bias"], np.float32)
        if not len(alphabet.symbols) == network.symbols == bias_v.size:
            raise CheckpointError(
                f"an aligner with {len(alphabet.symbols)} symbols, {network.symbols} outputs and {bias_v.size} biases"
            )
        return cls(config["name"], alphabet, network, arrays["network"], bias_v)

    def config(self) -> dict[str, Any]:
        """The content of config.json."""
        return {"name": self.name, "symbols": list(self.alphabet.symbols), "network": vars(self._network)}

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return {"network": self._params, "bias": self.bias_v}

    def log_probs(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Float[np.ndarray, "T V"]]:
        """As `CTCNetwork.log_probs`; audio longer than 20 s is seen in windows, with the same result."""
        features = [mel_features(clip) for clip in clips]
        results = [np.empty((len(mel), self._network.symbols), np.float32) for mel in features]
        context = round_up(self._network.context, self._network.stride)
        windows = []
        for index, mel in enumerate(features):
            for first in range(0, len(mel), _WINDOW):
                last = min(first + _WINDOW, len(mel))
                windows.append((index, first, last, max(0, first - context), min(len(mel), last + context)))
        for batch, frames, rows in padded_batches([stop - start for *_, start, stop in windows], _BATCH_FRAMES):
            mel_btc = np.zeros((rows, frames, self._network.bands), np.float32)
            counts = np.zeros(rows, np.int32)
            for row, window in enumerate(batch):
                index, _, _, start, stop = windows[window]
                mel_btc[row, : stop - start], counts[row] = features[index][start:stop], stop - start
            found = np.asarray(self._log_probs(mel_btc, counts))
            for row, window in enumerate(batch):
                index, first, last, start, _ = windows[window]
                results[index][first:last] = found[row, first - start : last - start]
        return results
