"""k-means units: the nearest centroid."""

import numpy as np

from spirit_jax.speech.scratch.kmeans import nearest


def test_nearest_equals_brute_force():
    random = np.random.default_rng(0)
    points, centroids = (
        random.normal(size=(200, 12)).astype(np.float32),
        random.normal(size=(17, 12)).astype(np.float32),
    )
    distances = ((points[:, None].astype(np.float64) - centroids[None]) ** 2).sum(axis=-1)
    np.testing.assert_array_equal(nearest(points, centroids), distances.argmin(axis=1))
