"""Joining the processes of a job, small agreements between them, and ending a process of a job that cannot continue."""

import contextlib
import json
import os
import sys
import traceback
from collections.abc import Iterator, Mapping
from typing import Any, NoReturn

import jax
import numpy as np
from jax.experimental import multihost_utils

from spirit_jax.core.errors import FAILED_JOB, SpiritError, exit_code

_GIVEN = ("JAX_COORDINATOR_ADDRESS", "JAX_NUM_PROCESSES", "JAX_PROCESS_ID")
_SLURM = ("SLURM_JOB_ID", "SLURM_STEP_NODELIST", "SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID")
_ALONE = "or JAX_NUM_PROCESSES=1 for this process alone"


class ProcessError(SpiritError):
    """Processes that cannot be joined to a job; the message names the environment variables."""


def join_processes(heartbeat_timeout: int = 100) -> None:
    """Join the other processes of a job if the environment describes one. Call it before anything else uses JAX.

    A job is described by `JAX_COORDINATOR_ADDRESS` (host:port of process 0), `JAX_NUM_PROCESSES` and `JAX_PROCESS_ID`;
    by the variables that `srun` sets (one process per task, one GPU per process); or by a TPU VM, whose metadata name
    the hosts of its slices. `JAX_NUM_PROCESSES=1` keeps a process alone anywhere.

    Args:
        heartbeat_timeout: seconds without a heartbeat after which a process counts as dead, which ends the others.

    Raises:
        ProcessError: variables are incomplete or contradict each other, or hosts cannot be found; it says which.
    """
    # JAX adds the attributes of its config at run time.
    platforms: str | None = jax.config.jax_platforms  # pyright: ignore[reportAttributeAccessIssue]
    arguments = job_of(os.environ, platforms or "")
    if arguments is None:
        return
    try:
        jax.distributed.initialize(**arguments, heartbeat_timeout_seconds=heartbeat_timeout)
    except Exception as error:  # The detection of a cluster and the connection raise various types.
        reason = " ".join(str(error).split())[:300]
        raise ProcessError(
            f"the job's processes cannot be joined ({reason}); set {', '.join(_GIVEN)}, {_ALONE}"
        ) from error


def job_of(environment: Mapping[str, str], platforms: str) -> dict[str, Any] | None:
    """Return the arguments of `jax.distributed.initialize` for an environment; None if there is no job to join.

    Args:
        environment: environment variables.
        platforms: `jax.config.jax_platforms`, which importing JAX sets to "tpu,cpu" on a TPU VM.

    Raises:
        ProcessError: as `join_processes`.
    """
    given = {name: environment[name] for name in _GIVEN if environment.get(name)}
    if given == {"JAX_NUM_PROCESSES": "1"}:
        return None
    if given:
        if missing := [name for name in _GIVEN if name not in given]:
            raise ProcessError(f"{', '.join(given)} set but not {', '.join(missing)}: a job needs all three, {_ALONE}")
        address, count, index = given.values()
        if not (count.isdigit() and index.isdigit() and int(index) < int(count)):
            raise ProcessError(f"JAX_PROCESS_ID must be one of 0..JAX_NUM_PROCESSES-1, found {index!r} of {count!r}")
        if not address.rpartition(":")[2].isdigit() or ":" not in address:
            raise ProcessError(f"JAX_COORDINATOR_ADDRESS must be host:port of process 0, found {address!r}")
        return {"coordinator_address": address, "num_processes": int(count), "process_id": int(index)}
    if environment.get("SLURM_NTASKS", "1") != "1":
        if missing := [name for name in _SLURM if name not in environment]:
            raise ProcessError(
                f"SLURM_NTASKS is {environment['SLURM_NTASKS']} but {', '.join(missing)} unset: "
                f"start every task with srun, {_ALONE}"
            )
        return {}
    if platforms.split(",")[0] == "tpu":
        return {}
    if "," in environment.get("TPU_WORKER_HOSTNAMES", "") and not environment.get("JAX_PLATFORMS"):
        raise ProcessError(
            "TPU_WORKER_HOSTNAMES names several hosts, but JAX finds no TPU here: "
            f"install libtpu (pip install 'jax[tpu]'), {_ALONE}"
        )
    return None


def place_in_job() -> tuple[int, int]:
    """Number of this process and the number of processes, as the environment describes the job, without joining it.

    Work that is shared through files needs no connection, and so a process that is lost ends no other.

    Raises:
        ProcessError: as `join_processes`.
    """
    arguments = job_of(os.environ, "")
    if arguments is None and os.environ.get("JAX_NUM_PROCESSES") == "1":
        return 0, 1
    if arguments:
        return arguments["process_id"], arguments["num_processes"]
    if arguments is not None:
        return int(os.environ["SLURM_PROCID"]), int(os.environ["SLURM_NTASKS"])
    hosts = os.environ.get("TPU_WORKER_HOSTNAMES", "").split(",")
    number = os.environ.get("TPU_WORKER_ID", "0")
    return (int(number) if number.isdigit() else 0), len(hosts)


def refuse_job(prog: str) -> None:
    """Refuse a job of several processes, for commands whose processes would overwrite each other's files.

    Args:
        prog: the command, for the message.

    Raises:
        ProcessError: the environment describes several processes, or is incomplete.
    """
    number, count = place_in_job()
    if count > 1:
        raise ProcessError(
            f"{prog} runs in one process, and the environment describes process {number} of {count}: start it once, on "
            "one host, with JAX_NUM_PROCESSES=1"
        )


@contextlib.contextmanager
def leave_on_error(prog: str) -> Iterator[None]:
    """Run a command's work: in a job of several processes, any error ends this process at once (see `leave`).

    A process alone raises the error as usual. Put this inside `core.errors.exit_codes`, which maps errors to exit codes
    the same way.
    """
    try:
        yield
    except Exception as error:
        if not (jax.distributed.is_initialized() and jax.process_count() > 1):
            raise
        code = exit_code(error)
        if code is None:
            traceback.print_exc()
        leave(prog, error, FAILED_JOB if code is None else code)


def leave(prog: str, error: BaseException, code: int) -> NoReturn:
    """End this process of a job at once, with one line on standard error.

    An ordinary exit would wait for the other processes, which wait for this one or are dead. They end when their
    collectives break or when they miss this process's heartbeats.
    """
    where = f"process {jax.process_index()} of {jax.process_count()}"
    reason = str(error) or type(error).__name__
    if isinstance(error, jax.errors.JaxRuntimeError) or "Gloo" in reason:
        code = FAILED_JOB
        reason = f"an exchange with the other processes failed, so one of them has ended: see its log ({reason})"
    print(f"{prog}: error: {where}: {' '.join(reason.split())[:1000]}", file=sys.stderr)
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def is_primary() -> bool:
    """Whether this process writes the files and messages that a job has once."""
    return jax.process_index() == 0


def report(message: str) -> None:
    """Print on the primary process."""
    if is_primary():
        print(message, flush=True)


def wait_for_all(name: str) -> None:
    """Wait until every process has called this with the same name."""
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices(name)


def gather_json(value: Any) -> list[Any]:
    """Return the JSON values of all processes, by process index. Every process must call it."""
    if jax.process_count() == 1:
        return [value]
    encoded = np.frombuffer(json.dumps(value).encode(), np.uint8)
    lengths = multihost_utils.process_allgather(np.array(encoded.size))
    padded = np.zeros(int(lengths.max()), np.uint8)
    padded[: encoded.size] = encoded
    gathered = multihost_utils.process_allgather(padded)
    return [json.loads(row[:length].tobytes()) for row, length in zip(gathered, lengths, strict=True)]
