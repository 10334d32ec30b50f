"""The golden files of the repository: each is used, and each array is the one that the manifest describes."""

import pathlib

import numpy as np
import pytest

from tests.support.goldens import golden, golden_arrays, manifest

TESTS = pathlib.Path(__file__).parent


@pytest.mark.parametrize("path", sorted(golden("goldens").iterdir()), ids=lambda path: path.name)
def test_every_golden_file_is_used(path):
    assert any(path.stem in file.read_text() for file in TESTS.rglob("*.py") if file.name != "test_golden.py")


def test_arrays_have_the_shapes_and_types_of_the_manifest():
    files = {path.name: golden_arrays(path.name) for path in golden("goldens").glob("*.npz")}
    described = 0
    for name, entry in manifest().items():
        arrays = files.get(entry.get("file", ""), {})
        key = name.partition("/")[2]
        if key in arrays:
            assert list(arrays[key].shape) == entry["shape"], name
            assert arrays[key].dtype == np.dtype(entry["dtype"]), name
            described += 1
    assert described > 200
