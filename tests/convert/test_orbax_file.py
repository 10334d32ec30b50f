"""Writing the language model in blocks, read back by this package and by Orbax."""

import numpy as np
import pytest
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint
from spirit_jax.convert.formats import orbax_file
from spirit_jax.convert.formats.arrays import same_bits


def test_arrays_are_written_in_blocks_of_bounded_size(tmp_path, monkeypatch):
    monkeypatch.setattr(orbax_file, "CHUNK_BYTES", 256)
    rng = np.random.default_rng(0)
    arrays = {
        "a/wide": rng.standard_normal((37, 20), np.float32),
        "a/flat": rng.standard_normal(500),
        "b": np.float32(3),
    }
    seen = []
    orbax_file.save_llm(tmp_path / "c", arrays, seen.append)
    assert sum(seen) == sum(array.nbytes for array in arrays.values())
    assert max(seen) <= 256
    stored = checkpoint.open_arrays(tmp_path / "c", arrays)
    assert all(same_bits(np.asarray(stored[path]), np.asarray(arrays[path])) for path in arrays)


def test_a_flipped_byte_raises_an_error_on_reading(tmp_path):
    array = np.arange(4096, dtype=np.float32)
    orbax_file.save_llm(tmp_path / "c", {"x": array})
    hit = 0
    for path in (tmp_path / "c/llm/d").iterdir():
        content = path.read_bytes()
        at = content.find(array[1000:1010].tobytes())
        if at >= 0:
            path.write_bytes(content[:at] + b"\xff" + content[at + 1 :])
            hit += 1
    assert hit == 1
    with pytest.raises(ValueError, match="mismatch"):
        np.asarray(checkpoint.open_arrays(tmp_path / "c", {"x": None})["x"])
    with pytest.raises(ValueError, match="mismatch"):
        ocp.load(tmp_path / "c", checkpointable_name="llm")
