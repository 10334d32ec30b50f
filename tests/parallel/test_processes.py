"""What says that a process is one of a job: the variables that Slurm, TPU VMs and people set, and half of them."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from spirit_jax.parallel.processes import job_of

GIVEN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
# of `srun --nodes 2 --ntasks-per-node 4`, the task numbered 5
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_given_addresses():
    assert job_of(GIVEN, "") == {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    assert job_of(GIVEN | SLURM, "tpu,cpu")["process_id"] == 3  # what is given wins


@pytest.mark.parametrize("missing", GIVEN)
def test_half_set_addresses(missing):
    with pytest.raises(ValueError, match=f"set but not {missing}: a job needs all three"):
        job_of({name: value for name, value in GIVEN.items() if name != missing}, "")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"JAX_PROCESS_ID": "4"}, "JAX_PROCESS_ID must be one of 0..JAX_NUM_PROCESSES-1, found '4' of '4'"),
        ({"JAX_NUM_PROCESSES": "four"}, "found '3' of 'four'"),
        ({"JAX_COORDINATOR_ADDRESS": "10.0.0.1"}, "must be host:port of process 0, found '10.0.0.1'"),
    ],
)
def test_addresses_that_cannot_be(change, message):
    with pytest.raises(ValueError, match=message):
        job_of(GIVEN | change, "")


def test_alone():
    assert job_of({}, "") is None
    assert job_of({}, "cpu") is None
    assert job_of({"JAX_NUM_PROCESSES": "1"} | SLURM, "tpu,cpu") is None
    assert job_of({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1"}, "") is None


def test_slurm_and_tpu_are_left_to_jax():
    assert job_of(SLURM, "") == {}
    assert job_of({}, "tpu,cpu") == {}  # a TPU VM: its metadata name the hosts
    assert job_of({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, "cpu") is None


def test_what_slurm_sets_outside_srun():
    with pytest.raises(
        ValueError, match="SLURM_NTASKS is 8 but SLURM_STEP_NODELIST, SLURM_LOCALID unset: start every task with srun"
    ):
        job_of({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}, "")


def test_a_tpu_host_without_libtpu():
    with pytest.raises(ValueError, match="names several hosts, but JAX finds no TPU here: install libtpu"):
        job_of({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2", "TPU_WORKER_ID": "0"}, "")


def test_the_command_says_so():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
    command = [sys.executable, "-m", "spirit_jax.train", "--run_directory", "nowhere", "--tokenizer", "none"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert result.stderr.strip().endswith(
        "error: JAX_COORDINATOR_ADDRESS set but not JAX_NUM_PROCESSES, JAX_PROCESS_ID: a job needs all three, "
        "or JAX_NUM_PROCESSES=1 for this process alone"
    )


_MEMBER = """
from spirit_jax.parallel.processes import gather_json, join_processes, leave
join_processes()
gather_json({})
print("connected", flush=True)
try:
    while True:
        gather_json({"a": 1})
except Exception as error:
    leave("member", error, 2)
"""


def test_a_killed_process_ends_the_other_with_a_message():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        address = f"localhost:{free.getsockname()[1]}"
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": address, "JAX_NUM_PROCESSES": "2"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", _MEMBER],
            env={**environment, "JAX_PROCESS_ID": str(index)},
            cwd=pathlib.Path(__file__).parents[2],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for index in range(2)
    ]
    for process in processes:
        assert "connected\n" in iter(process.stdout.readline, "")
    processes[1].kill()
    output, _ = processes[0].communicate(timeout=250)
    assert processes[0].returncode == 1
    assert (
        "process 0 of 2: an exchange with the other processes failed, so one of them has ended: see its log" in output
    )
    processes[1].communicate()
