"""python tools/plot_units.py CHECKPOINT [--clip N] [--output FILE]: the units of the start of a bundled clip.

Draws the waveform with its words, one row for each stream of units, and the token string that the language model reads.
CHECKPOINT holds a speech tokenizer: a training run such as `runs/tiny`, or a converted checkpoint. Needs matplotlib.
"""

import argparse
import itertools
import pathlib
import re
import sys

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.patches import Rectangle

from spirit_jax import SpeechTokenizer, SpeechUnits
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.corpora import Utterance, open_corpus
from spirit_jax.units import HUBERT_RATE, PITCH_RATE, STYLE_RATE

COLORS = {"Hu": "#1b6ca8", "Pi": "#c2571a", "St": "#3a7d44", "Text": "#444444", "Speech": "#444444"}
ROWS = (("phonetic, 25 Hz", "Hu", HUBERT_RATE), ("pitch, 12.5 Hz", "Pi", PITCH_RATE), ("style, 1 Hz", "St", STYLE_RATE))
STRING_COLUMNS = 104


def runs(units: np.ndarray) -> list[tuple[int, int, int]]:
    """(value, start, end) of each run of equal units."""
    edges = [0, *(np.flatnonzero(np.diff(units)) + 1).tolist(), len(units)]
    return [(int(units[start]), start, end) for start, end in itertools.pairwise(edges)]


def draw_wave(axis: Axes, audio: np.ndarray, utterance: Utterance, seconds: float) -> None:
    """The waveform, with each word over the time in which it is spoken."""
    axis.plot(np.arange(audio.size) / SAMPLE_RATE, audio / np.abs(audio).max(), color="#444444", linewidth=0.5)
    for word, (start, end) in zip(utterance.words, utterance.spans_ms / 1000, strict=True):
        if end > seconds:
            break
        axis.plot([start + 0.01, end - 0.01], [1.2, 1.2], color="black", linewidth=1)
        axis.text((start + end) / 2, 1.3, word, ha="center", va="bottom", fontsize=10)
    axis.set(ylim=(-1.1, 1.9))
    axis.set_ylabel("audio", rotation=0, ha="right", va="center")


def draw_units(axis: Axes, units: np.ndarray, label: str, kind: str, rate: float) -> None:
    """A cell for each run of equal units, as wide as the run lasts: one token. Style tokens do not collapse."""
    cells = [(int(value), i, i + 1) for i, value in enumerate(units)] if kind == "St" else runs(units)
    for index, (value, start, end) in enumerate(cells):
        shade = 0.8 if index % 2 else 0.6
        cell = Rectangle(
            (start / rate, 0), (end - start) / rate, 1, facecolor=COLORS[kind], alpha=shade, edgecolor="white"
        )
        axis.add_patch(cell)
        middle = (start + end) / 2 / rate
        axis.text(middle, 0.5, str(value), ha="center", va="center", fontsize=7, color="white", weight="bold")
    axis.set(ylim=(0, 1))
    axis.set_ylabel(label, rotation=0, ha="right", va="center")


def draw_string(axis: Axes, string: str) -> None:
    """The token string in a monospaced font, each token in the color of its stream."""
    row, column = 0, 0
    for match in re.finditer(r"\[([A-Z][a-z]+)\d*\]", string):
        if column + len(match[0]) > STRING_COLUMNS:
            row, column = row + 1, 0
        place = {"x": column / STRING_COLUMNS, "y": 1 - 0.2 * row, "transform": axis.transAxes}
        axis.text(**place, s=match[0], family="monospace", fontsize=8.6, va="top", color=COLORS[match[1]])
        column += len(match[0]) + 1
    axis.set_ylabel("tokens", rotation=0, ha="right", va="center")


def main() -> None:
    parser = argparse.ArgumentParser(
        description="Draw the units of the start of a bundled clip.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("checkpoint", help="checkpoint with a speech tokenizer, or a training run")
    parser.add_argument("--clip", type=int, default=0, help="which clip of the bundled corpus")
    parser.add_argument("--seconds", type=float, default=2.0, help="how much of it")
    parser.add_argument("--output", type=pathlib.Path, default=pathlib.Path("units.png"), help="file to write")
    arguments = parser.parse_args()

    utterance = open_corpus("spirit_mini", "validation")[arguments.clip]
    units = SpeechTokenizer.from_pretrained(arguments.checkpoint).encode(utterance.load())
    seconds, rates = arguments.seconds, [rate for _, _, rate in ROWS]
    audio = utterance.load()[: round(seconds * SAMPLE_RATE)]
    if units.pitch is None or units.style is None:
        sys.exit(f"{arguments.checkpoint}: its speech tokenizer has no pitch and style units")
    tracks = (units.hubert, units.pitch, units.style)
    streams = [track[: round(seconds * rate)] for track, rate in zip(tracks, rates, strict=True)]

    figure, axes = plt.subplots(
        5, 1, figsize=(10, 4.6), height_ratios=[2.2, 0.8, 0.8, 0.8, 2.3], constrained_layout=True
    )
    draw_wave(axes[0], audio, utterance, seconds)
    for axis, stream, row in zip(axes[1:4], streams, ROWS, strict=True):
        draw_units(axis, stream, *row)
    draw_string(axes[4], "[Speech]" + SpeechUnits(*streams).to_string())
    for axis in axes:
        axis.set(xlim=(0, seconds), xticks=[], yticks=[])
        axis.spines[:].set_visible(False)
    axes[3].set(xticks=np.arange(0, seconds + 0.1, 0.5))
    axes[3].tick_params(labelsize=8)
    axes[3].set_xlabel("seconds", fontsize=8)
    figure.savefig(arguments.output, dpi=110)
    print(f"wrote {arguments.output}: {utterance.text!r}")


if __name__ == "__main__":
    main()
