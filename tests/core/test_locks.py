"""Locks between processes: refusal, takeover after a kill, other hosts, and locks that are removed."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest

from spirit_jax.core import locks
from spirit_jax.core.locks import LockError, hold

HOLDER = """
import sys, time
from spirit_jax.core.locks import hold
with hold(sys.argv[1], "work of another process"):
    print("held", flush=True)
    time.sleep(60)
"""


@pytest.fixture
def other(tmp_path):
    """A process that holds the lock."""
    process = subprocess.Popen([sys.executable, "-c", HOLDER, str(tmp_path / "dir/.lock")], stdout=subprocess.PIPE)
    assert process.stdout is not None
    process.stdout.readline()
    yield process
    process.kill()
    process.wait()


def test_a_second_process_learns_who_holds_the_lock_and_takes_over_after_a_kill(tmp_path, other):
    path = tmp_path / "dir/.lock"
    for wait in (0.0, 0.1):
        with pytest.raises(LockError, match=rf"dir: process {other.pid} .*\(work of another process, since .*: wait"):
            hold(path, "mine", wait=wait).__enter__()
    other.kill()
    other.wait()
    assert path.exists()
    with hold(path, "mine") as lock:
        lock.check()
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert not path.exists()


def test_a_holder_that_ends_lets_a_waiting_one_in(tmp_path, other):
    other.terminate()
    with hold(tmp_path / "dir/.lock", "mine", wait=30):
        pass


@pytest.mark.parametrize("host", ["elsewhere", "elsewhere.example.org"])
def test_a_lock_of_another_host_is_never_taken_over(tmp_path, host):
    path = tmp_path / ".lock"
    path.write_text(json.dumps({"host": host, "pid": 1, "user": "jane", "since": "noon", "what": "encoding"}))
    with pytest.raises(LockError, match=rf"process 1 of jane on host {host} .*no longer exists, remove .*\.lock"):
        hold(path, "mine").__enter__()
    assert path.exists()


@pytest.mark.parametrize("content", ["", "not JSON", "[1]", '{"host": 3}'])
def test_a_damaged_lock_without_a_host_is_taken_over_or_refused_in_one_line(tmp_path, content):
    path = tmp_path / ".lock"
    path.write_text(content)
    try:
        with hold(path, "mine"):
            pass
    except LockError as error:
        assert "remove" in str(error)  # noqa: PT017 - either outcome is right


def test_a_file_system_without_advisory_locks_looks_at_the_process(tmp_path, monkeypatch, other):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(locks.fcntl, "flock", refuse)
    with pytest.raises(LockError, match=f"process {other.pid}"):
        hold(tmp_path / "dir/.lock", "mine").__enter__()
    other.kill()
    other.wait()
    with hold(tmp_path / "dir/.lock", "mine"):
        pass


def test_a_job_notices_that_its_directory_was_removed(tmp_path):
    with hold(tmp_path / "dir/.lock", "mine") as lock:
        lock.check()
        shutil.rmtree(tmp_path / "dir")
        with pytest.raises(LockError, match="dir: was removed or replaced while this job worked in it"):
            lock.check()


def test_a_child_process_does_not_keep_the_lock_of_its_parent(tmp_path):
    script = (
        "import os, sys, time\n"
        "from spirit_jax.core.locks import hold\n"
        "with hold(sys.argv[1], 'parent'):\n"
        "    child = os.fork()\n"
        "    if child == 0:\n"
        "        time.sleep(60)\n"
        "    print(child, flush=True)\n"
        "    os.kill(os.getpid(), 9)\n"
    )
    found = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / ".lock")],
        stdout=(tmp_path / "out").open("wb"),
        check=False,
    )
    child = int((tmp_path / "out").read_text())
    try:
        assert found.returncode == -9
        time.sleep(0.1)
        with hold(tmp_path / ".lock", "mine"):
            pass
    finally:
        os.kill(child, 9)
