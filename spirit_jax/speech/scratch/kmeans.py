"""Phonetic units from scratch: k-means over log-mel spectra at 25 Hz.

HuBERT's first training iteration labels its targets in the same way, with MFCC as features
(arXiv 2106.07447, section 2).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.threads import one_thread
from spirit_jax.speech.features import MEL_BANDS, MEL_FRAMES_PER_UNIT, level, log_mel

_RANGE = 4.0  # nats around the level; anything farther away is silence or a click, not a phone


def normalize(spectrum: Float[np.ndarray, "frames bands"]) -> Float[np.ndarray, "frames bands"]:
    """Subtract the level of voice and recording from a log-mel spectrum and clip the rest to 4 nats on either side.

    Clusters of these spectra separate phones as well as clusters of MFCC do, and a spectrum can be turned into sound.
    """
    return np.clip(spectrum - level(spectrum), -_RANGE, _RANGE)


def unit_features(audio: Float[np.ndarray, " R"]) -> Float[np.ndarray, "units features"]:
    """The four normalized mel frames of each HuBERT unit, side by side: [units, 4 * 40]."""
    return normalize(log_mel(audio)).reshape(-1, MEL_FRAMES_PER_UNIT * MEL_BANDS)


def cluster(
    features: Float[np.ndarray, "N F"], clusters: int, seed: int, *, restarts: int
) -> Float[np.ndarray, "clusters F"]:
    """Centroids by mini-batch k-means with k-means++ starts. Equal inputs and seed give equal bits on CPU.

    Args:
        features: the points.
        clusters: number of centroids.
        seed: of the starts and the batches.
        restarts: starts that are tried; the best one is used.

    Raises:
        SpiritError: fewer points than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < clusters:
        raise SpiritError(
            f"{clusters} clusters need at least as many frames, found {len(features)}: more audio or fewer units"
        )
    model = MiniBatchKMeans(
        clusters,
        init="k-means++",
        batch_size=10_000,
        init_size=max(3 * clusters, min(len(features), 20 * clusters)),
        max_iter=100,
        max_no_improvement=20,
        n_init=restarts,  # pyright: ignore[reportArgumentType]  # inferred from the default "auto"; int is documented
        reassignment_ratio=0.0,
        random_state=seed,
        compute_labels=False,
    )
    with one_thread():
        return np.asarray(model.fit(features).cluster_centers_, np.float32)


def nearest(features: Float[np.ndarray, "N F"], centroids: Float[np.ndarray, "K F"]) -> Int[np.ndarray, " N"]:
    """The index of the nearest centroid of each row, int32."""
    distance = np.sum(centroids**2, axis=1) - 2 * (features @ centroids.T)
    return np.argmin(distance, axis=1).astype(np.int32)


@dataclass(frozen=True, eq=False)
class KMeansEncoder:
    """Part kind "kmeans": each phonetic unit is the nearest of K spectra.

    Attributes:
        centroids: float32 [K, 4 * 40], normalized log-mel frames of each unit.
    """

    kind: ClassVar[str] = "kmeans"

    centroids: Float[np.ndarray, "K F"]

    @classmethod
    def fit(cls, features: Sequence[Float[np.ndarray, "_units F"]], units: int, seed: int) -> "KMeansEncoder":
        """Cluster the `unit_features` of many utterances into `units` units.

        Raises:
            SpiritError: fewer frames than units.
        """
        return cls(cluster(np.concatenate(features), units, seed, restarts=3))

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "KMeansEncoder":
        """The part from its config.json and arrays."""
        return cls(arrays["centroids"])

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        return {"units": len(self.centroids)}

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return {"centroids": self.centroids}

    @property
    def unit_count(self) -> int:
        """Number of different units."""
        return len(self.centroids)

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " units"]:
        """Phonetic units of one clip at 25 Hz, int32 [floor((R - 720) / 640) + 1]."""
        return nearest(unit_features(audio), self.centroids)

    def encode_batch(self, clips: Sequence[Float[np.ndarray, " _R"]]) -> list[Int[np.ndarray, " _units"]]:
        """`encode` of each clip."""
        return [self.encode(clip) for clip in clips]
