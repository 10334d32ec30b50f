"""The rules of STSP, speech-text sentiment preservation, as the released code has them (docs/evaluation.md, "STSP").

The released few-shot prompts leave out the prompt of the item itself, so that all items get the same answer; here the
item follows the examples.
"""

import math
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

from spirit_jax.core.files import parse_json, read_text
from spirit_jax.evaluation.items import BenchmarkError

Sentiment = Literal["positive", "negative", "neutral"]
SENTIMENTS: tuple[Sentiment, ...] = ("negative", "neutral", "positive")
"""In alphabetical order, as few-shot prompts have them."""

EMOTIONS: Mapping[str, Sentiment] = {
    "happy": "positive",
    "amused": "positive",
    "angry": "negative",
    "sad": "negative",
    "default": "neutral",
    "neutral": "neutral",
}
"""The sentiment of each emotion of Expresso and EmoV."""


class Agreement(NamedTuple):
    """Predictions beside their references."""

    outcomes: dict[str, bool]
    """Whether the prediction of each id is right."""
    unmatched: dict[str, str]
    """Ids without a prediction or without a label, and why; the released rule leaves them out of the denominator."""

    @property
    def accuracy(self) -> float:
        """Share of right predictions among those that could be compared; NaN if none could."""
        return sum(self.outcomes.values()) / len(self.outcomes) if self.outcomes else math.nan


def compare(
    references: Sequence[Mapping[str, Any]], predictions: Mapping[str, str], label: str = "sentiment"
) -> Agreement:
    """Compare predictions with references by the released rule.

    Args:
        references: with `id`, and the label, or an `emotion` that implies the sentiment.
        predictions: label by id; ids are compared as strings.
    """
    outcomes: dict[str, bool] = {}
    unmatched: dict[str, str] = {}
    for reference in references:
        name = str(reference["id"])
        expected = reference.get(label)
        if expected is None and label == "sentiment":
            expected = EMOTIONS.get(str(reference.get("emotion")))
        if expected is None:
            found = reference.get("emotion")
            unmatched[name] = f"no {label}" + (f"; emotion {found!r} is none of {', '.join(EMOTIONS)}" if found else "")
        elif name not in predictions:
            unmatched[name] = "no prediction"
        else:
            outcomes[name] = predictions[name] == expected
    return Agreement(outcomes, unmatched)


def read_predictions(path: pathlib.Path, references: int) -> dict[str, str]:
    """Read a file of predictions, lines `{"id": ..., "pred": ...}`.

    Raises:
        BenchmarkError: it has another number of lines than there are references, or an id comes twice.
    """
    lines = read_jsonl(path)
    if len(lines) != references:
        raise BenchmarkError(f"{path}: {len(lines)} predictions for {references} references")
    predictions: dict[str, str] = {}
    for line in lines:
        name = str(line.get("id"))
        if name in predictions:
            raise BenchmarkError(f"{path}: id {name} comes twice")
        predictions[name] = str(line.get("pred"))
    return predictions


def read_jsonl(path: pathlib.Path) -> list[dict[str, Any]]:
    """The objects of a JSONL file.

    Raises:
        BenchmarkError: it cannot be read, or a line is not an object; names the line.
    """
    lines = []
    for number, text in enumerate(read_text(path, BenchmarkError).split("\n"), 1):
        if text.strip():
            line = parse_json(text, f"{path}, line {number}", BenchmarkError)
            if not isinstance(line, dict):
                raise BenchmarkError(f"{path}, line {number}: expected an object, found {type(line).__name__}")
            lines.append(line)
    return lines


def read_references(path: pathlib.Path) -> list[dict[str, Any]]:
    """The items of a test file.

    Raises:
        BenchmarkError: as `read_jsonl`, or an item has no `id` or that of another one; names the id or the item.
    """
    rows = read_jsonl(path)
    seen: set[str] = set()
    for number, row in enumerate(rows, 1):
        name = str(row.get("id", ""))
        if not name or name in seen:
            problem = f"id {name} comes twice" if name else "no id"
            raise BenchmarkError(f"{path}, item {number}: {problem}; expected an id that no other item has")
        seen.add(name)
    return rows


def few_shot_rows(rows: Sequence[Mapping[str, Any]], shots: int, choose: Callable[[int, int], Sequence[int]]):
    """The example rows of a prompt: the same number of each sentiment, in alphabetical order.

    Args:
        rows: each with a `sentiment`.
        shots: examples; rounded up to a multiple of three, as in the released code.
        choose: returns `count` of `size` indices, of the rows of one sentiment.

    Raises:
        BenchmarkError: there are too few rows of a sentiment.
    """
    count = -(-shots // len(SENTIMENTS))
    chosen = []
    for sentiment in SENTIMENTS:
        own = [row for row in rows if row.get("sentiment") == sentiment]
        if len(own) < count:
            raise BenchmarkError(f"{shots} examples need {count} rows that are {sentiment}, found {len(own)}")
        chosen += [own[index] for index in choose(len(own), count)]
    return chosen


def few_shot_prompt(rows: Sequence[Mapping[str, Any]], direction: str, speech: Callable[[str, str], str]) -> str:
    """The prompt of examples, `[Text]...[Speech]...` a line each; `rows` have `prompt` and `generation`.

    Args:
        direction: T>T, T>S, S>S or S>T.
        speech: returns the unit tokens of half a file, "first" or "second": prompts are first halves, continuations
            second ones.
    """
    before, _, after = direction.partition(">")
    parts = []
    for row in rows:
        prompt = f"[Text]{row['prompt']}" if before == "T" else f"[Speech]{speech(row['prompt'], 'first')}"
        generation = f"[Text]{row['generation']}" if after == "T" else f"[Speech]{speech(row['generation'], 'second')}"
        parts.append(f"{prompt}{generation}\n")
    return "".join(parts)
