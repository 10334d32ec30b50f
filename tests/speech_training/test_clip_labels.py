"""Tables of labels: their forms, and those that do not fit."""

import pytest

from spirit_jax.speech_training.clip_labels import LabelError, match, read_labels

FORMS = {
    "labels.json": '{"a": "happy", "b": "sad"}',
    "labels.csv": "id,label,note\na,happy,\nb,sad,x\n",
    "labels.tsv": "label\tid\nhappy\ta\nsad\tb\n",
}


@pytest.mark.parametrize("name", FORMS)
def test_labels_are_read(name, tmp_path):
    (tmp_path / name).write_text(FORMS[name])
    assert read_labels(str(tmp_path / name)) == {"a": "happy", "b": "sad"}


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("labels.json", "{", "no JSON"),
        ("labels.json", '["a"]', "expected a JSON object"),
        ("labels.json", '{"a": 3}', "expected a JSON object"),
        ("labels.txt", "a happy", "as .csv, .tsv or .json"),
        ("labels.csv", "name,label\na,happy\n", "columns id and label"),
        ("labels.csv", "id,label\na,\n", "line 2: an id and a label"),
        ("labels.csv", "id,label\na,happy\na,sad\n", "line 3: 'a' is 'sad' here and 'happy' before"),
        ("labels.csv", "id,label\n", "holds no labels"),
        ("labels.csv", "", "columns id and label"),
    ],
)
def test_a_table_that_cannot_be_used_is_named(name, text, message, tmp_path):
    (tmp_path / name).write_text(text)
    with pytest.raises(LabelError, match=message) as error:
        read_labels(str(tmp_path / name))
    assert str(tmp_path / name) in str(error.value)


def test_a_missing_table_is_named():
    with pytest.raises(LabelError, match=r"nowhere\.csv"):
        read_labels("nowhere.csv")


def test_clips_without_a_label_are_an_error_or_skipped():
    labels, names = {"a": "happy", "b": "sad", "c": "odd"}, ["happy", "sad"]
    assert match(["b", "", "a"], labels, names, source="t.csv", skip=False) == ([1, -1, 0], [])
    assert match(["b", "x", "c"], labels, names, source="t.csv", skip=True) == ([1, -1, -1], ["x", "c"])
    with pytest.raises(LabelError, match=r"t\.csv: 1 of 2 clips have no label there: 'x'"):
        match(["b", "x"], labels, names, source="t.csv", skip=False)
    with pytest.raises(LabelError, match="its ids are not those of the corpus"):
        match(["x", "y"], labels, names, source="t.csv", skip=True)
