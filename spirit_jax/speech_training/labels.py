"""The class of every frame of every clip: clusters of MFCC, or of a layer of a HuBERT."""

import dataclasses
import itertools
import json
import pathlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import TypeVar

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import atomic_directory, read_json, write_file
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.parallel.processes import is_primary, wait_for_all
from spirit_jax.speech.features import CHUNK_SAMPLES
from spirit_jax.speech_training import kmeans
from spirit_jax.speech_training.crops import Clips

Compute = Callable[[Sequence[Float[np.ndarray, " R"]]], Sequence[np.ndarray]]
"""Computes an array of each clip, with one row a frame: features [T, F], or classes or units [T]."""

_BATCH = 16  # clips that are computed together

_Result = TypeVar("_Result")


@dataclasses.dataclass(frozen=True, eq=False)
class Labels:
    """Classes of the frames of a split, one clip after the other; they may be a file that is mapped into memory."""

    values: Int[np.ndarray, " frames"]
    offsets: Int[np.ndarray, " clips+1"]
    """Where each clip begins. Clips that cannot be used have no frames."""

    def of(self, index: int) -> Int[np.ndarray, " T"]:
        """The classes of a clip.

        Raises:
            SpiritError: the clip could not be used.
        """
        found = self.values[self.offsets[index] : self.offsets[index + 1]]
        if not len(found):
            raise SpiritError(f"clip {index} has no labels, because it could not be used")
        return found


def in_chunks(compute: Compute, config: Wav2Vec2Config) -> Compute:
    """The same function for clips of any length: those of more than 100 s are computed in chunks.

    Neighboring chunks overlap by as much as a frame needs beyond its hop, so that no frame is lost.
    """
    frames = config.frames(CHUNK_SAMPLES)
    hop, length = frames * config.hop, (frames - 1) * config.hop + config.receptive_field

    def cut(clip: np.ndarray) -> list[np.ndarray]:
        if clip.size <= CHUNK_SAMPLES:
            return [clip]
        return [clip[start : start + length] for start in range(0, config.frames(clip.size) * config.hop, hop)]

    def run(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        chunks = [cut(clip) for clip in clips]
        found = iter(compute([chunk for clip in chunks for chunk in clip]))
        return [np.concatenate([next(found) for _ in clip]) for clip in chunks]

    return run


def compute_clips(
    clips: Iterable[tuple[int, Float[np.ndarray, " R"]]],
    compute: Callable[[Sequence[Float[np.ndarray, " R"]]], Sequence[_Result]],
) -> Iterator[tuple[int, _Result]]:
    """The index and the result of each clip, computed in small batches."""
    clips = iter(clips)
    while batch := list(itertools.islice(clips, _BATCH)):
        yield from zip([index for index, _ in batch], compute([audio for _, audio in batch]), strict=True)


def sampled_features(clips: Clips, extract: Compute, hours: float, seed: int) -> Float[np.ndarray, "N F"]:
    """Features of clips in random order, until there are enough hours of speech.

    Frames are left out at random where there are far more than k-means uses, so that they fit into memory: 100 hours of
    a layer of HuBERT Base at 50 Hz have 55 GB.

    Raises:
        SpiritError: no clip can be used.
    """
    found, seconds, waiting, share = [], 0.0, [], 1.0
    rng = np.random.default_rng((seed, 4))
    order = rng.permutation(len(clips)).tolist()
    for place, index in enumerate(order):
        try:
            audio = clips.audio(index)
        except SpiritError:
            audio = None
        if audio is not None:
            waiting.append(audio)
            seconds += audio.size / SAMPLE_RATE
        if waiting and (len(waiting) == _BATCH or seconds >= hours * 3600 or place == len(order) - 1):
            found += [x[rng.random(len(x)) < share] for x in extract(waiting)]
            waiting = []
            while sum(map(len, found)) > 2 * kmeans.POINTS:
                found, share = [x[rng.random(len(x)) < 0.5] for x in found], share / 2
        if seconds >= hours * 3600:
            break
    if not found:
        raise SpiritError(f"none of {len(clips)} clips can be used")
    return np.concatenate(found)


def make_labels(clips: Clips, classify: Compute) -> Labels:
    """The class of every frame of every clip of a split."""
    found = dict(compute_clips(clips.usable(), classify))
    none = np.zeros(0, np.int32)
    each = [found.get(index, none) for index in range(len(clips))]
    values = np.concatenate(each).astype(np.uint16) if each else none
    return Labels(values, np.cumsum([0, *map(len, each)]))


def split_arrays(train: Clips, held_out: Clips, classify: Compute) -> dict[str, np.ndarray]:
    """The labels of both splits as arrays, which `cached` can keep."""
    arrays = {}
    for split, clips in (("train", train), ("held_out", held_out)):
        labels = make_labels(clips, classify)
        arrays |= {f"{split}_values": labels.values, f"{split}_offsets": labels.offsets}
    return arrays


def split_labels(arrays: Mapping[str, np.ndarray]) -> tuple[Labels, Labels]:
    """The labels of the training and of the held-out split, from `split_arrays`."""
    train, held_out = (Labels(arrays[f"{split}_values"], arrays[f"{split}_offsets"]) for split in ("train", "held_out"))
    return train, held_out


def cached(
    directory: pathlib.Path, made_from: object, make: Callable[[], dict[str, np.ndarray]]
) -> dict[str, np.ndarray]:
    """Arrays that a directory holds, mapped into memory; they are made now unless they were made from the same.

    The primary process makes them for all. Every process must call it.

    Args:
        directory: where they are kept.
        made_from: what they depend on, as JSON.
        make: makes them.
    """
    described = json.loads(json.dumps(made_from))
    source = directory / "made_from.json"
    if is_primary() and (not source.is_file() or read_json(source) != described):
        arrays = make()
        with atomic_directory(directory, overwrite=True) as scratch:
            for name, array in arrays.items():
                np.save(scratch / f"{name}.npy", array)
            write_file(scratch / "made_from.json", json.dumps(described))
    wait_for_all(f"made {directory.name}")
    return {path.stem: np.load(path, mmap_mode="r") for path in directory.glob("*.npy")}
