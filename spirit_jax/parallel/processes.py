"""Small agreements between the processes of a job."""

import json
import os
from typing import Any

import jax
import numpy as np
from jax.experimental import multihost_utils


def join_processes() -> None:
    """Join the other processes of a job, where its environment says that there are any; before anything else uses JAX.

    Said by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`, or by what a TPU pod and
    Slurm set themselves.
    """
    address = os.environ.get("JAX_COORDINATOR_ADDRESS")
    if address is not None:
        count, index = (int(os.environ[name]) for name in ("JAX_NUM_PROCESSES", "JAX_PROCESS_ID"))
        jax.distributed.initialize(address, count, index)
    elif "," in os.environ.get("TPU_WORKER_HOSTNAMES", "") or int(os.environ.get("SLURM_NTASKS", "1")) > 1:
        jax.distributed.initialize()


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
