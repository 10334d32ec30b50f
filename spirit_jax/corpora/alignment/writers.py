"""Files that other tools read word times from: Praat's TextGrid, NIST's CTM, and LibriSpeech's alignment lines."""

import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from spirit_jax.core.files import write_file
from spirit_jax.core.paths import as_path
from spirit_jax.corpora.alignment.aligner import WordTime

Timed = tuple[str, float, Sequence[str], Sequence[WordTime]]
"""One utterance: its id, its length in seconds, its words and their times."""


def write_textgrids(directory: Any, utterances: Iterable[Timed]) -> None:
    """One `ID.TextGrid` an utterance, with a tier `words` whose gaps are empty intervals. An id may name folders."""
    for name, seconds, words, times in utterances:
        intervals, reached = [], 0.0
        for word, time in zip(words, times, strict=True):
            start, end = time.start_ms / 1000, min(time.end_ms / 1000, seconds)
            if end <= start:
                continue  # an interval of no length is not allowed
            if start > reached:
                intervals.append((reached, start, ""))
            intervals.append((start, end, word))
            reached = end
        if reached < seconds:
            intervals.append((reached, seconds, ""))
        lines = [
            'File type = "ooTextFile"', 'Object class = "TextGrid"', "", "xmin = 0", f"xmax = {seconds}",
            "tiers? <exists>", "size = 1", "item []:", "    item [1]:", '        class = "IntervalTier"',
            '        name = "words"', "        xmin = 0", f"        xmax = {seconds}",
            f"        intervals: size = {len(intervals)}",
        ]  # fmt: skip
        for number, (start, end, word) in enumerate(intervals, 1):
            text = word.replace('"', '""')
            lines += [
                f"        intervals [{number}]:", f"            xmin = {start}", f"            xmax = {end}",
                f'            text = "{text}"',
            ]  # fmt: skip
        write_file(directory / f"{_relative(name)}.TextGrid", "\n".join(lines) + "\n")


def _relative(name: str) -> pathlib.PurePath:
    """An id as a path that stays below the folder it is written to: ids are data of strangers."""
    parts = [part for part in name.replace("\0", "_").split("/") if part not in ("", ".", "..")]
    return pathlib.PurePath(*parts or ["clip"])


def write_ctm(directory: Any, utterances: Iterable[Timed]) -> None:
    """One `words.ctm`: `ID 1 START DURATION WORD SCORE` a line, in seconds."""
    lines = [
        f"{name} 1 {time.start_ms / 1000:.3f} {(time.end_ms - time.start_ms) / 1000:.3f} {word} {time.score:.3f}\n"
        for name, _, words, times in utterances
        for word, time in zip(words, times, strict=True)
    ]
    write_file(directory / "words.ctm", "".join(lines))


def write_librispeech(directory: Any, utterances: Iterable[Timed]) -> None:
    """One `words.alignment.txt`: `ID ",WORD,,WORD," "END,END,..."` a line; an empty word is silence, ends are in
    seconds."""
    lines = []
    for name, seconds, words, times in utterances:
        names, ends, reached = [], [], 0.0
        for word, time in zip(words, times, strict=True):
            if time.start_ms / 1000 > reached:
                names.append("")
                ends.append(time.start_ms / 1000)
            names.append(word.replace(",", "").replace('"', ""))
            ends.append(reached := time.end_ms / 1000)
        if reached < seconds:
            names.append("")
            ends.append(seconds)
        lines.append(f'{name} "{",".join(names)}" "{",".join(f"{end:.3f}" for end in ends)}"\n')
    write_file(directory / "words.alignment.txt", "".join(lines))


WRITERS: dict[str, Callable[[Any, Iterable[Timed]], None]] = {
    "textgrid": write_textgrids,
    "ctm": write_ctm,
    "librispeech": write_librispeech,
}
"""Writers by the name that `align --write` takes; each takes a folder as `as_path` gives it."""


def write_alignments(names: Sequence[str], directory: str | os.PathLike, utterances: Sequence[Timed]) -> None:
    """Write every file asked for, each kind into a folder of its name."""
    for name in names:
        WRITERS[name](as_path(directory) / name, utterances)
