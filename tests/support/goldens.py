"""Where golden vectors lie: the committed part under tests/golden, the whole set beside a developer's checkout."""

import json
import pathlib

import numpy as np
import pytest

_COMMITTED = pathlib.Path(__file__).parents[1] / "golden"
_SHARED = pathlib.Path(__file__).parents[3] / "shared" / "golden"


def golden(name: str) -> pathlib.Path:
    """A committed golden file or directory; missing is a failure."""
    path = _COMMITTED / name
    assert path.exists(), f"{path} is missing from the repository"
    return path


def shared_golden(name: str) -> pathlib.Path:
    """A golden file that is not committed; skips where the set is not beside the checkout."""
    path = _SHARED / name
    if not path.exists():
        pytest.skip(f"golden vectors not beside this checkout: {path}")
    return path


def golden_json(name: str):
    return json.loads(golden(f"goldens/{name}").read_text())


def golden_arrays(name: str) -> dict[str, np.ndarray]:
    with np.load(golden(f"goldens/{name}"), allow_pickle=False) as file:
        return dict(file)
