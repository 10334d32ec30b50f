"""Ctrl-C ends a command in one line and with exit code 130, whatever it is doing."""

import pathlib
import signal
import subprocess
import sys
import threading
import time

import pytest

from spirit_jax.core.interrupts import command_name, end_at_once

BLOCK = """
import sys, time, hashlib
from spirit_jax.core.files import atomic_file
from spirit_jax.core.interrupts import end_at_once
def busy():
    print("busy", flush=True)
    {work}
with end_at_once("prog", "interrupted"):
    {use}
"""


@pytest.mark.parametrize(
    ("words", "name"),
    [
        ("python -m spirit_jax.train --config x", "python -m spirit_jax.train"),
        ("python -X dev -u -m spirit_jax.encode", "python -m spirit_jax.encode"),
        ("python -m spirit_jax train", "python -m spirit_jax"),
        ("python /usr/bin/spirit-jax train", "spirit-jax"),
        ("python -m pytest spirit-jax", None),
        ("python mine.py -m spirit_jax.train", None),
        ("python -c x -m spirit_jax.train", None),
        ("python", None),
    ],
)
def test_only_processes_that_run_a_command_end_while_importing(words, name):
    assert command_name(words.split()) == name


def _interrupted(process, begun):
    """Interrupt a process once something is true; its exit code and what it printed on standard error."""
    deadline = time.monotonic() + 60
    while not begun() and process.poll() is None and time.monotonic() < deadline:
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, error = process.communicate(timeout=60)
    return process.returncode, error


@pytest.mark.parametrize(
    ("work", "use"),
    [
        ("hashlib.pbkdf2_hmac('sha256', b'x', b'y', 10**9)", "busy()"),  # returns to Python after many minutes
        ("time.sleep(60)", "\n    try: busy()\n    except BaseException: time.sleep(60)"),
        ("time.sleep(60)", "\n    with atomic_file(sys.argv[1]) as file: file.write(b'x'); busy()"),
    ],
    ids=["compiling", "swallowed", "writing"],
)
def test_ctrl_c_ends_a_block_at_once_and_leaves_no_file(work, use, tmp_path):
    command = [sys.executable, "-c", BLOCK.format(work=work, use=use), str(tmp_path / "file")]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stdout.readline() == "busy\n"
    assert _interrupted(process, lambda: True) == (130, "prog: error: interrupted\n")
    assert not [*tmp_path.iterdir()]


def test_a_second_ctrl_c_while_the_process_ends_does_not_stop_it():
    script = (
        "import os, signal\n"
        "from spirit_jax.core import interrupts\n"
        "write = os.write\n"
        "def interrupted(*arguments):\n"
        "    os.write = write\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    return write(*arguments)\n"
        "os.write = interrupted\n"
        "with interrupts.end_at_once('prog', 'interrupted'):\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
    )
    result = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30, check=False)
    assert result.returncode == 130
    assert result.stderr.startswith("prog: error: interrupted\n")


@pytest.mark.parametrize(
    "words",
    ["-m spirit_jax.train --config tiny.yaml --run_directory run", "-m spirit_jax.encode --input x --output y"],
)
def test_ctrl_c_while_a_command_imports_is_one_line(words, tmp_path):
    process = subprocess.Popen(
        [sys.executable, *words.split()], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=tmp_path
    )
    maps = pathlib.Path(f"/proc/{process.pid}/maps")
    code, error = _interrupted(process, lambda: "jaxlib" in maps.read_text())
    assert code == 130
    assert error.startswith(f"python {' '.join(words.split()[:2])}: error: interrupted")
    assert error.count("\n") == 1


def test_the_handler_of_before_is_back_after_the_block_and_other_threads_are_left_alone():
    before = signal.getsignal(signal.SIGINT)
    with end_at_once("prog", "x"):
        assert signal.getsignal(signal.SIGINT) is not before
    assert signal.getsignal(signal.SIGINT) is before
    seen = []

    def run():
        with end_at_once("prog", "x"):
            seen.append(signal.getsignal(signal.SIGINT))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert seen == [before]
