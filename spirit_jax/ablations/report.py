"""What a study found: tables, JSON and a plot."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping
from typing import Any

import numpy as np

from spirit_jax.ablations.comparison import Outcomes, accuracy, common_items, difference, outcome_table
from spirit_jax.ablations.config import AblateConfig
from spirit_jax.core.files import write_file
from spirit_jax.evaluation.report import table
from spirit_jax.evaluation.rules import Estimate

REPORT, VALUES, PLOT = "ablations.md", "ablations.json", "ablations.png"

_CHANCE = 0.5

Results = dict[str, dict[str, list[Outcomes]]]
"""Outcomes of finished models: by figure (TASK:DIRECTION), condition, and seed in a list."""

_Tables = Mapping[str, Mapping[str, np.ndarray]]  # outcomes [seeds, items] by figure and condition


def write_report(settings: AblateConfig, results: Results, output: pathlib.Path) -> str:
    """Write `ablations.md`, `ablations.json` and `ablations.png`, and return the text of the first."""
    tables = _on_common_items(results)
    text = "\n\n".join(["# Ablations", *_condition_part(settings, tables), *_comparison_part(settings, tables)]) + "\n"
    write_file(output / REPORT, text)
    write_file(output / VALUES, json.dumps(_values(settings, tables), indent=1) + "\n")
    plot(settings, tables, output / PLOT)
    return text


def _on_common_items(results: Results) -> _Tables:
    """Outcomes of the items that all models could use, so that all are compared on the same ones."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for figure, conditions in results.items():
        items = common_items([model for models in conditions.values() for model in models])
        if items:
            found[figure] = {name: outcome_table(models, items) for name, models in conditions.items()}
    return found


def _condition_part(settings: AblateConfig, tables: _Tables) -> list[str]:
    if not tables:
        return ["No model is finished yet."]
    rows = []
    for name, condition in settings.conditions.items():
        cells = [_shown(accuracy(found[name])) if name in found else "" for found in tables.values()]
        if any(cells):
            seeds = len(next(found[name] for found in tables.values() if name in found))
            rows.append([name, condition.about, str(seeds), *cells])
    items = ", ".join(f"{figure} {next(iter(found.values())).shape[1]}" for figure, found in tables.items())
    return [
        f"Accuracy in percent, with its 95 % interval over seeds and items; chance is 50. Items: {items}.",
        table(["condition", "what differs", "seeds", *tables], rows),
    ]


def _comparison_part(settings: AblateConfig, tables: _Tables) -> list[str]:
    rows = [
        [
            question,
            f"{first} - {second}",
            figure,
            _shown(found, signed=True),
            "yes" if found.low > 0 or found.high < 0 else "no",
        ]
        for question, first, second, figure, found in _differences(settings, tables)
    ]
    if not rows:
        return []
    return [
        "## Differences",
        "In percentage points, with the 95 % interval. A difference is clear where the interval does not hold 0.",
        table(["question", "difference", "figure", "value", "clear"], rows),
    ]


def _differences(settings: AblateConfig, tables: _Tables) -> list[tuple[str, str, str, str, Estimate]]:
    """Question, first condition, second condition, figure and value of each comparison that can be made."""
    return [
        (c.question, c.first, c.second, figure, difference(tables[figure][c.first], tables[figure][c.second]))
        for c in settings.comparisons
        for figure in c.figures
        if figure in tables and c.first in tables[figure] and c.second in tables[figure]
    ]


def _values(settings: AblateConfig, tables: _Tables) -> dict[str, Any]:
    """The content of ablations.json: fractions, not percent."""
    accuracies = [
        {
            "figure": figure,
            "condition": name,
            **dataclasses.asdict(accuracy(outcomes)),
            "seeds": outcomes.mean(axis=1).tolist(),
        }
        for figure, found in tables.items()
        for name, outcomes in found.items()
    ]
    differences = [
        {"question": question, "first": first, "second": second, "figure": figure, **dataclasses.asdict(value)}
        for question, first, second, figure, value in _differences(settings, tables)
    ]
    return {"accuracies": accuracies, "differences": differences, "study": dataclasses.asdict(settings)}


def _shown(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (
        f"{100 * number:+.1f}" if signed else f"{100 * number:.1f}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def plot(settings: AblateConfig, tables: _Tables, path: pathlib.Path) -> bool:
    """Draw a panel for each figure with the accuracy of every condition, its interval, and each seed by itself.

    Returns:
        Whether a plot was drawn; it is not without matplotlib (extra `plots`) or without results.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return False
    names = [name for name in settings.conditions if any(name in found for found in tables.values())]
    if not names:
        return False
    canvas = Figure(figsize=(2.1 + 2.1 * len(tables), 1.2 + 0.34 * len(names)), layout="constrained")
    panels: Any = np.atleast_1d(canvas.subplots(1, len(tables), sharex=True, sharey=True))
    for axes, (figure, found) in zip(panels, tables.items(), strict=True):
        axes.axvline(100 * _CHANCE, color="gray", linewidth=1, linestyle=":")
        for row, name in enumerate(names):
            if name not in found:
                continue
            shown = accuracy(found[name])
            axes.plot([100 * shown.low, 100 * shown.high], [row, row], color="tab:blue", linewidth=2)
            axes.plot([100 * shown.value], [row], "o", color="tab:blue")
            seeds = 100 * found[name].mean(axis=1)
            axes.plot(seeds, np.full(len(seeds), row + 0.25), ".", color="tab:orange", markersize=4)
        axes.set_title(figure.replace(":", " "), fontsize=9)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    canvas.supxlabel("accuracy in percent; bars: 95 % intervals; small dots: seeds; dotted: chance", fontsize=9)
    canvas.savefig(path, dpi=130)
    return True
