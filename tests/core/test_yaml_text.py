"""YAML of config files: names stay as written, and whatever is in the file is read or refused in one line."""

import time

import pytest
import yaml

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.yaml_text import read_yaml_text, with_text_keys
from tests.support.mutations import text_mutations

CONFIG = """\
run_directory: runs/x
data:
  sources: &s
    text: {path: "{run}/records/a", recipe: text}
    2024: {path: b, words: [10, 30]}
  others: *s
loop: {steps: 500, rate: 1.0e-3}
list:
  - {prompt: "[Text]On Sunday", modality: speech}
  - é
"""


class ConfigError(SpiritError):
    """The error that the reader raises in these tests."""


def _read(text):
    return yaml.safe_load(with_text_keys(text, "file.yaml", ConfigError))


@pytest.mark.parametrize(
    "name", ["2024", "-1", "1.50", "0x10", "007", "no", "True", "null", "~", "2024-01-31", "12:30"]
)
def test_a_name_is_the_text_that_was_written(name):
    assert _read(f"sources:\n  {name}: {{path: {name}}}") == {"sources": {name: {"path": yaml.safe_load(name)}}}


def test_values_anchors_and_merges_are_kept():
    assert _read("a: &x {b: 1, 2: yes}\nc: *x\nd:\n  <<: *x\n  b: 1e-3\n") == {
        "a": {"b": 1, "2": True},
        "c": {"b": 1, "2": True},
        "d": {"b": "1e-3", "2": True},
    }
    assert _read(CONFIG)["data"]["others"]["2024"] == {"path": "b", "words": [10, 30]}
    assert with_text_keys("# nothing\n", "file.yaml", ConfigError) == ""


BILLION = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 9)}]\n" for before, name in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("a: 1\nb: [1\nc: 2", r"file.yaml, line 3: not YAML"),
        ("[1, 2]", "file.yaml: expected entries `name: value`, found a list"),
        ("hello", "file.yaml: expected entries `name: value`, found 'hello'"),
        ("a: 1\n'a': 2", "file.yaml, line 2: 'a' is there twice"),
        ("x:\n  ? [1]\n  : 2", "file.yaml, line 2: a list or mapping is no name"),
        ("a: &a [*a]", "file.yaml, line 1: an alias to a part that holds it"),
        ("a: " + "[" * 60, "file.yaml, line 1: values are nested more than 50 deep"),
        ("- " * 100_000, "file.yaml, line 1: values are nested more than 50 deep"),
        (BILLION, "file.yaml: holds more than 100000 values"),
        ("a: \x07", "file.yaml: not YAML"),
    ],
    ids=lambda value: value[:20],
)
def test_other_files_are_refused_with_their_line(text, message):
    began = time.monotonic()
    with pytest.raises(ConfigError, match=message):
        with_text_keys(text, "file.yaml", ConfigError)
    assert time.monotonic() - began < 2


@pytest.mark.parametrize("content", [b"\xff\xfe", b"a: \xe9"])
def test_a_file_that_is_not_utf_8_is_named(content, tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"config\.yaml: not UTF-8"):
        read_yaml_text(path, ConfigError)


def test_a_byte_order_mark_and_a_device(tmp_path):
    path = tmp_path / "config.yaml"
    path.write_bytes(b"\xef\xbb\xbfseed: 1\n")
    assert yaml.safe_load(read_yaml_text(path, ConfigError)) == {"seed": 1}
    with pytest.raises(ConfigError, match="/dev/zero: is a device or a pipe"):
        read_yaml_text("/dev/zero", ConfigError)


def test_thousands_of_damaged_files_are_read_or_refused_by_name():
    messages = []
    for text in text_mutations(CONFIG, 2000, seed=0):
        try:
            with_text_keys(text, "file.yaml", ConfigError)
        except ConfigError as error:
            messages.append(str(error))
    assert len(messages) > 500
    assert all(message.startswith("file.yaml") for message in messages)
