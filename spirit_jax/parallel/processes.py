"""Small agreements between the processes of a job."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def gather_json(value: Any) -> list[Any]:
    """The JSON values of all processes, by process index; every process must call it."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(encoded.size))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: encoded.size] = encoded
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(gathered, lengths, strict=True)]
