"""Ridge regression on neighboring units, against NumPy on the rows written out."""

import numpy as np

from spirit_jax.speech.scratch.neighbors import fit_neighbors, predict_from_neighbors

COUNT, SIDE, PENALTY = 5, 2, 3.0


def _rows(units):
    """A row for each frame, with a one for each unit around it."""
    rows = np.zeros((len(units), 2 * SIDE + 1, COUNT))
    for place in range(len(units)):
        for offset in range(-SIDE, SIDE + 1):
            if 0 <= place + offset < len(units):
                rows[place, offset + SIDE, units[place + offset]] = 1
    return rows.reshape(len(units), -1)


def test_weights_are_those_of_least_squares_with_a_penalty():
    rng = np.random.default_rng(0)
    units = [rng.integers(0, COUNT - 1, length) for length in (30, 1, 17)]  # the last unit never occurs
    features = [rng.normal(size=(len(each), 3)) + each[:, None] for each in units]
    weights = fit_neighbors(units, features, count=COUNT, side=SIDE, penalty=PENALTY)

    flat, target = np.concatenate(units), np.concatenate(features)
    mean = np.stack([target[flat == unit].mean(0) if (flat == unit).any() else np.zeros(3) for unit in range(COUNT)])
    rows = np.concatenate([_rows(each) for each in units])
    penalized = np.concatenate([rows, np.sqrt(PENALTY) * np.eye(rows.shape[1])])
    residual = np.concatenate([target - mean[flat], np.zeros((rows.shape[1], 3))])
    expected = np.linalg.lstsq(penalized, residual, rcond=None)[0].reshape(2 * SIDE + 1, COUNT, 3)
    expected[SIDE] += mean
    np.testing.assert_allclose(weights, expected, atol=1e-10)
    for each in units:
        np.testing.assert_allclose(predict_from_neighbors(weights, each), _rows(each) @ expected.reshape(-1, 3))


def test_a_sound_that_depends_on_the_next_unit_is_learned():
    units = np.random.default_rng(1).integers(0, COUNT, 400)
    features = (units + 10.0 * np.append(units[1:], 0))[:, None]
    weights = fit_neighbors([units], [features], count=COUNT, side=1, penalty=1e-6)
    np.testing.assert_allclose(predict_from_neighbors(weights, units)[:-1], features[:-1], atol=0.05)
