"""The class of every frame of every clip: clusters of MFCC, or of a layer of a HuBERT."""

import dataclasses
import json
import pathlib
from collections.abc import Callable, Iterator, Sequence

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import atomic_directory, read_json, write_file
from spirit_jax.parallel.processes import is_primary, wait_for_all
from spirit_jax.speech_training import kmeans
from spirit_jax.speech_training.crops import Clips

Extractor = Callable[[Sequence[Float[np.ndarray, " R"]]], list[Float[np.ndarray, "T F"]]]
"""Features of clips, one row a frame."""

_BATCH = 16  # clips whose features are computed together


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


def batched_features(clips: Clips, extract: Extractor) -> Iterator[tuple[int, Float[np.ndarray, "T F"]]]:
    """The features of every clip that can be used, with its index."""
    waiting: list[tuple[int, np.ndarray]] = []
    for each in clips.usable():
        waiting.append(each)
        if len(waiting) == _BATCH:
            yield from zip([index for index, _ in waiting], extract([audio for _, audio in waiting]), strict=True)
            waiting = []
    if waiting:
        yield from zip([index for index, _ in waiting], extract([audio for _, audio in waiting]), strict=True)


def sampled_features(clips: Clips, extract: Extractor, hours: float, seed: int) -> Float[np.ndarray, "N F"]:
    """Features of clips in random order, until there are enough.

    Raises:
        SpiritError: no clip can be used.
    """
    found, seconds, waiting = [], 0.0, []
    order = np.random.default_rng((seed, 4)).permutation(len(clips)).tolist()
    for place, index in enumerate(order):
        try:
            audio = clips.audio(index)
        except SpiritError:
            audio = None
        if audio is not None:
            waiting.append(audio)
            seconds += audio.size / SAMPLE_RATE
        if waiting and (len(waiting) == _BATCH or seconds >= hours * 3600 or place == len(order) - 1):
            found += extract(waiting)
            waiting = []
        if seconds >= hours * 3600:
            break
    if not found:
        raise SpiritError(f"none of {len(clips)} clips can be used")
    return np.concatenate(found)


def make_labels(clips: Clips, extract: Extractor, centroids: Float[np.ndarray, "K F"]) -> Labels:
    """Assign every frame of every clip to its nearest centroid."""
    found = {index: kmeans.assign(x, centroids) for index, x in batched_features(clips, extract)}
    none = np.zeros(0, np.int32)
    each = [found.get(index, none) for index in range(len(clips))]
    values = np.concatenate(each).astype(np.uint16) if each else none
    return Labels(values, np.cumsum([0, *map(len, each)]))


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
