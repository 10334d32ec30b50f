"""MMLU (Hendrycks et al. 2021, arXiv 2009.03300), 5-shot: multiple-choice questions on 57 subjects, as text.

The prompt is the official one, with one space before the subject where the official program has two. The answer is the
letter with the highest likelihood after `Answer:`. Questions are read from the authors' CSV files
(`dev/SUBJECT_dev.csv`, `test/SUBJECT_test.csv`) or from the parquet files of Hugging Face's `cais/mmlu`
(`SUBJECT/dev-*.parquet`, `SUBJECT/test-*.parquet`).
"""

import pathlib
from collections.abc import Iterable, Sequence
from typing import NamedTuple

from spirit_jax.evaluation.items import BenchmarkError, Choice, Hypothesis, Text, Unusable, csv_rows
from spirit_jax.evaluation.likelihood import LikelihoodTask
from spirit_jax.evaluation.task import About

SHOTS = 5
LETTERS = "ABCD"


class Question(NamedTuple):
    """A question with four answers."""

    text: str
    answers: tuple[str, ...]
    right: int
    """Index of the right answer."""


def read_mmlu(root: pathlib.Path, direction: str) -> list[Choice | Unusable]:
    """The test questions of all subjects, each after the first five questions of its subject's `dev`.

    Raises:
        BenchmarkError: there are no questions, or a file cannot be read.
    """
    items: list[Choice | Unusable] = []
    for subject, examples, questions in _subjects(root):
        try:
            shots = _questions(examples)
            rows = _questions(questions)
        except BenchmarkError as error:
            items.append(Unusable(subject, str(error)))
            continue
        if len(shots) < SHOTS:
            items.append(Unusable(subject, f"{examples}: {len(shots)} questions, {SHOTS} are needed as examples"))
            continue
        title = subject.replace("_", " ")
        head = f"The following are multiple choice questions (with answers) about {title}.\n\n"
        head += "".join(f"{_question(shot)} {LETTERS[shot.right]}\n\n" for shot in shots[:SHOTS])
        for number, question in enumerate(rows):
            context = (Text(head + _question(question)),)
            order = [question.right, *(index for index in range(len(LETTERS)) if index != question.right)]
            hypotheses = tuple(Hypothesis((Text(f" {LETTERS[index]}"),), context) for index in order)
            name = f"{subject}/{number}"
            items.append(Choice(name, hypotheses, item=name, group=subject))
    return items


def _question(question: Question) -> str:
    answers = "".join(f"{letter}. {text}\n" for letter, text in zip(LETTERS, question.answers, strict=True))
    return f"{question.text}\n{answers}Answer:"


def _subjects(root: pathlib.Path) -> Iterable[tuple[str, pathlib.Path, pathlib.Path]]:
    """Name, file of examples and file of test questions of each subject."""
    tests = sorted((root / "test").glob("*_test.csv"))
    if tests:
        for path in tests:
            subject = path.stem.removesuffix("_test")
            yield subject, root / "dev" / f"{subject}_dev.csv", path
        return
    folders = sorted(path.parent for path in root.glob("*/test-*.parquet") if path.parent.name != "all")
    if not folders:
        raise BenchmarkError(f"{root}: neither test/SUBJECT_test.csv nor SUBJECT/test-*.parquet there")
    for folder in folders:
        dev = sorted(folder.glob("dev-*.parquet"))
        yield folder.name, dev[0] if dev else folder / "dev-00000-of-00001.parquet", sorted(folder.glob("test-*"))[0]


def _questions(path: pathlib.Path) -> list[Question]:
    """The questions of a file.

    Raises:
        BenchmarkError: it cannot be read, or a row has another number of columns.
    """
    rows = _parquet_rows(path) if path.suffix == ".parquet" else csv_rows(path)
    questions = []
    for number, row in enumerate(rows, 1):
        if len(row) != 6 or row[5] not in tuple(LETTERS):
            raise BenchmarkError(f"{path}, row {number}: expected a question, four answers and A, B, C or D")
        questions.append(Question(row[0].strip(), tuple(row[1:5]), LETTERS.index(row[5])))
    return questions


def _parquet_rows(path: pathlib.Path) -> Sequence[Sequence[str]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise BenchmarkError(f"{path}: parquet files need pyarrow: pip install pyarrow") from error
    try:
        rows = pyarrow.parquet.read_table(path).to_pylist()
        return [[row["question"], *row["choices"], LETTERS[row["answer"]]] for row in rows]
    except (OSError, pyarrow.ArrowException, KeyError, IndexError, TypeError) as error:
        raise BenchmarkError(f"{path}: not a parquet file of MMLU ({error})") from error


MMLU = LikelihoodTask(
    "mmlu",
    About(
        title="multiple-choice questions, 5-shot",
        directions=("T",),
        data="dev/SUBJECT_dev.csv and test/SUBJECT_test.csv, or SUBJECT/{dev,test}-*.parquet",
        source="https://github.com/hendrycks/test or https://huggingface.co/datasets/cais/mmlu",
        license="MIT",
    ),
    read_mmlu,
    chance=0.25,
)
