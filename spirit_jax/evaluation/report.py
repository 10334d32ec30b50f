"""The report of an evaluation: Markdown tables with the paper's figures beside ours, and plots."""

import math
import pathlib
from collections.abc import Mapping, Sequence

from spirit_jax.evaluation.documents import NORMALIZATIONS, SOFTMAXES
from spirit_jax.evaluation.paper import PAPER
from spirit_jax.evaluation.task import Figure, TaskResult

_SHOWN_REASONS = 20  # of unusable items, for each task; the log of the task has all


def markdown(title: str, results: Mapping[str, TaskResult]) -> str:
    """The report: main table, table of scoring variants, table of parts, unusable items, settings."""
    figures = [figure for result in results.values() for figure in result.figures]
    sections = [f"# {title}", _main_table([figure for figure in figures if figure.is_main and not figure.group])]
    notes = list(dict.fromkeys(f"- {f.task}: {f.note}" for f in figures if f.is_main and f.note))
    if notes:
        sections.append("\n".join(notes))
    variants = [figure for figure in figures if "softmax" in figure.variant and not figure.group]
    if variants:
        sections += ["## Scoring variants", _explain_variants(), _variant_table(variants)]
    parts = [figure for figure in figures if figure.group or (not figure.is_main and "softmax" not in figure.variant)]
    if parts:
        sections += ["## Parts and other measures", _part_table(parts)]
    sections.append(_unusable(results))
    sections.append(_settings(results))
    return "\n\n".join(section for section in sections if section) + "\n"


def _main_table(figures: Sequence[Figure]) -> str:
    models = list(dict.fromkeys(name for f in figures for name in PAPER.get((f.task, f.direction, f.measure), {})))
    head = ["task", "direction", "measure", "value", "95 % interval", "items", "unusable", "chance"]
    rows = []
    for f in figures:
        paper = PAPER.get((f.task, f.direction, f.measure), {})
        beside = [f"{paper[name]:.1f}" if name in paper else "" for name in models]
        chance = "" if f.chance is None else _number(f.chance, f.is_fraction)
        interval = _interval(f)
        value = _number(f.estimate.value, f.is_fraction)
        rows.append(
            [f.task, f.direction, f.measure, value, interval, str(f.estimate.count), str(f.unusable), chance, *beside]
        )
    return table([*head, *(f"paper {name}" for name in models)], rows)


def _variant_table(figures: Sequence[Figure]) -> str:
    columns = [
        (normalization, softmax, averaging)
        for averaging in ("zerospeech", "flat")
        for softmax in SOFTMAXES
        for normalization in NORMALIZATIONS
    ]
    values: dict[tuple[str, str], dict[tuple[str, ...], str]] = {}
    for f in figures:
        variant = tuple(f.variant[key] for key in ("normalization", "softmax", "averaging"))
        values.setdefault((f.task, f.direction), {})[variant] = _number(f.estimate.value, f.is_fraction)
    head = ["task", "direction", *(", ".join(column) for column in columns)]
    return table(head, [[*key, *(row.get(column, "") for column in columns)] for key, row in values.items()])


def _explain_variants() -> str:
    lines = [f"- {name}: {meaning}" for name, meaning in {**NORMALIZATIONS, **SOFTMAXES}.items()]
    lines.append("- zerospeech: ties count half, mean over the voices of an item, then over items")
    lines.append("- flat: ties count half, mean over all pairs")
    return "\n".join(lines)


def _part_table(figures: Sequence[Figure]) -> str:
    head = ["task", "direction", "part", "measure", "value", "95 % interval", "items"]
    rows = [
        [f.task, f.direction, f.group, f.measure, _number(f.estimate.value, f.is_fraction), _interval(f),
         str(f.estimate.count)]
        for f in figures
    ]  # fmt: skip
    return table(head, rows)


def _unusable(results: Mapping[str, TaskResult]) -> str:
    lines = []
    for task, result in results.items():
        if not result.unusable:
            continue
        lines.append(f"### {task}: {len(result.unusable)} items could not be used and are not in its figures\n")
        shown = list(result.unusable.items())[:_SHOWN_REASONS]
        lines += [f"- {name}: {reason}" for name, reason in shown]
        if len(result.unusable) > len(shown):
            lines.append(f"- and {len(result.unusable) - len(shown)} more; items/{task}*.jsonl names all")
        lines.append("")
    return "\n".join(["## Unusable items", "", *lines]).rstrip() if lines else ""


def _settings(results: Mapping[str, TaskResult]) -> str:
    rows = []
    for task, result in results.items():
        rows += [[task, key, str(value)] for key, value in {**result.data, **result.files}.items()]
        rows += [[task, key, str(value)] for key, value in result.settings.items() if not isinstance(value, Mapping)]
    return "## Data and settings\n\n" + table(["task", "setting", "value"], rows) if rows else ""


def _number(value: float, is_fraction: bool) -> str:
    if math.isnan(value):
        return "none"
    return f"{100 * value:.1f}" if is_fraction else f"{value:.3g}"


def _interval(figure: Figure) -> str:
    low, high = (_number(value, figure.is_fraction) for value in (figure.estimate.low, figure.estimate.high))
    return "" if low == "none" else f"{low} to {high}"


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table with columns of even width."""
    cells = [[cell.replace("|", "\\|").replace("\n", " ") for cell in row] for row in (head, *rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = [
        "| " + " | ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)) + " |" for row in cells
    ]
    lines.insert(1, "|" + "|".join("-" * (width + 2) for width in widths) + "|")
    return "\n".join(lines)


def plot(results: Mapping[str, TaskResult], path: pathlib.Path) -> bool:
    """Draw the main figures that are fractions, with their intervals, chance and the paper's Base.

    Returns:
        Whether a plot was drawn; it is not without matplotlib (extra `plots`) or without figures.
    """
    figures = [
        f
        for result in results.values()
        for f in result.figures
        if f.is_main and not f.group and f.is_fraction and not math.isnan(f.estimate.value)
    ]
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return False
    if not figures:
        return False
    canvas = Canvas(figsize=(7, 0.8 + 0.35 * len(figures)), layout="constrained")
    axes = canvas.subplots()
    for row, f in enumerate(figures):
        value, low, high = (100 * number for number in (f.estimate.value, f.estimate.low, f.estimate.high))
        axes.plot([low, high], [row, row], color="tab:blue", linewidth=2)
        axes.plot([value], [row], "o", color="tab:blue", label="this model" if row == 0 else None)
        if f.chance is not None:
            axes.plot([100 * f.chance], [row], "|", color="gray", markersize=14)
        paper = PAPER.get((f.task, f.direction, f.measure), {})
        if "Base" in paper:
            axes.plot([paper["Base"]], [row], "x", color="tab:orange")
    labels = [" ".join(part for part in (f.task, f.direction, f.measure) if part) for f in figures]
    axes.set_yticks(range(len(figures)), labels)
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("percent; bars are 95 % intervals, | is chance, x the paper's Base")
    canvas.savefig(path, dpi=120)
    return True
