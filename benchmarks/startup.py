"""Seconds until a command does its work: `--help` of every command, imports, and the first answer of `generate`.

    python -m benchmarks.startup [--checkpoint runs/tiny/checkpoints/500] [--repeats 3] [--json FILE]

Every figure is the best of several new processes. The first answer is timed twice: with an empty cache of compiled
programs, as at the first start on a machine, and with the programs of the run before. Its parts are timed inside the
process; the rest is the start of Python and its end.
"""

import argparse
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

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
    "orbax.checkpoint.v1",
    "spirit_jax.inference.spiritlm",
)
"""Modules whose import is timed in this order in one process, so that each figure leaves out what came before it."""

_TIME_IMPORTS = """
import importlib, json, sys, time
seconds = {}
for name in sys.argv[1:]:
    start = time.perf_counter()
    importlib.import_module(name)
    seconds[name] = time.perf_counter() - start
print(json.dumps(seconds))
"""

_TIME_ANSWER = """
import json, sys, time
start = time.perf_counter()
seconds = {}

def lap(name):
    global start
    now = time.perf_counter()
    seconds[name], start = now - start, now

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
print(json.dumps(seconds))
"""


def seconds_of(command: list[str], environment: dict[str, str]) -> float:
    """Wall time of one process that must succeed."""
    start = time.perf_counter()
    subprocess.run(command, check=True, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    return time.perf_counter() - start


def timed(script: str, arguments: list[str], environment: dict[str, str]) -> dict[str, float]:
    """What a script prints as JSON, with the wall time of its process."""
    start = time.perf_counter()
    command = [sys.executable, "-c", script, *arguments]
    result = subprocess.run(command, check=True, env=environment, stdout=subprocess.PIPE, text=True)
    parts = json.loads(result.stdout.strip().splitlines()[-1])
    return {**parts, "whole process": time.perf_counter() - start}


def best(runs: list[dict[str, float]]) -> dict[str, float]:
    """The run whose process took least."""
    return min(runs, key=lambda run: run["whole process"])


def show(title: str, seconds: dict[str, float]) -> None:
    """Print one table."""
    print(title)
    for name, value in seconds.items():
        print(f"  {name:36} {value:6.2f} s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", type=pathlib.Path, help="a step with a vocoder; without it, no answer is timed")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--json", type=pathlib.Path, help="also write the figures here")
    options = parser.parse_args()
    environment = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"}
    repeats = range(options.repeats)
    figures = {
        "--help": {
            name: min(seconds_of([sys.executable, "-m", "spirit_jax", name, "--help"], environment) for _ in repeats)
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
    if options.json is not None:
        options.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
