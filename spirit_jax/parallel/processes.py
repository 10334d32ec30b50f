"""Small agreements between the processes of a job."""

import json
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def is_primary() -> bool:
    """Whether this is the process that writes what there is one of."""
    return jax.process_index() == 0


def report(message: str) -> None:
    """Print on the primary process."""
    if is_primary():
        print(message, flush=True)


def wait_for_all(name: str) -> None:
    """Go on when every process is here; `name` tells one meeting from another."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


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
