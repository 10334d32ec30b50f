"""Which steps count as bad: never a step of a healthy run, always a spike, whatever else is in the window.

`tiny_traces.json` holds the losses (in hundredths) and gradient norms (in thousandths) of healthy runs with the model
of `configs/tiny.yaml`: two from the statistics in their checkpoints, and the first 260 steps of 20 seeds as
`python -m benchmarks.bad_steps --run runs/tiny --until 260` records them.
"""

import json
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from spirit_jax.training.bad_steps import MAX_CONSECUTIVE_BAD_STEPS
from spirit_jax.training.faults import detect_bad_step, no_recent_steps

TRACES = {
    seed: (np.array(trace["loss"]) / 100, np.array(trace["norm"]) / 1000)
    for seed, trace in json.loads((pathlib.Path(__file__).parent / "tiny_traces.json").read_text()).items()
}
SIGMAS = 6.0
FIRST = 64  # steps that are only collected


@jax.jit
def _scan(losses, norms):
    def step(recent, values):
        loss, norm = values
        bad, recent = detect_bad_step(recent, loss, norm, SIGMAS)
        return recent, bad

    return jax.lax.scan(step, no_recent_steps(), (losses, norms))[1]


def _bad(losses, norms):
    """Numbers, from 0, of the steps of a run that count as bad."""
    return np.flatnonzero(_scan(jnp.asarray(losses), jnp.asarray(norms))).tolist()


@pytest.mark.parametrize("seed", TRACES)
def test_no_step_of_a_healthy_run_is_bad(seed):
    assert _bad(*TRACES[seed]) == []


@pytest.mark.parametrize("seed", TRACES)
def test_every_injected_spike_is_bad(seed):
    """One in about fifty steps, of the gradient norm, the loss or both; small ones soon after huge ones too."""
    losses, norms = (values.copy() for values in TRACES[seed])
    rng = np.random.default_rng(len(seed) + int(seed.split(",")[0]))
    places = np.sort(rng.choice(np.arange(FIRST, len(losses)), len(losses) // 50, replace=False)).tolist()
    places += [place + 1 for place in places[:2] if place + 1 not in places and place + 1 < len(losses)]
    for number, place in enumerate(sorted(places)):
        if number % 3 != 1:
            norms[place] *= 100.0 if number % 3 else 3.0
        if number % 3:
            losses[place] *= 2.0
    assert _bad(losses, norms) == sorted(places)


def test_a_batch_of_another_kind_is_no_spike():
    """One step in five is of speech, whose loss is far above that of text."""
    rng = np.random.default_rng(0)
    losses = np.where(rng.random(1000) < 0.2, 4.0, 1.6) + rng.normal(0, 0.05, 1000)
    assert _bad(losses, np.full(1000, 1.0)) == []


def test_steps_that_hardly_differ_hide_no_small_change():
    """Six deviations are little where all steps are alike; a change must be a multiple too."""
    norms = np.full(300, 1.0)
    norms[200], norms[250] = 1.9, 2.1
    assert _bad(np.full(300, 2.0), norms) == [250]


def test_a_lasting_change_is_accepted_before_it_ends_the_run():
    norms = np.full(400, 1.0)
    norms[200:] = 5.0
    bad = _bad(np.full(400, 2.0), norms)
    assert bad == list(range(200, 200 + len(bad)))
    assert 0 < len(bad) < MAX_CONSECUTIVE_BAD_STEPS


def test_values_that_are_not_finite_are_bad_from_the_first_step_on_and_are_not_compared_with():
    losses, norms = np.full(200, 2.0), np.full(200, 1.0)
    losses[[0, 100]], norms[[50, 101]] = np.nan, np.inf
    assert _bad(losses, norms) == [0, 50, 100, 101]
    recent = no_recent_steps()
    for loss, norm in ((2.0, 1.0), (np.nan, 1.0), (2.0, np.inf)):
        _, recent = detect_bad_step(recent, jnp.asarray(loss), jnp.asarray(norm), SIGMAS)
    assert int(recent["count"]) == 1


def test_zero_sigmas_leave_spikes_alone():
    recent = no_recent_steps()
    recent = {"values": recent["values"].at[:].set(1.0), "count": jnp.asarray(500)}
    assert detect_bad_step(recent, jnp.asarray(1.0), jnp.asarray(9.0), SIGMAS)[0]
    assert not detect_bad_step(recent, jnp.asarray(1.0), jnp.asarray(9.0), 0.0)[0]
