"""Units, peak and speaker of every clip of a run, encoded once for the training of a vocoder."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from spirit_jax.core.errors import SpiritError
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.loading import fingerprint
from spirit_jax.speech_training.crops import Clips
from spirit_jax.speech_training.labels import Labels, cached, compute_clips
from spirit_jax.speech_training.part import Context
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Variant

_STREAMS = ("hubert", "pitch", "style")


@dataclasses.dataclass(frozen=True, eq=False)
class ClipUnits:
    """The units, peaks, ids and speakers of the clips of a split."""

    hubert: Labels
    pitch: Labels | None
    style: Labels | None
    peaks: np.ndarray
    """Largest absolute sample of each clip."""
    ids: list[str]
    """Id of each clip; "" for one that cannot be used."""
    speakers: list[str]
    """Speaker of each clip; "" if unknown."""

    def of(self, index: int) -> SpeechUnits:
        """The units of a clip.

        Raises:
            SpiritError: the clip could not be used.
        """
        pitch, style = (
            None if stream is None else stream.of(index).astype(np.int32) for stream in (self.pitch, self.style)
        )
        return SpeechUnits(self.hubert.of(index).astype(np.int32), pitch, style)


def clip_units(context: Context, encoders: str, variant: Variant) -> tuple[ClipUnits, ClipUnits]:
    """The units of the clips to learn from and of those to measure on; they are kept in the part's folder.

    Args:
        context: the run.
        encoders: a checkpoint directory with the encoders.
        variant: which of them to use.

    Raises:
        CheckpointError: an encoder is missing.
        SpiritError: no clip can be used.
    """
    made_from = {
        "encoders": fingerprint(encoders, variant, "fcpe"),
        "variant": variant,
        "data": context.data,
    }

    def make() -> dict[str, np.ndarray]:
        tokenizer = SpeechTokenizer.from_pretrained(encoders, variant=variant)
        arrays = {}
        for split, clips in (("train", context.train), ("held_out", context.held_out)):
            arrays |= {f"{split}_{name}": array for name, array in _encoded(clips, tokenizer).items()}
        return arrays

    arrays = cached(context.directory / "units", made_from, make)
    train, held_out = (_read(arrays, split) for split in ("train", "held_out"))
    if not len(train.hubert.values):
        raise SpiritError(f"none of {len(context.train)} clips can be used")
    return train, held_out


def _encoded(clips: Clips, tokenizer: SpeechTokenizer) -> dict[str, np.ndarray]:
    units: dict[int, SpeechUnits] = {}
    peaks, ids, speakers = np.zeros(len(clips), np.float32), [""] * len(clips), [""] * len(clips)

    def encode(batch: Sequence[np.ndarray]) -> list[tuple[SpeechUnits, float]]:
        return list(zip(tokenizer.encode_batch(batch), (np.abs(clip).max() for clip in batch), strict=True))

    for index, (found, peak) in compute_clips(clips.usable(), encode):
        utterance = clips.utterance(index)
        units[index], peaks[index], ids[index], speakers[index] = found, peak, utterance.id, utterance.speaker
    arrays: dict[str, np.ndarray] = {"peaks": peaks, "ids": np.array(ids), "speakers": np.array(speakers)}
    none = np.zeros(0, np.int32)
    for position, name in enumerate(_STREAMS):
        each = [units[index].streams[position] if index in units else none for index in range(len(clips))]
        found = [stream for stream in each if stream is not None]
        if len(found) < len(each):
            continue
        arrays[f"{name}_values"] = np.concatenate([none, *found]).astype(np.uint16)
        arrays[f"{name}_offsets"] = np.cumsum([0, *map(len, found)])
    return arrays


def _read(arrays: dict[str, np.ndarray], split: str) -> ClipUnits:
    hubert, pitch, style = [
        Labels(arrays[f"{split}_{name}_values"], arrays[f"{split}_{name}_offsets"])
        if f"{split}_{name}_values" in arrays
        else None
        for name in _STREAMS
    ]
    assert hubert is not None  # every variant has phonetic units
    ids, speakers = (arrays[f"{split}_{name}"].tolist() for name in ("ids", "speakers"))
    return ClipUnits(hubert, pitch, style, peaks=np.asarray(arrays[f"{split}_peaks"]), ids=ids, speakers=speakers)
