"""Draws pictures of a training run of the language model.

    python tools/plot_run.py RUN [--output DIR]

`losses.png` shows the training and held-out losses of each kind of token, with the entropy of a model without context.
`sample.png` shows waveform, spectrogram and F0 of the longest clip of the newest samples. `goodput.png` shows what the
time of the run was spent on, over all its restarts. Needs matplotlib.
"""

import argparse
import json
import pathlib
import sys
from typing import Any

import librosa
import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np

from spirit_jax.audio import load_audio
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import read_json, read_text
from spirit_jax.training.goodput import FILE, KINDS
from spirit_jax.vocabulary import TOKEN_KINDS


def plot_losses(records: list[dict[str, Any]], path: pathlib.Path) -> None:
    """Draw the training loss as a line, the held-out loss within the kind as points, the unigram entropy as a dashed
    line.

    Args:
        records: lines of the run's metrics log.
        path: the picture to write.
    """
    kinds = [kind for kind in TOKEN_KINDS if any(f"train/loss_{kind}" in record for record in records)]
    figure, axes = plt.subplots(1, len(kinds), figsize=(3.2 * len(kinds), 3), constrained_layout=True)
    for axis, kind in zip(np.atleast_1d(axes), kinds, strict=True):
        train = [(record["step"], record[f"train/loss_{kind}"]) for record in records if f"train/loss_{kind}" in record]
        axis.plot(*zip(*train, strict=True), color="tab:blue", linewidth=1, label="training")
        held_out = [record for record in records if f"validation/loss_within_{kind}" in record]
        if held_out:
            axis.plot(
                [record["step"] for record in held_out],
                [record[f"validation/loss_within_{kind}"] for record in held_out],
                "o-",
                color="tab:orange",
                label="held out, kind given",
            )
            entropy = held_out[-1][f"validation/unigram_entropy_{kind}"]
            axis.axhline(entropy, color="gray", linestyle="--", label="unigram entropy")
        axis.set(title=kind, xlabel="step")
        axis.set_ylim(bottom=0)
    np.atleast_1d(axes)[0].set_ylabel("nats a token")
    np.atleast_1d(axes)[0].legend(fontsize=7)
    figure.savefig(path, dpi=90)


def plot_sample(clip: pathlib.Path, path: pathlib.Path) -> None:
    """Draw waveform, log spectrogram and F0 of a clip.

    Args:
        clip: an audio file.
        path: the picture to write.
    """
    audio = load_audio(clip)
    time = np.arange(audio.size) / SAMPLE_RATE
    spectrum = librosa.amplitude_to_db(np.abs(librosa.stft(audio, n_fft=512, hop_length=80)), ref=np.max)
    f0, voiced, _ = librosa.pyin(audio, fmin=60, fmax=500, sr=SAMPLE_RATE, frame_length=1024)
    figure, (upper, lower) = plt.subplots(
        2, 1, figsize=(9, 4), sharex=True, height_ratios=[1, 3], constrained_layout=True
    )
    upper.plot(time, audio, linewidth=0.4)
    upper.set(ylabel="amplitude", title=f"{clip.parent.name}/{clip.name}")
    extent = (0, time[-1], 0, SAMPLE_RATE / 2000)
    lower.imshow(spectrum, origin="lower", aspect="auto", extent=extent, vmin=-70, cmap="magma")
    lower.set(xlabel="s", ylabel="kHz", xlim=(0, time[-1]))
    pitch = lower.twinx()
    pitch.plot(np.arange(f0.size) * 256 / SAMPLE_RATE, np.where(voiced, f0, np.nan), color="cyan", linewidth=1.5)
    pitch.set(ylabel="F0 in Hz (cyan)", ylim=(0, 500))
    figure.savefig(path, dpi=90)


def plot_goodput(stored: dict[str, Any], path: pathlib.Path) -> None:
    """Draw the seconds of each kind of time as a bar.

    Args:
        stored: the content of the run's `goodput.json`.
        path: the picture to write.
    """
    seconds = {KINDS[kind]: stored["seconds"][kind] for kind in reversed(KINDS)}
    total = max(sum(seconds.values()), 1e-9)
    figure, axis = plt.subplots(figsize=(7, 2.8), constrained_layout=True)
    bars = axis.barh(list(seconds), list(seconds.values()), color=["tab:gray"] * (len(seconds) - 1) + ["tab:green"])
    axis.bar_label(bars, [f" {value / total:.1%}" for value in seconds.values()])
    axis.set(xlabel="s", title=f"goodput {stored['seconds']['steps'] / total:.1%}, {stored['starts']} start(s)")
    figure.savefig(path, dpi=90)


def main() -> None:
    """Draw the pictures of one run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run", type=pathlib.Path, help="directory of a training run")
    parser.add_argument("--output", type=pathlib.Path, help="directory for the pictures (default: RUN/plots)")
    arguments = parser.parse_args()
    log = arguments.run / "metrics.jsonl"
    if not log.is_file():
        sys.exit(f"{log}: no such file; name the directory of a training run")
    output = arguments.output or arguments.run / "plots"
    output.mkdir(parents=True, exist_ok=True)
    plot_losses([json.loads(line) for line in read_text(log).splitlines()], output / "losses.png")
    clips = sorted(arguments.run.glob("samples/*/*.wav"), key=lambda clip: (int(clip.parent.name), clip.stat().st_size))
    if clips:
        plot_sample(clips[-1], output / "sample.png")
    if (arguments.run / FILE).is_file():
        plot_goodput(read_json(arguments.run / FILE), output / "goodput.png")
    print(f"wrote {', '.join(str(path) for path in sorted(output.glob('*.png')))}")


if __name__ == "__main__":
    main()
