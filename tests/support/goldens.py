"""Golden vectors under tests/golden: files, arrays, tolerances, and the rule for comparing codes."""

import functools
import json
import pathlib
from typing import Any

import numpy as np

_DIRECTORY = pathlib.Path(__file__).parents[1] / "golden"


def golden(name: str) -> pathlib.Path:
    """A golden file or directory by its path under tests/golden."""
    path = _DIRECTORY / name
    assert path.exists(), f"{path} is missing from the repository"
    return path


def golden_json(name: str) -> Any:
    """The content of a JSON file under tests/golden/goldens."""
    return json.loads(golden(f"goldens/{name}").read_text())


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    """The arrays of an NPZ file under tests/golden/goldens."""
    with np.load(golden(f"goldens/{name}"), allow_pickle=False) as file:
        return dict(file)


@functools.cache
def manifest() -> dict[str, dict[str, Any]]:
    """Metadata of each golden array, by `FILE/KEY` (tests/golden/README.md)."""
    return golden_json("manifest.json")


def tolerance(name: str) -> float:
    """The absolute tolerance of a golden array: ten times the reference's own float32 noise."""
    return manifest()[name]["suggested_atol"]


def check_codes(ours: np.ndarray, expected: np.ndarray, margin: np.ndarray) -> None:
    """Codes are equal wherever the best class beats the second by more than float32 noise."""
    assert len(ours) == len(expected)
    sure = margin >= 1e-3
    assert sure.mean() > 0.9
    np.testing.assert_array_equal(np.asarray(ours)[sure], expected[sure])
