"""Joining the processes of a job, small agreements between them, and leaving a job that cannot go on."""

import json
import os
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

_GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_ALONE = "or JAX_NUM_PROCESSES=1 for this process alone"


def join_processes(heartbeat_timeout: int = 100) -> None:
    """Join the other processes of a job, where its environment says that there are any; before anything else uses JAX.

    Said by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`; by what `srun` sets
    (one process a task, one GPU a process); or by a TPU VM, whose metadata name the hosts of its slices. `JAX_NUM_PROCESSES=1`
    keeps a process alone anywhere.

    Args:
        heartbeat_timeout: seconds without a sign of life after which a process is taken for dead, which ends the others.

    Raises:
        ValueError: variables that are half set or contradict each other, or hosts that cannot be found; says which.
    """
    arguments = job_of(os.environ, jax.config.jax_platforms or "")
    if arguments is None:
        return
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat_timeout)
    except Exception as error:  # whatever the detection of a cluster or the connection raises
        reason = " ".join(str(error).split())[:300]
        raise ValueError(
            f"the job's processes cannot be joined ({reason}); set {', '.join(_GIVEN)}, {_ALONE}"
        ) from error


def job_of(environment: Mapping[str, str], platforms: str) -> dict[str, Any] | None:
    """What `jax.distributed.initialize` has to be told in an environment; None where there is nothing to join.

    Args:
        environment: variables.
        platforms: `jax.config.jax_platforms`, which importing JAX sets to "tpu,cpu" on a TPU VM.

    Raises:
        ValueError: as `join_processes`.
    """
    given = {name: environment[name] for name in _GIVEN if environment.get(name)}
    if given == {"JAX_NUM_PROCESSES": "1"}:
        return None
    if given:
        if missing := [name for name in _GIVEN if name not in given]:
            raise ValueError(f"{', '.join(given)} set but not {', '.join(missing)}: a job needs all three, {_ALONE}")
        address, count, index = given.values()
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ValueError(f"JAX_PROCESS_ID must be one of 0..JAX_NUM_PROCESSES-1, found {index!r} of {count!r}")
        if not address.rpartition(":")[2].isdigit() or ":" not in address:
            raise ValueError(f"JAX_COORDINATOR_ADDRESS must be host:port of process 0, found {address!r}")
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    if environment.get("SLURM_NTASKS", "1") != "1":
        if missing := [name for name in _SLURM if name not in environment]:
            raise ValueError(
                f"SLURM_NTASKS is {environment['SLURM_NTASKS']} but {', '.join(missing)} unset: start every task with srun, {_ALONE}"
            )
        return {}
    if platforms.split(",")[0] == "tpu":
        return {}
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") and not environment.get("JAX_PLATFORMS"):
        raise ValueError(
            "TPU_WORKER_HOSTNAMES names several hosts, but JAX finds no TPU here: install libtpu (pip install 'jax[tpu]'), "
            f"{_ALONE}"
        )
    return None


def leave(prog: str, error: BaseException, code: int) -> NoReturn:
    """End this process of a job at once with one line on standard error.

    An ordinary exit would wait for the other processes, which wait for this one or are dead. They end when their
    collectives break or when this one's heartbeats are missed.
    """
    where = f"process {jax.process_index()} of {jax.process_count()}"
    reason = str(error) or type(error).__name__
    if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in reason:
        reason, code = (
            f"an exchange with the other processes failed, so one of them has ended: see its log ({reason})",
            1,
        )
    print(f"{prog}: error: {where}: {' '.join(reason.split())[:1000]}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


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
