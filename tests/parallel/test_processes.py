"""A process finds its job from the variables of JAX, Slurm and TPU VMs, complete or not; and jobs end together."""

import os
import pathlib
import socket
import subprocess
import sys

import pytest

from spirit_jax.parallel.processes import job_of, place_in_job

GIVEN = {"JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234", "JAX_NUM_PROCESSES": "4", "JAX_PROCESS_ID": "3"}
# task number 5 of `srun --nodes 2 --ntasks-per-node 4`
SLURM = {
    "SLURM_JOB_ID": "77",
    "SLURM_STEP_NODELIST": "node[001-002]",
    "SLURM_NTASKS": "8",
    "SLURM_PROCID": "5",
    "SLURM_LOCALID": "1",
}


def test_given_addresses_are_used():
    assert job_of(GIVEN, "") == {"coordinator_address": "10.0.0.1:1234", "num_processes": 4, "process_id": 3}
    job = job_of(GIVEN | SLURM, "tpu,cpu")  # given addresses take precedence
    assert job is not None
    assert job["process_id"] == 3


@pytest.mark.parametrize("missing", GIVEN)
def test_incomplete_addresses_are_an_error(missing):
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
def test_invalid_addresses_are_an_error(change, message):
    with pytest.raises(ValueError, match=message):
        job_of(GIVEN | change, "")


def test_a_process_without_a_job_stays_alone():
    assert job_of({}, "") is None
    assert job_of({}, "cpu") is None
    assert job_of({"JAX_NUM_PROCESSES": "1"} | SLURM, "tpu,cpu") is None
    assert job_of({"SLURM_JOB_ID": "77", "SLURM_NTASKS": "1"}, "") is None


def test_a_process_of_a_slice_can_be_kept_alone(monkeypatch):
    monkeypatch.setenv("TPU_WORKER_HOSTNAMES", "a,b")
    monkeypatch.setenv("TPU_WORKER_ID", "1")
    assert place_in_job() == (1, 2)
    monkeypatch.setenv("JAX_NUM_PROCESSES", "1")
    assert place_in_job() == (0, 1)


def test_jax_finds_the_jobs_of_slurm_and_tpu_vms():
    assert job_of(SLURM, "") == {}
    assert job_of({}, "tpu,cpu") == {}  # a TPU VM, whose metadata name the hosts
    assert job_of({"TPU_WORKER_HOSTNAMES": "a,b", "JAX_PLATFORMS": "cpu"}, "cpu") is None


def test_a_slurm_job_outside_srun_is_an_error():
    with pytest.raises(
        ValueError, match="SLURM_NTASKS is 8 but SLURM_STEP_NODELIST, SLURM_LOCALID unset: start every task with srun"
    ):
        job_of({name: SLURM[name] for name in ("SLURM_JOB_ID", "SLURM_NTASKS", "SLURM_PROCID")}, "")


def test_a_tpu_host_without_libtpu_is_an_error():
    with pytest.raises(ValueError, match="names several hosts, but JAX finds no TPU here: install libtpu"):
        job_of({"TPU_WORKER_HOSTNAMES": "10.0.0.1,10.0.0.2", "TPU_WORKER_ID": "0"}, "")


def test_the_train_command_ends_with_exit_code_2_for_an_incomplete_job():
    environment = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_COORDINATOR_ADDRESS": "10.0.0.1:1234"}
    command = [sys.executable, "-m", "spirit_jax.train", "--run_directory", "nowhere", "--tokenizer", "none"]
    result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert result.returncode == 2
    assert result.stderr.strip().endswith(
        "error: JAX_COORDINATOR_ADDRESS set but not JAX_NUM_PROCESSES, JAX_PROCESS_ID: a job needs all three, "
        "or JAX_NUM_PROCESSES=1 for this process alone"
    )


_MEMBER = """
from spirit_jax.core.errors import exit_codes
from spirit_jax.parallel.processes import gather_json, join_processes, leave_on_error
with exit_codes("member"), leave_on_error("member"):
    join_processes()
    gather_json({})
    print("connected", flush=True)
    while True:
        gather_json({"a": 1})
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
        assert process.stdout is not None
        assert "connected\n" in iter(process.stdout.readline, "")
    processes[1].kill()
    output, _ = processes[0].communicate(timeout=250)
    assert processes[0].returncode == 1
    assert (
        "process 0 of 2: an exchange with the other processes failed, so one of them has ended: see its log" in output
    )
    processes[1].communicate()
