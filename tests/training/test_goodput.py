"""The time of a run by what it was spent on."""

import json

import pytest

from spirit_jax.training.goodput import FILE, KINDS, Goodput


class Clock:
    """A clock that a test moves."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def test_time_is_counted_by_kind_and_over_restarts(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, clock=clock)
    clock.now += 3
    goodput.begin_steps(0)
    with goodput.during("compilation"):
        clock.now += 5
    clock.now += 10
    goodput.save(10)
    with goodput.during("checkpoints"):
        clock.now += 1
    clock.now += 20
    goodput.save(30)  # killed after this, with a checkpoint of step 10
    clock = Clock()
    again = Goodput(tmp_path, clock=clock)
    clock.now += 2
    again.begin_steps(10)
    clock.now += 20
    with again.during("data"):
        clock.now += 4
    again.save(30)
    expected = {"steps": 30, "start": 5, "compilation": 5, "data": 4, "checkpoints": 1, "evaluation": 0, "lost": 20}
    assert again.seconds == expected
    assert again.share == pytest.approx(30 / 65)
    assert str(again).startswith(
        "goodput 46.2% of 65.0 s in 2 starts: productive steps 30.0, steps lost to restarts 20.0"
    )
    assert set(KINDS) == set(expected)


def test_a_step_that_the_run_returns_to_makes_later_ones_lost(tmp_path):
    clock = Clock()
    goodput = Goodput(tmp_path, clock=clock)
    goodput.begin_steps(0)
    for step in (2, 4, 6):
        clock.now += 7
        goodput.save(step)
    goodput.begin_steps(2)
    assert (goodput.seconds["steps"], goodput.seconds["lost"]) == (7, 14)
    goodput.begin_steps(0)
    assert (goodput.seconds["steps"], goodput.seconds["lost"]) == (0, 21)


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"seconds": 1, "starts": 1, "at": {}}'])
def test_a_damaged_file_starts_the_count_afresh(tmp_path, content):
    (tmp_path / FILE).write_text(content)
    goodput = Goodput(tmp_path)
    goodput.begin_steps(0)
    goodput.save(1)
    assert json.loads((tmp_path / FILE).read_text())["starts"] == 1
    assert Goodput(tmp_path, active=False).starts == 2
