"""Phonetic units from scratch: k-means over log-mel spectra at 25 Hz, the way HuBERT's first iteration labels its targets."""

import contextlib
import dataclasses
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.speech.scratch.features import BANDS, MEL_FRAMES, level, log_mel

_RANGE = 4.0  # nats around the level; what is further off is silence or a click, not a phone


def normalised(spectrum: Float[np.ndarray, "frames bands"]) -> Float[np.ndarray, "frames bands"]:
    """A log-mel spectrum without its voice and recording level, bounded.

    Clusters of it say as much of the phones as clusters of cepstra (MFCC) do, and unlike cepstra it can be inverted as it is.
    """
    return np.clip(spectrum - level(spectrum), -_RANGE, _RANGE)


def unit_features(audio: Float[np.ndarray, " R"]) -> Float[np.ndarray, "units features"]:
    """What is clustered: the four normalised mel frames of each HuBERT unit, side by side."""
    return normalised(log_mel(audio)).reshape(-1, MEL_FRAMES * BANDS)


def one_thread() -> contextlib.AbstractContextManager:
    """Keeps BLAS and OpenMP to one thread: sums over threads come in any order, and small products only lose by them."""
    from threadpoolctl import threadpool_limits

    return threadpool_limits(1)


def cluster(
    features: Float[np.ndarray, "N F"], clusters: int, seed: int, *, restarts: int
) -> Float[np.ndarray, "clusters F"]:
    """Centroids by mini-batch k-means with k-means++ starts; equal inputs and seed give equal bits.

    Raises:
        ValueError: fewer points than clusters.
    """
    from sklearn.cluster import MiniBatchKMeans

    if len(features) < clusters:
        raise ValueError(
            f"{clusters} clusters need at least as many frames, found {len(features)}: more audio or fewer units"
        )
    model = MiniBatchKMeans(
        clusters,
        init="k-means++",
        batch_size=10_000,
        init_size=max(3 * clusters, min(len(features), 20 * clusters)),
        max_iter=100,
        max_no_improvement=20,
        n_init=restarts,
        reassignment_ratio=0.0,
        random_state=seed,
        compute_labels=False,
    )
    with one_thread():
        return model.fit(features).cluster_centers_.astype(np.float32)


def nearest(features: Float[np.ndarray, "N F"], centroids: Float[np.ndarray, "K F"]) -> Int[np.ndarray, " N"]:
    """The nearest centroid of each row."""
    distance = np.sum(centroids**2, axis=1) - 2 * (features @ centroids.T)
    return np.argmin(distance, axis=1).astype(np.int32)


@dataclasses.dataclass(frozen=True, eq=False)
class KMeansEncoder:
    """Part kind "kmeans": the nearest of K spectra at 25 Hz.

    Attributes:
        centroids: float32 [K, 4 x 40], normalised log-mel frames of each unit.
    """

    kind: ClassVar[str] = "kmeans"

    centroids: Float[np.ndarray, "K F"]

    @classmethod
    def fit(cls, features: Sequence[Float[np.ndarray, "_units F"]], units: int, seed: int) -> "KMeansEncoder":
        """Cluster `unit_features` of many utterances."""
        return cls(cluster(np.concatenate(features), units, seed, restarts=3))

    def encode(self, audio: Float[np.ndarray, " R"]) -> Int[np.ndarray, " units"]:
        """int32 units at 25 Hz, floor((R - 720) / 640) + 1 of them."""
        return nearest(unit_features(audio), self.centroids)

    def arrays(self) -> dict[str, Any]:
        return {"centroids": self.centroids}

    def config(self) -> dict[str, Any]:
        return {"units": len(self.centroids)}

    @classmethod
    def load(cls, config: dict[str, Any], arrays: dict[str, Any]) -> "KMeansEncoder":
        return cls(arrays["centroids"])
