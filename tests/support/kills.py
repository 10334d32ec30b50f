"""python -m tests.support.kills [--kills 10] [--seed 0] [--steps 500] [--every 100] [--prefix COMMAND]

Runs the README's first command twice: in a directory without interruption, and in a bucket of an emulated server, where
the process is killed (SIGKILL) at random moments, of its preparation and of its training. Prints each kill, and ends
with an error if anything that the two runs keep is different: weights, optimizer, position in the data, tokenizers,
records, losses and samples. The restarts have no local files of the run, as on another machine.
"""

import argparse
import dataclasses
import filecmp
import json
import os
import pathlib
import random
import shlex
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from orbax.checkpoint import v1 as ocp

from spirit_jax import checkpoint
from spirit_jax.core import buckets
from spirit_jax.core.bucket_cache import DIRECTORY, local_copy
from tests.support.buckets import BUCKET, emulated_bucket

_CONFIG = pathlib.Path(__file__).parents[2] / "configs" / "tiny.yaml"
_BEGINS = (b"Starting ", b"Resuming ")  # printed before the first step
_PREPARATION = 0.4
"""Share of the kills that may hit the preparation of the run."""
_LONGEST = 0.3
"""Longest time between the first step after a start and a kill, as a part of the time of all steps."""
_TIMES = ("tokens_per_second", "mfu", "data_wait", "seconds")
"""Ends of names of measured times in the log, which no two runs share."""


@dataclasses.dataclass(frozen=True)
class Durations:
    """Seconds of an uninterrupted run."""

    preparation: float
    """From the first line of output to the first step."""
    training: float
    """From the first step to the end."""


def command(run: str | os.PathLike, steps: int, every: int) -> list[str]:
    """The README's first command, with fewer steps.

    Args:
        run: the run directory.
        steps: length of the run; evaluation and samples are due in its middle and at its end.
        every: steps between checkpoints.
    """
    values = {"run_directory": run, "loop.steps": steps, "loop.log_every": max(1, every // 10)}
    values |= {"loop.evaluate_every": steps // 2, "loop.sample_every": steps // 2, "checkpoint.every": every}
    options = [word for name, value in values.items() for word in (f"--{name}", str(value))]
    return [sys.executable, "-m", "spirit_jax.train", "--config", str(_CONFIG), *options]


class Process:
    """A command that runs in the background, with its output in a file."""

    def __init__(self, words: Sequence[str], log: pathlib.Path, environment: dict[str, str]):
        self._log = log
        with log.open("wb") as file:
            self._process = subprocess.Popen(
                words, stdout=file, stderr=file, env={**os.environ, **environment}, start_new_session=True
            )

    def wait_for(self, *texts: bytes) -> bool:
        """Wait until the output holds one of the texts, any output if there are none; False if the process ended."""
        while not any(text in self._log.read_bytes() for text in texts or (b"\n", b"\r")):
            if self._process.poll() is not None:
                return False
            time.sleep(0.02)
        return True

    def wait(self) -> None:
        """Wait for the end, which must be a success."""
        if code := self._process.wait():
            raise AssertionError(f"exit code {code}:\n{self._log.read_text(errors='replace')[-4000:]}")

    def kill(self, after: float) -> bool:
        """Kill the process and its children after some seconds; returns whether it was still running."""
        deadline = time.monotonic() + after
        while time.monotonic() < deadline and self._process.poll() is None:
            time.sleep(0.01)
        running = self._process.poll() is None
        if running:
            os.killpg(self._process.pid, signal.SIGKILL)
        if (code := self._process.wait()) > 0:
            raise AssertionError(f"exit code {code}:\n{self._log.read_text(errors='replace')[-4000:]}")
        return running


def run_once(words: Sequence[str], log: pathlib.Path) -> Durations:
    """Run a command to its end."""
    process = Process(words, log, {})
    process.wait_for()
    begun = time.monotonic()
    process.wait_for(*_BEGINS)
    prepared = time.monotonic()
    process.wait()
    return Durations(prepared - begun, time.monotonic() - prepared)


def run_with_kills(
    words: Sequence[str], durations: Durations, kills: int, rng: random.Random, folder: pathlib.Path
) -> list[str]:
    """Start a command again and again, kill it each time at a random moment, and let it end at last.

    Args:
        words: the command.
        durations: of an uninterrupted run, which bound the moments.
        kills: number of kills.
        rng: draws the moments.
        folder: for logs and the local files of each start.

    Returns:
        A line for each kill.

    Raises:
        AssertionError: the command failed, or ended before it was killed as often.
    """
    lines: list[str] = []
    for number in range(kills + 1):
        log = folder / f"start-{number}.log"
        process = Process(words, log, {DIRECTORY: str(folder / f"cache-{number}")})
        if number == kills:
            process.wait()
            return lines
        in_preparation = number < round(_PREPARATION * kills)
        process.wait_for(*(() if in_preparation else _BEGINS))
        seconds = rng.uniform(0, durations.preparation if in_preparation else _LONGEST * durations.training)
        if not process.kill(seconds):
            raise AssertionError(f"ended after {number} kills: take more steps or another seed")
        shown = log.read_text(errors="replace").replace("\r", "\n").strip().splitlines()
        lines.append(f"kill {number + 1}, {seconds:.1f} s into {'preparation' if in_preparation else 'training'}")
        lines[-1] += f": {shown[-1][:100] if shown else ''}"
        print(lines[-1], flush=True)
    return lines


def differences(local: pathlib.Path, run: str) -> list[str]:
    """What a run in a bucket keeps, and a local run of the same command keeps otherwise.

    Args:
        local: directory of the local run.
        run: address of the other one.
    """
    found = [name for name in buckets.list_objects(run) if name.startswith(".")]
    copy = local_copy(run)
    names = _kept(local)
    found += sorted(names ^ _kept(copy))
    found += [name for name in sorted(names & _kept(copy)) if not filecmp.cmp(local / name, copy / name, False)]
    if _log(local) != _log(copy):
        found.append("metrics.jsonl")
    steps = {path.name for path in (local / checkpoint.STEPS).iterdir() if path.name.isdigit()}
    others = {path.name for path in (copy / checkpoint.STEPS).iterdir() if path.name.isdigit()}
    found += [f"{checkpoint.STEPS}/{step}" for step in sorted(steps ^ others)]
    for step in sorted(steps & others, key=int):
        here, there = (_step(each / checkpoint.STEPS / step) for each in (local, copy))
        found += [f"{checkpoint.STEPS}/{step}/{name}" for name in here if not _equal(here[name], there[name])]
    return found


def _kept(run: pathlib.Path) -> set[str]:
    """Files of a run that must be the same bytes: tokenizers, records and samples."""
    folders = (checkpoint.TOKENIZER, checkpoint.SPEECH_TOKENIZER, "records", "samples")
    paths = (path for folder in folders for path in (run / folder).rglob("*") if path.is_file())
    # summaries of encoding hold its time
    return {path.relative_to(run).as_posix() for path in paths if not path.name.startswith((".", "encoding-"))}


def _log(run: pathlib.Path) -> list[dict[str, float]]:
    """The records of the log without measured times."""
    records = map(json.loads, (run / "metrics.jsonl").read_text().splitlines())
    return [{name: record[name] for name in record if not name.endswith(_TIMES)} for record in records]


def _step(directory: pathlib.Path) -> dict[str, object]:
    """The arrays of a step, and the state of its data streams."""
    metadata: Any = ocp.checkpointables_metadata(str(directory)).custom_metadata
    arrays = {name: ocp.load(str(directory), checkpointable_name=name) for name in (checkpoint.LLM, "optimizer")}
    return {**arrays, "data": metadata["data"], "vocabulary": metadata["vocabulary"]}


def _equal(one: object, other: object) -> bool:
    """Whether two trees hold the same bits."""
    (leaves, tree), (other_leaves, other_tree) = jax.tree.flatten(one), jax.tree.flatten(other)
    return tree == other_tree and all(
        np.asarray(a).tobytes() == np.asarray(b).tobytes() for a, b in zip(leaves, other_leaves, strict=True)
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=10)
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--every", type=int, default=100, help="steps between checkpoints")
    parser.add_argument("--prefix", default="", help="command that starts each run, such as `taskset -c 0`")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name, emulated_bucket() as (address, _):
        folder = pathlib.Path(name)
        os.environ |= {buckets.EMULATOR: address, "TENSORSTORE_GCS_HTTP_URL": address, DIRECTORY: f"{name}/cache"}
        prefix, run = shlex.split(arguments.prefix), f"gs://{BUCKET}/run"
        local = [*prefix, *command(folder / "local", arguments.steps, arguments.every)]
        durations = run_once(local, folder / "local.log")
        print(f"local run: {durations.preparation:.0f} s of preparation, {durations.training:.0f} s of training")
        words = [*prefix, *command(run, arguments.steps, arguments.every)]
        run_with_kills(words, durations, arguments.kills, random.Random(arguments.seed), folder)
        found = differences(folder / "local", run)
        if found:
            sys.exit("different: " + ", ".join(found))
        print(f"killed {arguments.kills} times: the run in the bucket is that of the directory, bit for bit")


if __name__ == "__main__":
    main()
