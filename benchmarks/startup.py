"""Seconds until a command does its work: `--help` of every command, imports, and the first answer of `generate`.

    python -m benchmarks.startup [--checkpoint runs/tiny/checkpoints/500] [--repeats 3] [--json FILE]

Every figure is the best of several new processes, in seconds of the clock and of all CPU cores together; the second is
less disturbed by other programs. The first answer is timed twice: with an empty cache of compiled
programs, as at the first start on a machine, and with the programs of the run before. Its parts are timed inside the
process; the rest is the start of Python and its end.
"""

import argparse
import json
import os
import pathlib
import resource
import subprocess
import sys
import tempfile
import time
from typing import NamedTuple

from benchmarks import report
from spirit_jax.__main__ import COMMANDS

IMPORTS = (
    "numpy",
    "yaml",
    "jsonargparse",
    "soundfile",
    "sentencepiece",
    "scipy.fft",
    "jax",
    "flax.linen",
    "orbax.checkpoint",
    "spirit_jax.inference.spiritlm",
)
"""Modules whose import is timed in this order in one process, so that each figure leaves out what came before it."""

_LAPS = """
import importlib, json, sys, time
now = lambda: (time.perf_counter(), time.process_time())
start, laps = now(), {}

def lap(name):
    global start
    end = now()
    laps[name], start = (end[0] - start[0], end[1] - start[1]), end
"""

_TIME_IMPORTS = """
for name in sys.argv[1:]:
    importlib.import_module(name)
    lap(name)
print(json.dumps(laps))
"""

_TIME_ANSWER = """
from spirit_jax import generate
from spirit_jax.core.compilation_cache import use_compilation_cache
use_compilation_cache(None)
lap("import of the command")
from spirit_jax import SamplingParams, Segment, SpiritLM
lap("import of JAX, Flax and the model")
import jax
jax.devices()
lap("start of JAX")
lm = SpiritLM.from_pretrained(sys.argv[1])
lap("language model and tokenizer")
prompt = lm.encode_prompt([Segment.text("The conductor stopped")], "speech")
vocoder = lm.voice().vocoder
lap("vocoder")
lm.generate_ids(prompt.ids, "speech", SamplingParams(max_new_tokens=100))
lap("programs, and 100 tokens")
lm.generate_ids(prompt.ids, "speech", SamplingParams(max_new_tokens=100))
lap("100 tokens again")
lm.generate(prompt, sampling=SamplingParams(max_new_tokens=100))
lap("100 tokens and their sound")
print(json.dumps(laps))
"""

WHOLE = "whole process"


class Seconds(NamedTuple):
    """Time of a process or of a part of it."""

    clock: float
    cpu: float
    """CPU time of all cores together, in seconds."""


def run(command: list[str], environment: dict[str, str]) -> tuple[Seconds, str]:
    """Time one process, and return what it prints; ends with its errors if it fails."""
    start, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    if result.returncode:
        sys.exit(f"{' '.join(command[:4])}: {result.stderr}")
    clock, after = time.perf_counter() - start, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return Seconds(clock, cpu), result.stdout


def timed(script: str, arguments: list[str], environment: dict[str, str]) -> dict[str, Seconds]:
    """The parts that a script prints, and its whole process."""
    seconds, printed = run([sys.executable, "-c", _LAPS + script, *arguments], environment)
    parts = json.loads(printed.strip().splitlines()[-1])
    return {**{name: Seconds(*part) for name, part in parts.items()}, WHOLE: seconds}


def best(runs: list[dict[str, Seconds]]) -> dict[str, Seconds]:
    """The run whose process took least."""
    return min(runs, key=lambda run: run[WHOLE])


def show(title: str, seconds: dict[str, Seconds]) -> None:
    """Print one table."""
    print(f"{title:38}  clock     CPU")
    for name, value in seconds.items():
        print(f"  {name:36} {value.clock:6.2f}  {value.cpu:6.2f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a step with a vocoder; without it, no answer is timed")
    parser.add_argument("--repeats", type=int, default=3)
    report.add_option(parser)
    options = parser.parse_args()
    where = report.machine()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    repeats = range(options.repeats)
    figures = {
        "--help": {
            name: min(run([sys.executable, "-m", "spirit_jax", name, "--help"], environment)[0] for _ in repeats)
            for name in COMMANDS
        },
        "imports": best([timed(_TIME_IMPORTS, list(IMPORTS), environment) for _ in repeats]),
    }
    if options.checkpoint is not None:
        warm = []
        with tempfile.TemporaryDirectory() as cache:
            environment["JAX_COMPILATION_CACHE_DIR"] = cache
            environment["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.1"
            figures["first answer, no programs kept"] = timed(_TIME_ANSWER, [str(options.checkpoint)], environment)
            for _ in repeats:
                warm.append(timed(_TIME_ANSWER, [str(options.checkpoint)], environment))
        figures["first answer, with the programs of another run"] = best(warm)
    for title, seconds in figures.items():
        show(title, seconds)
    named = {title: {name: value._asdict() for name, value in seconds.items()} for title, seconds in figures.items()}
    report.write(options.json, where, named)


if __name__ == "__main__":
    main()
