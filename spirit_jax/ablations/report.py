"""The report of a study: tables, JSON and a plot."""

import dataclasses
import json
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from spirit_jax.ablations.comparison import Outcomes, accuracy, common_items, difference, outcome_table
from spirit_jax.ablations.config import AblateConfig
from spirit_jax.core.files import write_file
from spirit_jax.evaluation.report import table
from spirit_jax.evaluation.rules import Estimate

REPORT, VALUES, PLOT = "ablations.md", "ablations.json", "ablations.png"

Results = dict[str, dict[str, list[Outcomes]]]
"""Outcomes of finished models: by figure (TASK:DIRECTION), condition, and seed in a list."""

_Tables = Mapping[str, Mapping[str, np.ndarray]]  # outcomes [seeds, items] by figure and condition
_Accuracies = Mapping[str, Mapping[str, Estimate]]  # by figure and condition
_Difference = tuple[str, str, str, str, Estimate]  # question, first condition, second condition, figure, value


def write_report(settings: AblateConfig, results: Results, chances: Mapping[str, float], output: pathlib.Path) -> str:
    """Write `ablations.md`, `ablations.json` and `ablations.png`, and return the text of the first.

    Args:
        chances: accuracy of guessing, by figure.
    """
    tables = _on_common_items(results)
    accuracies = {
        figure: {name: accuracy(outcomes) for name, outcomes in found.items()} for figure, found in tables.items()
    }
    differences = _differences(settings, tables)
    parts = ["# Ablations", *_condition_part(settings, results, accuracies, chances), *_comparison_part(differences)]
    text = "\n\n".join(parts) + "\n"
    write_file(output / REPORT, text)
    write_file(output / VALUES, json.dumps(_values(settings, tables, accuracies, differences), indent=1) + "\n")
    _plot(settings, tables, accuracies, chances, output / PLOT)
    return text


def _on_common_items(results: Results) -> _Tables:
    """Outcomes of the items that all models could use, so that all are compared on the same ones."""
    found: dict[str, dict[str, np.ndarray]] = {}
    for figure, conditions in results.items():
        items = common_items([model for models in conditions.values() for model in models])
        if items:
            found[figure] = {name: outcome_table(models, items) for name, models in conditions.items()}
    return found


def _condition_part(
    settings: AblateConfig, results: Results, accuracies: _Accuracies, chances: Mapping[str, float]
) -> list[str]:
    if not results:
        return ["No model is finished yet."]
    rows = []
    for name, condition in settings.conditions.items():
        seeds = next((len(conditions[name]) for conditions in results.values() if name in conditions), 0)
        if seeds:
            cells = [_shown(found[name]) if name in found else "" for found in accuracies.values()]
            rows.append([name, condition.about, str(seeds), *cells])
    items = ", ".join(
        f"{figure} {_counts(conditions, accuracies.get(figure, {}))} (chance {100 * chances[figure]:.0f})"
        for figure, conditions in results.items()
    )
    return [
        f"Accuracy in percent, with its 95 % interval over seeds and items. Items: {items}.",
        table(["condition", "what differs", "seeds", *accuracies], rows),
    ]


def _counts(conditions: Mapping[str, Sequence[Outcomes]], found: Mapping[str, Estimate]) -> str:
    """How many items all models could use, and of how many that any could use if these are more."""
    common = next(iter(found.values())).count if found else 0
    known = len({item for models in conditions.values() for model in models for item in model})
    return str(common) if common == known else f"{common} of {known}, because not every model can use the others"


def _comparison_part(differences: Sequence[_Difference]) -> list[str]:
    rows = [
        [
            question,
            f"{first} - {second}",
            figure,
            _shown(found, signed=True),
            "yes" if found.low > 0 or found.high < 0 else "no",
        ]
        for question, first, second, figure, found in differences
    ]
    if not rows:
        return []
    return [
        "## Differences",
        "In percentage points, with the 95 % interval. A difference is clear where the interval does not hold 0.",
        table(["question", "difference", "figure", "value", "clear"], rows),
    ]


def _differences(settings: AblateConfig, tables: _Tables) -> list[_Difference]:
    """The comparisons that can be made."""
    return [
        (c.question, c.first, c.second, figure, difference(tables[figure][c.first], tables[figure][c.second]))
        for c in settings.comparisons
        for figure in c.figures
        if figure in tables and c.first in tables[figure] and c.second in tables[figure]
    ]


def _values(
    settings: AblateConfig, tables: _Tables, accuracies: _Accuracies, differences: Sequence[_Difference]
) -> dict[str, Any]:
    """The content of ablations.json: fractions, not percent."""
    of_conditions = [
        {
            "figure": figure,
            "condition": name,
            **dataclasses.asdict(accuracies[figure][name]),
            "seeds": outcomes.mean(axis=1).tolist(),
        }
        for figure, found in tables.items()
        for name, outcomes in found.items()
    ]
    between = [
        {"question": question, "first": first, "second": second, "figure": figure, **dataclasses.asdict(value)}
        for question, first, second, figure, value in differences
    ]
    return {"accuracies": of_conditions, "differences": between, "study": dataclasses.asdict(settings)}


def _shown(estimate: Estimate, signed: bool = False) -> str:
    value, low, high = (
        f"{100 * number:+.1f}" if signed else f"{100 * number:.1f}"
        for number in (estimate.value, estimate.low, estimate.high)
    )
    return f"{value} ({low} to {high})"


def _plot(
    settings: AblateConfig,
    tables: _Tables,
    accuracies: _Accuracies,
    chances: Mapping[str, float],
    path: pathlib.Path,
) -> None:
    """Draw a panel for each figure with the accuracy of every condition, its interval, and each seed by itself.

    Nothing is drawn without matplotlib (extra `plots`) or without results.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return
    names = [name for name in settings.conditions if any(name in found for found in tables.values())]
    if not names:
        return
    canvas = Figure(figsize=(2.1 + 2.1 * len(tables), 1.2 + 0.34 * len(names)), layout="constrained")
    panels: Any = np.atleast_1d(canvas.subplots(1, len(tables), sharex=True, sharey=True))
    for axes, (figure, found) in zip(panels, tables.items(), strict=True):
        axes.axvline(100 * chances[figure], color="gray", linewidth=1, linestyle=":")
        for row, name in enumerate(names):
            if name not in found:
                continue
            shown = accuracies[figure][name]
            axes.plot([100 * shown.low, 100 * shown.high], [row, row], color="tab:blue", linewidth=2)
            axes.plot([100 * shown.value], [row], "o", color="tab:blue")
            seeds = 100 * found[name].mean(axis=1)
            axes.plot(seeds, np.full(len(seeds), row + 0.25), ".", color="tab:orange", markersize=4)
        axes.set_title(figure.replace(":", " "), fontsize=9)
    panels[0].set_yticks(range(len(names)), names)
    panels[0].invert_yaxis()
    canvas.supxlabel("accuracy in percent; bars: 95 % intervals; small dots: seeds; dotted: chance", fontsize=9)
    canvas.savefig(path, dpi=130)
