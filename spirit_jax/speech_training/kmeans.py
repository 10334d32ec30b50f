"""Mini-batch k-means on the accelerator (Sculley 2010), with k-means++ starts.

HuBERT's labels and units come from scikit-learn's implementation, which this one follows: each batch moves a centroid
to the running mean of all points that were ever assigned to it.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.core.errors import SpiritError
from spirit_jax.models.wav2vec2_heads import nearest_centroid

BATCH = 10_000
"""Points of a batch."""
_BATCHES = 100  # of a start, at most
POINTS = BATCH * _BATCHES
"""Points that `fit` uses at most."""
_TESTED = 20_000  # points that starts are compared on


@jax.jit
def update(
    centroids_kf: Float[Array, "K F"], counts_k: Float[Array, " K"], x_nf: Float[Array, "N F"]
) -> tuple[Float[Array, "K F"], Float[Array, " K"]]:
    """The centroids and the number of points of each, after one more batch; as scikit-learn's `partial_fit`."""
    assigned_nk = jax.nn.one_hot(nearest_centroid(x_nf, centroids_kf), len(centroids_kf))
    added_k = assigned_nk.sum(0)
    total_kf = centroids_kf * counts_k[:, None] + jnp.einsum("nk,nf->kf", assigned_nk, x_nf, precision="highest")
    after_k = counts_k + added_k
    moved_kf = jnp.where(added_k[:, None] > 0, total_kf / jnp.maximum(after_k, 1)[:, None], centroids_kf)
    return moved_kf, after_k


@functools.partial(jax.jit, static_argnums=1)
def plus_plus(x_nf: Float[Array, "N F"], clusters: int, key: Array) -> Float[Array, "K F"]:
    """Starts by k-means++ (Arthur and Vassilvitskii 2007): far points are likelier, by the squared distance."""
    first, *keys = jax.random.split(key, 2)
    start = x_nf[jax.random.randint(first, (), 0, len(x_nf))]
    squared_n = jnp.square(x_nf - start).sum(-1)

    def choose(distance_n, key):
        chosen_f = x_nf[jax.random.categorical(key, jnp.log(jnp.maximum(distance_n, 1e-30)))]
        return jnp.minimum(distance_n, jnp.square(x_nf - chosen_f).sum(-1)), chosen_f

    _, others_kf = jax.lax.scan(choose, squared_n, jax.random.split(keys[0], clusters - 1))
    return jnp.concatenate([start[None], others_kf])


@jax.jit
def inertia(x_nf: Float[Array, "N F"], centroids_kf: Float[Array, "K F"]) -> Float[Array, ""]:
    """Mean squared distance of points to their centroids."""
    return jnp.square(x_nf - centroids_kf[nearest_centroid(x_nf, centroids_kf)]).sum(-1).mean()


def fit(
    features: Float[np.ndarray, "N F"], clusters: int, seed: int, *, restarts: int = 5
) -> tuple[Float[np.ndarray, "K F"], float]:
    """Centroids of the best of several starts, and their mean squared distance. Equal arguments give equal results.

    Raises:
        SpiritError: fewer points than clusters.
    """
    if len(features) < clusters:
        raise SpiritError(
            f"{clusters} clusters need at least as many frames, found {len(features)}: more audio or fewer clusters"
        )
    rng = np.random.default_rng((seed, 3))
    order = rng.permutation(len(features))
    shuffled = np.ascontiguousarray(features[order], dtype=np.float32)
    size = min(BATCH, len(shuffled))
    tested = jnp.asarray(shuffled[: max(_TESTED, 3 * clusters)])
    best: tuple[np.ndarray, float] | None = None
    for start in range(restarts):
        centroids = plus_plus(tested[: max(3 * clusters, size)], clusters, jax.random.key(seed * restarts + start))
        counts = jnp.zeros(clusters)
        passes = max(1, _BATCHES * size // len(shuffled))
        for position in range(min(_BATCHES, passes * (len(shuffled) // size))):
            where = position % (len(shuffled) // size) * size
            centroids, counts = update(centroids, counts, shuffled[where : where + size])
        distance = float(inertia(tested, centroids))
        if best is None or distance < best[1]:
            best = np.asarray(centroids), distance
    assert best is not None  # restarts is positive
    return best


def assign(x: Float[np.ndarray, "N F"], centroids: Float[np.ndarray, "K F"]) -> Int[np.ndarray, " N"]:
    """The nearest centroid of each point, int32."""
    squared = (centroids**2).sum(1) - 2 * (x @ centroids.T)
    return np.argmin(squared, 1).astype(np.int32)
