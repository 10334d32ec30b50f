"""The start of an aligner's training: one Gaussian for each symbol, learned from transcripts alone.

A network that knows nothing finds all paths alike, and may learn the frequencies of the characters and little else.
Gaussians cannot: each must explain the sound of its frames. Expectation maximization from paths of an even pace, as the
Montreal aligner starts its models (McAuliffe et al. 2017), puts most words within a few frames of their place, and the
network learns from there. Nothing is drawn at random.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import NamedTuple, Self

import jax
import jax.numpy as jnp
import numpy as np
import scipy.fft
import tqdm
from jaxtyping import Array, Float, Int

from spirit_jax.models.ctc import ctc_loss

PASSES = 10
"""Passes of expectation maximization."""

LIKELIHOOD_SCALE = 0.2
"""Scale of the log-likelihoods: frames overlap, and are no independent observations."""

_CEPSTRA = 13
_DELTA_FRAMES = 2
_PACED_PASSES = 6  # paths of an even pace are preferred, less with each pass
_PACE_DEVIATION = 0.05  # standard deviation from the even pace, as a part of the clip
_VARIANCE_FLOOR = 0.01  # of the variance of all frames
_PRIOR_FRAMES = 1.0  # frames of the global Gaussian that each symbol is taken to have heard

Batch = Mapping[str, np.ndarray]
"""Clips as `training` batches them: mel_btc, frames_b, labels_bn, lengths_b and pauses_bm."""


class Gaussians(NamedTuple):
    """A Gaussian with a diagonal covariance for each symbol, on `cepstra`."""

    mean_vd: Float[Array, "V D"]
    variance_vd: Float[Array, "V D"]

    @classmethod
    def initial(cls, symbols: int, bands: int) -> Self:
        """The same Gaussian for all symbols."""
        depth = jax.eval_shape(cepstra, jnp.zeros((1, 1, bands))).shape[-1]
        return cls(jnp.zeros((symbols, depth)), jnp.ones((symbols, depth)))

    def log_likelihoods(self, x_btd: Float[Array, "B T D"]) -> Float[Array, "B T V"]:
        """Log-density of each frame under each symbol, without the constant that all share."""
        precision_vd = 1 / self.variance_vd
        quadratic_btv = (
            jnp.square(x_btd) @ precision_vd.T
            - 2 * (x_btd @ (self.mean_vd * precision_vd).T)
            + jnp.sum(jnp.square(self.mean_vd) * precision_vd, axis=1)
        )
        return -0.5 * (quadratic_btv + jnp.sum(jnp.log(self.variance_vd), axis=1))


class _Sums(NamedTuple):
    """Sums over frames, weighted by the probability that a frame belongs to each symbol."""

    count_v: Float[Array, " V"]
    first_vd: Float[Array, "V D"]
    second_vd: Float[Array, "V D"]


def cepstra(mel_btc: Float[Array, "B T C"]) -> Float[Array, "B T D"]:
    """Cepstra of log-mel features with their first and second differences over time."""
    transform_cc = np.asarray(scipy.fft.dct(np.eye(mel_btc.shape[-1]), axis=1, norm="ortho"))
    static_btd = mel_btc @ jnp.asarray(transform_cc[:, :_CEPSTRA], jnp.float32)
    delta_btd = _differences(static_btd)
    return jnp.concatenate([static_btd, delta_btd, _differences(delta_btd)], axis=-1)


def _differences(x_btd: Float[Array, "B T D"]) -> Float[Array, "B T D"]:
    """The slope of a line through each frame and its two neighbors on each side."""
    n, time = _DELTA_FRAMES, x_btd.shape[1]
    padded = jnp.pad(x_btd, ((0, 0), (n, n), (0, 0)), mode="edge")
    slope = sum(k * (padded[:, n + k : n + k + time] - padded[:, n - k : n - k + time]) for k in range(1, n + 1))
    return jnp.asarray(slope) / (2 * sum(k * k for k in range(1, n + 1)))


def even_pace(
    frames_b: Int[Array, " B"], lengths_b: Int[Array, " B"], frames: int, labels: int
) -> Float[Array, "B T 2N+1"]:
    """Log-density of each state's place at each frame for a speaker of an even pace."""
    time_bt = (jnp.arange(frames) + 0.5) / frames_b[:, None]
    place_bs = (jnp.arange(2 * labels + 1) + 0.5) / (2 * lengths_b[:, None] + 1)
    return -0.5 * jnp.square((time_bt[:, :, None] - place_bs[:, None]) / _PACE_DEVIATION)


@jax.jit
def _expectation(gaussians: Gaussians, batch: dict[str, Array], pace: float) -> _Sums:
    """The sums of a batch. The gradient of `ctc_loss` is minus the probability of each symbol at each frame."""
    x_btd = cepstra(batch["mel_btc"])
    scores_btv = LIKELIHOOD_SCALE * gaussians.log_likelihoods(x_btd)
    _, frames, _ = x_btd.shape
    pace_bts = pace * even_pace(batch["frames_b"], batch["lengths_b"], frames, batch["labels_bn"].shape[1])

    def loss(scores_btv):
        return ctc_loss(
            scores_btv,
            batch["frames_b"],
            batch["labels_bn"],
            batch["lengths_b"],
            pauses_bm=batch["pauses_bm"],
            bonus_bts=pace_bts,
        ).sum()

    weight_btv = -jax.grad(loss)(scores_btv)
    return _Sums(
        count_v=weight_btv.sum((0, 1)),
        first_vd=jnp.einsum("btv,btd->vd", weight_btv, x_btd),
        second_vd=jnp.einsum("btv,btd->vd", weight_btv, jnp.square(x_btd)),
    )


def _maximization(sums: _Sums) -> Gaussians:
    """Mean and variance of each symbol; a symbol without frames has those of all frames."""
    total = sums.count_v.sum()
    mean_d = sums.first_vd.sum(0) / total
    variance_d = sums.second_vd.sum(0) / total - jnp.square(mean_d)
    count_v1 = sums.count_v[:, None] + _PRIOR_FRAMES
    mean_vd = (sums.first_vd + _PRIOR_FRAMES * mean_d) / count_v1
    second_vd = (sums.second_vd + _PRIOR_FRAMES * (variance_d + jnp.square(mean_d))) / count_v1
    return Gaussians(mean_vd, jnp.maximum(second_vd - jnp.square(mean_vd), _VARIANCE_FLOOR * variance_d))


def flat_start(batches: Callable[[], Iterable[Batch]], symbols: int, bands: int, *, progress: bool = True) -> Gaussians:
    """Gaussians of all symbols by expectation maximization from paths of an even pace.

    Args:
        batches: gives the batches of a pass.
        symbols: number of symbols.
        bands: mel bands of the features.
        progress: whether to show a progress bar.
    """
    gaussians = Gaussians.initial(symbols, bands)
    for number in tqdm.trange(PASSES, desc="starting the aligner", unit="pass", disable=not progress):
        pace = max(0.0, 1 - number / _PACED_PASSES)
        sums = None
        for batch in batches():
            found = _expectation(gaussians, dict(batch), pace)
            sums = found if sums is None else _Sums(*map(jnp.add, sums, found))
        if sums is not None:
            gaussians = _maximization(sums)
    return gaussians
