"""StoryCloze and Topic-StoryCloze (Mostafazadeh et al. 2016; Hassid et al. 2023, arXiv 2305.13009) in four directions.

A story has a fitting and an unfitting ending; Topic-StoryCloze takes the unfitting one from a story on another topic.
The files are slamkit's: `NAME_correct`, `NAME_incorrect` and, for the story before its ending, `NAME_mutual`, as `.wav`
and `.txt`, in the folder or below it. Without `_mutual`, the other two are whole stories.

T and S score whole stories; the parts of a spoken one are joined and encoded as one recording, as slamkit does. T>S and
S>T score the ending given the story in the other modality. The paper does not state which tokens it counts.
"""

import pathlib

from spirit_jax.core.files import read_text
from spirit_jax.evaluation.items import (
    AUDIO_SUFFIXES,
    BenchmarkError,
    Choice,
    Clip,
    Hypothesis,
    Text,
    Unusable,
)
from spirit_jax.evaluation.likelihood import LikelihoodTask
from spirit_jax.evaluation.task import BUNDLED, About

DIRECTIONS = ("T", "S", "T>S", "S>T")
_ROLES = ("correct", "incorrect", "mutual")


def read_stories(root: pathlib.Path, direction: str) -> list[Choice | Unusable]:
    """The stories of a folder, in the order of their names.

    Raises:
        BenchmarkError: there are none.
    """
    found: dict[str, dict[str, pathlib.Path]] = {}
    suffixes = (*AUDIO_SUFFIXES, ".txt")
    for path in sorted(root.rglob("*")) if root.is_dir() else []:
        name, _, role = path.stem.rpartition("_")
        if role in _ROLES and path.suffix.lower() in suffixes:
            kind = "T" if path.suffix.lower() == ".txt" else "S"
            story = str((path.parent / name).relative_to(root))
            found.setdefault(story, {}).setdefault(f"{role} {kind}", path)
    if not found:
        raise BenchmarkError(f"{root}: no NAME_correct and NAME_incorrect with {', '.join(suffixes)} there")
    return [_story(name, files, direction) for name, files in sorted(found.items(), key=lambda story: _order(story[0]))]


def _order(name: str) -> tuple[int, str]:
    """Numbers in their order, before other names."""
    last = pathlib.PurePath(name).name
    return (int(last), name) if last.isdecimal() else (2**62, name)


def _story(name: str, files: dict[str, pathlib.Path], direction: str) -> Choice | Unusable:
    before, _, after = direction.rpartition(">")
    beginning = files.get(f"mutual {before or after}")
    if before and beginning is None:
        return Unusable(name, f"{name}_mutual: no {_name(before)} of the story before its ending")
    endings = [files.get(f"{role} {after}") for role in ("correct", "incorrect")]
    for role, path in zip(("correct", "incorrect"), endings, strict=True):
        if path is None:
            return Unusable(name, f"{name}_{role}: no {_name(after)} of this ending")
    try:
        hypotheses = [_hypothesis(beginning, path, before, after) for path in endings if path is not None]
    except BenchmarkError as error:
        return Unusable(name, str(error))
    return Choice(name, tuple(hypotheses), item=name)


def _hypothesis(beginning: pathlib.Path | None, ending: pathlib.Path, before: str, after: str) -> Hypothesis:
    if after == "S":
        if before == "T":
            assert beginning is not None
            return Hypothesis((Clip((ending,)),), (Text(f"{_text(beginning)} "),))
        return Hypothesis((Clip((ending,) if beginning is None else (beginning, ending)),))
    if before == "S":
        assert beginning is not None
        return Hypothesis((Text(_text(ending)),), (Clip((beginning,)),))
    story = _text(ending) if beginning is None else f"{_text(beginning)} {_text(ending)}"
    return Hypothesis((Text(story),))


def _text(path: pathlib.Path) -> str:
    text = " ".join(read_text(path, BenchmarkError).split())
    if not text:
        raise BenchmarkError(f"{path}: is empty")
    return text


def _name(modality: str) -> str:
    return "text" if modality == "T" else "recording"


def _about(title: str, source: str) -> About:
    return About(
        title=title,
        directions=DIRECTIONS,
        data="NAME_correct, NAME_incorrect, NAME_mutual as .wav and .txt",
        source=source,
        license="StoryCloze: by request to its authors",
    )


TOPIC_STORYCLOZE = LikelihoodTask(
    "tstorycloze",
    _about("ending on the topic or on another one", "https://github.com/slp-rl/slamkit (tSC), or facebook's TWIST"),
    read_stories,
)
STORYCLOZE = LikelihoodTask(
    "storycloze",
    _about("fitting or unfitting ending", "https://github.com/slp-rl/slamkit (sSC), or facebook's TWIST"),
    read_stories,
)
MINI_STORIES = LikelihoodTask(
    "mini_stories",
    About(
        "ending on the topic or on another one",
        DIRECTIONS,
        "spoken by eSpeak NG (tools/make_mini_benchmark.py)",
        "this package",
        "Apache-2.0",
        BUNDLED / "stories",
    ),
    read_stories,
)
