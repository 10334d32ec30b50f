"""Measured curves, the lines fitted to them, and their pictures. `benchmarks.growth` measures them."""

import dataclasses
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
import scipy.optimize


@dataclasses.dataclass
class Curve:
    """One measured curve. The field names are those of the JSON."""

    part: str
    """Part of the benchmark, and of the picture's name."""
    what: str
    """What grows."""
    against: str
    """What it grows with."""
    fixed: str
    """What stays the same."""
    unit: str
    """Unit of `values`: CPU s, or CPU µs a token."""
    degree: int
    """Largest power in the fit: 1 for a line, 2 for a parabola, 0 for a constant."""
    x: list[float] = dataclasses.field(default_factory=list)
    values: list[float] = dataclasses.field(default_factory=list)
    memory: list[float] = dataclasses.field(default_factory=list)
    """Peak in bytes above what the process held before; empty where it was not measured."""

    def add(self, x: float, value: float, memory: float | None = None) -> None:
        """Add a point and print it."""
        self.x.append(x)
        self.values.append(value)
        if memory is not None:
            self.memory.append(memory)
        shown = "" if memory is None else f", {memory / 1e6:.0f} MB"
        print(f"{self.what}, {self.against} {x:g}: {value:.4g} {self.unit}{shown}", flush=True)

    def fit(self) -> "Fit":
        """The fit of the values."""
        return fit(self.x, self.values, self.degree)

    def memory_fit(self) -> "Fit":
        """The line through the memory in MB; peaks below a tenth of it count as a tenth."""
        return fit(self.x, [max(memory / 1e6, 0.1) for memory in self.memory], 1)


@dataclasses.dataclass(frozen=True)
class Fit:
    """a + b x + c x^2, as far as the degree goes, with no negative term."""

    coefficients: tuple[float, ...]
    largest_error: float
    """Largest difference between a point and the fit, relative to the point."""

    def __call__(self, x: Any) -> Any:
        """The fitted value at x."""
        return sum(c * x**power for power, c in enumerate(self.coefficients))

    def __str__(self) -> str:
        """The formula, with terms of zero left out."""
        names = ("", " x", " x²")
        terms = [f"{c:.3g}{names[power]}" for power, c in enumerate(self.coefficients) if c]
        return " + ".join(terms) or "0"


def fit(x: Sequence[float], values: Sequence[float], degree: int) -> Fit:
    """Fit a curve with relative weights."""
    powers = np.stack([np.asarray(x, float) ** power for power in range(degree + 1)], 1)
    scale = 1 / np.asarray(values, float)
    coefficients, _ = scipy.optimize.nnls(powers * scale[:, None], np.ones(len(scale)))
    error = np.abs(powers @ coefficients * scale - 1).max()
    return Fit(tuple(float(c) for c in coefficients), float(error))


def draw(curves: Sequence[Curve], directory: pathlib.Path) -> None:
    """Draw a picture of each part: above the values with their fits, below the memory."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    for part in dict.fromkeys(curve.part for curve in curves):
        own = [curve for curve in curves if curve.part == part]
        figure, axes = plt.subplots(
            2, len(own), figsize=(3.1 * len(own), 4.6), constrained_layout=True, squeeze=False, height_ratios=(3, 2)
        )
        for index, curve in enumerate(own):
            grid = np.linspace(0, max(curve.x), 100)
            upper, lower = axes[:, index]
            _plot(upper, curve.x, curve.values, curve.fit()(grid), grid)
            upper.set(xlabel=curve.against, ylabel=curve.unit)
            if curve.memory:
                _plot(lower, curve.x, np.asarray(curve.memory) / 1e6, curve.memory_fit()(grid), grid)
                lower.set(xlabel=curve.against, ylabel="peak of memory, MB")
            else:
                lower.set_axis_off()
            upper.set_title(f"{curve.what}\n{curve.fixed}", fontsize=8)
        path = directory / f"growth_{part}.png"
        figure.savefig(path, dpi=70)
        plt.close(figure)
        print(f"wrote {path}")


def _plot(axis: Any, x: Any, values: Any, fitted: Any, grid: Any) -> None:
    axis.plot(x, values, "o", color="tab:blue", markersize=4)
    axis.plot(grid, fitted + 0 * grid, color="tab:orange", linewidth=1)  # a constant is one number
    axis.set_ylim(bottom=0)
    axis.set_xlim(left=0)
