"""Ridge regression of a frame's features on its unit and the units around it, in closed form.

A sound depends on its neighbors (coarticulation), which the mean over all places of a unit leaves out. The model is
additive: the frame's unit and each neighbor contribute a vector of their own.
"""

from collections.abc import Sequence

import numpy as np
import scipy.linalg
import scipy.sparse
from jaxtyping import Float, Int


def fit_neighbors(
    units: Sequence[Int[np.ndarray, " _N"]],
    features: Sequence[Float[np.ndarray, "_N F"]],
    *,
    count: int,
    side: int,
    penalty: float,
) -> Float[np.ndarray, "W K F"]:
    """The contribution of each unit at each offset, from -side to side; the middle one includes the unit's mean.

    The weights minimize the squared error plus `penalty` times their own squares, after the mean of each unit is taken
    off. So a pair of units that is rarely seen changes little.

    Args:
        units: the units of each utterance.
        features: the features of each of its frames.
        count: number of different units, K.
        side: neighbors on each side, so that W = 2 * side + 1.
        penalty: positive.
    """
    flat = np.concatenate(units)
    one_hot = scipy.sparse.csr_matrix((np.ones(len(flat)), (np.arange(len(flat)), flat)), (len(flat), count))
    target = np.concatenate(features).astype(np.float64)
    frames = np.maximum(np.asarray(one_hot.sum(axis=0)).ravel(), 1)
    mean = (one_hot.T @ target) / frames[:, None]
    inputs = scipy.sparse.vstack([_one_hot(each, count, side) for each in units], "csr")
    gram = (inputs.T @ inputs).toarray()
    gram[np.diag_indices_from(gram)] += penalty
    weights = scipy.linalg.solve(gram, inputs.T @ (target - mean[flat]), assume_a="pos", overwrite_a=True)
    weights = weights.reshape(2 * side + 1, count, -1)
    weights[side] += mean
    return weights


def predict_from_neighbors(
    weights: Float[np.ndarray, "W K F"], units: Int[np.ndarray, " N"]
) -> Float[np.ndarray, "N F"]:
    """The sum of the contributions of each frame's unit and of its neighbors inside the utterance."""
    side = len(weights) // 2
    padded = np.pad(units, side, constant_values=-1)
    total = np.zeros((len(units), weights.shape[2]), weights.dtype)
    for offset, table in enumerate(weights):
        seen = padded[offset : offset + len(units)]
        total[seen >= 0] += table[seen[seen >= 0]]
    return total


def _one_hot(units: Int[np.ndarray, " N"], count: int, side: int) -> scipy.sparse.csr_matrix:
    """One row a frame with a one for each unit around it: [N, W * K]."""
    places, columns = [], []
    for offset in range(-side, side + 1):
        at = np.arange(max(0, -offset), min(len(units), len(units) - offset))
        places.append(at)
        columns.append((offset + side) * count + units[at + offset])
    place, column = np.concatenate(places), np.concatenate(columns)
    return scipy.sparse.csr_matrix((np.ones(len(place)), (place, column)), (len(units), (2 * side + 1) * count))
