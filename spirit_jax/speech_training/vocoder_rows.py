"""The rows of a vocoder's batches: a crop of audio, the units of its frames, and who speaks."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax.core.errors import SpiritError
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.hifigan_losses import inner_runs
from spirit_jax.speech_training.clip_units import ClipUnits
from spirit_jax.speech_training.crops import Crop
from spirit_jax.speech_training.vocoder_config import VocoderTraining


@dataclasses.dataclass(frozen=True)
class Voices:
    """The rows of the tables of speakers and of global styles."""

    speakers: tuple[str, ...]
    """Names of the first rows of the speaker table; () for a vocoder of one voice."""
    styles: tuple[str, ...]
    """Names of the first rows of the global style table; () without one."""

    def rows(self, speakers: Sequence[str]) -> list[int]:
        """The row of each speaker; the first one for a speaker who is not in the table."""
        known = {name: row for row, name in enumerate(self.speakers)}
        return [known.get(name, 0) for name in speakers]


@dataclasses.dataclass(frozen=True)
class VocoderRows:
    """Makes the arrays of a row from a crop of a clip and the clip's units."""

    config: VocoderTraining
    network: HifiGanConfig
    units: ClipUnits
    speakers: Sequence[int]
    """Row of the speaker table of each clip."""
    styles: Sequence[int]
    """Row of the global style table of each clip; -1 for a clip that is not used."""

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Mapping[str, Any]:
        """Audio [R], codes of each frame [T] and the runs inside the crop [U].

        Raises:
            SpiritError: the clip has no units, or is not used.
        """
        del rng
        network, units = self.network, self.units.of(crop.index)
        if self.styles[crop.index] < 0:
            raise SpiritError(f"clip {crop.index} is not used: it has no style, or its speaker is not chosen")
        hop, count = network.code_hop_size, self.config.samples // network.code_hop_size
        frames = crop.start // hop + np.arange(count)

        def at_frames(codes: np.ndarray | None, size: int, code_hop: int) -> np.ndarray:
            """The codes in force; the last one lasts to the end of the clip."""
            if codes is None or not size:
                return np.zeros(count, np.int32)
            return codes[np.minimum(frames * hop // code_hop, len(codes) - 1)]

        hubert = at_frames(units.hubert, network.num_embeddings, hop)
        runs, durations, number = inner_runs(hubert, count)
        peak = self.units.peaks[crop.index]
        scale = 1.0 if self.config.peak is None else self.config.peak / peak
        return {
            "audio_br": (crop.audio * np.float32(scale)).astype(np.float32),
            "units_bt": hubert,
            "pitch_bt": at_frames(units.pitch, network.num_f0_tokens, network.f0_hop_size),
            "styles_bt": at_frames(units.style, network.num_style_tokens, network.style_hop_size),
            "speaker_b": np.int32(self.speakers[crop.index]),
            "style_b": np.int32(self.styles[crop.index]),
            "runs_bu": runs,
            "durations_bu": durations,
            "runs_b": number,
        }
