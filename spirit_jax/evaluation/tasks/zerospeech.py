"""sWUGGY and sBLIMP of ZeroSpeech 2021 (Nguyen et al. 2020, arXiv 2011.11588): words and grammar.

sWUGGY asks whether a word is more likely than a non-word that sounds like one, sBLIMP whether a grammatical sentence is
more likely than an ungrammatical one. The layout is that of sLM21: `lexical/dev/gold.csv` and `syntactic/dev/gold.csv`
beside the recordings. The paper reads the words and sentences also as text.
"""

import collections
import functools
import pathlib
from collections.abc import Mapping, Sequence

from spirit_jax.evaluation.items import (
    BenchmarkError,
    Choice,
    Clip,
    Hypothesis,
    Text,
    Unusable,
    audio_files,
    csv_table,
    find_clip,
)
from spirit_jax.evaluation.likelihood import LikelihoodTask
from spirit_jax.evaluation.task import BUNDLED, About

GOLD = "gold.csv"
_COMMON = ("id", "filename", "voice", "correct")


def find_set(root: pathlib.Path, kind: str) -> pathlib.Path:
    """The folder of recordings in what a user named: the data set, its `lexical` or `syntactic`, or the set itself.

    Raises:
        BenchmarkError: there is no such folder.
    """
    for folder in (root, root / "dev", root / kind / "dev"):
        if (folder / GOLD).is_file():
            return folder
    if root.is_dir() and any(path.suffix == ".wav" for path in root.iterdir()):
        return root
    raise BenchmarkError(f"{root}: neither {GOLD} nor {kind}/dev/{GOLD} there; expected the layout of sLM21")


def read_lexical(root: pathlib.Path, direction: str) -> list[Choice | Unusable]:
    """Words and non-words; those of one id and voice are a pair. T takes each pair once, whatever its voices.

    Raises:
        BenchmarkError: as `find_set` and `csv_table`.
    """
    folder = find_set(root, "lexical")
    if not (folder / GOLD).is_file():
        return _without_gold(folder, direction)
    rows = csv_table(folder / GOLD, (*_COMMON, "frequency", "word"))
    return _pairs(folder, rows, direction, key=("id", "voice"), item=("id",), text=("word", "phones"), group=None)


def read_syntactic(root: pathlib.Path, direction: str) -> list[Choice | Unusable]:
    """Sentences; those of one type, subtype, id and voice are a pair. T takes each pair once, whatever its voices.

    Raises:
        BenchmarkError: as `find_set` and `csv_table`.
    """
    folder = find_set(root, "syntactic")
    if not (folder / GOLD).is_file():
        return _without_gold(folder, direction)
    rows = csv_table(folder / GOLD, (*_COMMON, "type", "subtype", "transcription"))
    item = ("type", "subtype", "id")
    return _pairs(folder, rows, direction, key=(*item, "voice"), item=item, text=("transcription",), group="type")


def _pairs(
    folder: pathlib.Path,
    rows: Sequence[Mapping[str, str]],
    direction: str,
    key: Sequence[str],
    item: Sequence[str],
    text: Sequence[str],
    group: str | None,
) -> list[Choice | Unusable]:
    """Pair the rows of correct and incorrect recordings that agree in `key`, in the order of the file.

    Args:
        item: columns that name what a pair is about, whatever its voice.
        text: columns of the spelling; the first that is not empty counts.
        group: column that is reported by itself.
    """
    sides: dict[tuple[str, ...], tuple[list, list]] = collections.defaultdict(lambda: ([], []))
    for row in rows:
        sides[tuple(row[name] for name in key)][row["correct"].strip() in ("0", "0.0", "False")].append(row)
    items: list[Choice | Unusable] = []
    seen: set[tuple[str, ...]] = set()
    for values, (right, wrong) in sides.items():
        name = "-".join(values)
        if len(right) != len(wrong):
            items.append(Unusable(name, f"{len(right)} correct and {len(wrong)} incorrect rows in {folder / GOLD}"))
            continue
        for number, pair in enumerate(zip(right, wrong, strict=True)):
            about = (*(pair[0][column] for column in item), str(number) if number else "")
            if direction == "T" and about in seen:
                continue
            seen.add(about)
            label = f"{name}-{number}" if number else name
            hypotheses = [_hypothesis(folder, row, direction, text) for row in pair]
            usable = [hypothesis for hypothesis in hypotheses if isinstance(hypothesis, Hypothesis)]
            if len(usable) < 2:
                items.append(Unusable(label, next(str(h) for h in hypotheses if isinstance(h, str))))
                continue
            items.append(
                Choice(
                    label,
                    tuple(usable),
                    item="-".join(about).rstrip("-"),
                    group=pair[0][group] if group else "",
                    frequency=_frequency(pair[0].get("frequency", "").strip(), folder / GOLD),
                )
            )
    return items


def _frequency(text: str, gold: pathlib.Path) -> int | None:
    """A number of the column `frequency`; None for an empty one.

    Raises:
        BenchmarkError: it is not a number.
    """
    try:
        return int(float(text)) if text else None
    except (ValueError, OverflowError) as error:
        raise BenchmarkError(f"{gold}: frequency must be a number, found {text!r}") from error


def _hypothesis(folder: pathlib.Path, row: Mapping[str, str], direction: str, text: Sequence[str]) -> Hypothesis | str:
    """The hypothesis of a row, or the reason why the row cannot be used."""
    if direction == "T":
        spelling = next((row[column].strip() for column in text if (row.get(column) or "").strip()), "")
        if not spelling:
            return f"{folder / GOLD}: {row['filename']} has no spelling in {' or '.join(text)}"
        return Hypothesis((Text(spelling),), name=row["filename"])
    path = find_clip(folder, row["filename"])
    return f"{folder / row['filename']}: no audio file" if path is None else Hypothesis((Clip((path,)),), (), path.stem)


def _without_gold(folder: pathlib.Path, direction: str) -> list[Choice | Unusable]:
    """The recordings of a test set whose answers are not public: scored for a submission, without an accuracy."""
    if direction != "S":
        return []
    return [
        Choice(path.stem, (Hypothesis((Clip((path,)),), (), path.stem),), path.stem) for path in audio_files(folder)
    ]


_LICENSE = "see the data set's README; the recordings are synthetic"
_task = functools.partial(LikelihoodTask, averaging="zerospeech")

SWUGGY = _task(
    "swuggy",
    About(
        title="word or non-word",
        directions=("T", "S"),
        data="sLM21: lexical/dev with gold.csv and recordings",
        source="https://download.zerospeech.com (sLM21-dataset)",
        license=_LICENSE,
    ),
    read_lexical,
    submission="submission/lexical",
)
SBLIMP = _task(
    "sblimp",
    About(
        title="grammatical or ungrammatical sentence",
        directions=("T", "S"),
        data="sLM21: syntactic/dev with gold.csv and recordings",
        source="https://download.zerospeech.com (sLM21-dataset)",
        license=_LICENSE,
    ),
    read_syntactic,
    submission="submission/syntactic",
)
_MINI = "this package"
MINI_SWUGGY = _task(
    "mini_swuggy",
    About(
        "word or non-word",
        ("T", "S"),
        "spoken by eSpeak NG (tools/make_mini_benchmark.py)",
        _MINI,
        "Apache-2.0",
        BUNDLED,
    ),
    read_lexical,
)
MINI_SBLIMP = _task(
    "mini_sblimp",
    About(
        "grammatical or ungrammatical sentence",
        ("T", "S"),
        "spoken by eSpeak NG (tools/make_mini_benchmark.py)",
        _MINI,
        "Apache-2.0",
        BUNDLED,
    ),
    read_syntactic,
)
