"""Goodput: the time of a run by what it was spent on, over all its restarts.

`goodput.json` in the run directory holds the sums. Steps whose result is lost, because the run was killed after them or
because it went back to an older step, move from `steps` to `lost` when the run continues. Time between two processes of
a run is not counted.
"""

import contextlib
import json
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import DAMAGE, read_json, write_file

FILE = "goodput.json"

KINDS = {
    "steps": "productive steps",
    "start": "start and restore",
    "compilation": "compilation and the first step",
    "data": "waiting for data",
    "checkpoints": "checkpoints",
    "evaluation": "evaluation and samples",
    "lost": "steps lost to restarts",
}
"""Names of the kinds of time in `goodput.json`, and what messages call them."""

_REMEMBERED = 50  # steps whose time is known, so that those after the one that a run goes back to can be counted


class Goodput:
    """A clock that adds up seconds by kind.

    Steps are counted from `begin_steps(step)` on. A block `with goodput.during("evaluation"):` counts for another kind,
    and `save(step)` writes the sums.

    Args:
        directory: the run directory; sums of earlier processes are read from it.
        active: False for processes other than the primary one, which write nothing.
        clock: seconds; another one in tests.
    """

    def __init__(
        self,
        directory: str | os.PathLike,
        active: bool = True,
        clock: Callable[[], float] = time.perf_counter,
    ):
        self._path, self._active, self._clock = pathlib.Path(directory, FILE), active, clock
        self.seconds = dict.fromkeys(KINDS, 0.0)
        """Seconds of each kind."""
        self.starts = 1
        """Processes that have worked on the run."""
        self._at: dict[int, float] = {}  # step -> seconds of steps that led to it
        self._kind, self._since = "start", clock()
        with contextlib.suppress(SpiritError, OSError, *DAMAGE):  # figures alone are lost
            stored = read_json(self._path)
            seconds = {kind: float(stored["seconds"].get(kind, 0)) for kind in KINDS}
            at = {int(step): float(before) for step, before in stored["at"].items()}
            self.starts += int(stored["starts"])
            self.seconds, self._at = seconds, at

    @contextlib.contextmanager
    def during(self, kind: str) -> Iterator[None]:
        """Count the time of a block as one of `KINDS`."""
        before = self._switch(kind)
        try:
            yield
        finally:
            self._switch(before)

    def begin_steps(self, step: int) -> None:
        """Count time as steps from now on. Steps after `step` that are counted already are lost.

        Args:
            step: the step from which the run continues; 0 for a new run.
        """
        self._switch("steps")
        if step == 0:
            kept = 0.0
        else:
            known = [before for before in self._at if before <= step]
            if not known:
                return  # a run of an earlier version
            kept = self._at[max(known)]
        lost = max(0.0, self.seconds["steps"] - kept)
        self.seconds["steps"] -= lost
        self.seconds["lost"] += lost
        self._at = {before: seconds for before, seconds in self._at.items() if before <= step}

    def save(self, step: int) -> None:
        """Note that a step is done, and store the sums."""
        self._switch(self._kind)
        self._at[step] = self.seconds["steps"]
        for old in sorted(self._at)[:-_REMEMBERED]:
            del self._at[old]
        if self._active:
            write_file(
                self._path,
                json.dumps(
                    {
                        "seconds": {kind: round(seconds, 3) for kind, seconds in self.seconds.items()},
                        "starts": self.starts,
                        "at": {str(done): round(seconds, 3) for done, seconds in self._at.items()},
                    },
                    indent=1,
                ),
            )

    @property
    def share(self) -> float:
        """Share of the time that productive steps took."""
        return self.seconds["steps"] / max(sum(self.seconds.values()), 1e-9)

    def __str__(self) -> str:
        """One line with every kind that took time, the longest first."""
        total = sum(self.seconds.values())
        parts = sorted(self.seconds.items(), key=lambda item: -item[1])
        listed = ", ".join(f"{KINDS[kind]} {seconds:,.1f}" for kind, seconds in parts if seconds >= 0.05)
        starts = f" in {self.starts} starts" if self.starts > 1 else ""
        return f"goodput {self.share:.1%} of {total:,.1f} s{starts}: {listed}"

    def _switch(self, kind: str) -> str:
        """Add the time since the last call to the current kind, and continue with another; returns the former."""
        now = self._clock()
        self.seconds[self._kind] += now - self._since
        before, self._kind, self._since = self._kind, kind, now
        return before
