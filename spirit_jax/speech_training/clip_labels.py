"""Labels of clips that the user brings: a table with the emotion or the speaking style of each, for example."""

import csv
import io
import json
import pathlib
from collections.abc import Iterable, Mapping, Sequence

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import read_text, shown

_MAX_NAMED = 5  # ids that a message lists


class LabelError(SpiritError):
    """A table of labels that cannot be used; the message names the file, and the line or the clip."""


def read_labels(path: str) -> dict[str, str]:
    """The label of each clip by its id.

    Args:
        path: a JSON object of id to label, or a CSV or TSV file with the columns `id` and `label`.

    Raises:
        LabelError: the file cannot be read, has another form, or names a clip twice.
    """
    suffix = pathlib.Path(path).suffix.lower()
    text = read_text(path, LabelError)
    if suffix == ".json":
        try:
            found = json.loads(text)
        except json.JSONDecodeError as error:
            raise LabelError(f"{path}: no JSON ({error})") from error
        if not isinstance(found, dict) or not all(isinstance(label, str) and label for label in found.values()):
            raise LabelError(f"{path}: expected a JSON object whose values are the labels of the ids")
        return found
    if suffix not in (".csv", ".tsv"):
        raise LabelError(f"{path}: expected a table of labels as .csv, .tsv or .json")
    rows = csv.DictReader(io.StringIO(text), delimiter="\t" if suffix == ".tsv" else ",")
    if rows.fieldnames is None or not {"id", "label"} <= set(rows.fieldnames):
        raise LabelError(f"{path}: expected the columns id and label, found {shown(rows.fieldnames)}")
    labels: dict[str, str] = {}
    for row in rows:
        name, label = (row["id"] or "").strip(), (row["label"] or "").strip()
        if not name or not label:
            raise LabelError(f"{path}, line {rows.line_num}: an id and a label expected")
        if labels.setdefault(name, label) != label:
            raise LabelError(f"{path}, line {rows.line_num}: {name!r} is {label!r} here and {labels[name]!r} before")
    if not labels:
        raise LabelError(f"{path}: holds no labels")
    return labels


def match(
    ids: Sequence[str], labels: Mapping[str, str], names: Sequence[str], *, source: str, skip: bool
) -> tuple[list[int], list[str]]:
    """The number of each clip's label, -1 for a clip without one, and the ids of those clips.

    Args:
        ids: of the clips; "" for one that cannot be read.
        labels: by id.
        names: the labels in the order of their numbers.
        source: names the table in messages.
        skip: whether clips without a label, or with one that is not among `names`, are allowed.

    Raises:
        LabelError: no clip has a label, or some have none and `skip` is false; names them.
    """
    known = {name: number for number, name in enumerate(names)}
    numbers = [known.get(labels.get(each, ""), -1) for each in ids]
    missing = [each for each, number in zip(ids, numbers, strict=True) if number < 0 and each]
    if ids and len(missing) == sum(map(bool, ids)):
        raise LabelError(
            f"{source}: its ids are not those of the corpus: it has {_some(labels)}, the corpus {_some(missing)}"
        )
    if missing and not skip:
        raise LabelError(
            f"{source}: {len(missing)} of {len(ids)} clips have no label there: {_some(missing)}; add them, or set "
            "on_bad_label to skip"
        )
    return numbers, missing


def _some(names: Iterable[str]) -> str:
    names = list(names)
    return ", ".join(map(repr, names[:_MAX_NAMED])) + (", ..." if len(names) > _MAX_NAMED else "")
