"""Everything that is worth knowing of one GPU, in at most eight minutes: correctness first, then speed and memory.

    python -m benchmarks.gpu [--json gpu.json] [--seconds 480] [--parts train generate] [--tiny]

Run it from a checkout of the repository, with `pip install -e '.[cuda13]'` or `'.[cuda12]'`; with the extra `test`
too, the other side of every comparison runs (PyTorch with CUDA, transformers, PEFT, torchfcpe) and so do the tests.
What is not installed is left out and named. The parts, each in a process of its own:

- card: its name, and the speed of a large bfloat16 product and of a copy in its memory
- check: fused attention and a small model against the plain formulas on the CPU
- tests: `pytest -m accelerator`, the golden tests and those of precision
- train: the training step of 1.4 B parameters with Adam, bfloat16, packed rows of 4096 tokens, as many rows as fit
- generate: prefill of 448 tokens and decoding of 7 B random weights at batch 1, 16 and 64
- encode, vocoder: phonetic, style and pitch units of 64 clips of 10 s, and their sound, in float32
- lora: the training step of an adapter of 7 B

Every part but the first three then runs on PyTorch's side. The JSON is written after each part, so that an interrupted
run loses one part only. A part that fails, or that would begin after `--seconds`, is named in the table. `--tiny` runs
everything with tiny sizes on whatever device JAX finds, in a minute or two; its figures mean nothing.
"""

import argparse
import importlib.util
import json
import math
import os
import pathlib
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from typing import Any

from benchmarks import report

ROOT = pathlib.Path(__file__).parents[1]

Figures = dict[str, Any]

SECONDS = {
    "card": 60,
    "check": 60,
    "tests": 120,
    "train": 150,
    "generate": 150,
    "encode": 90,
    "vocoder": 60,
    "lora": 150,
}
"""The most that each part may take on one side, in the order in which they run."""
ALONE = ("card", "check", "tests")
"""Parts that have no other side."""


def environment(side: str) -> dict[str, str]:
    """Return the environment of a part: JAX sees the card on our side, and nothing but the CPU on the other one."""
    found = {**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2", "XLA_PYTHON_CLIENT_MEM_FRACTION": "0.93"}
    platforms = os.environ.get("JAX_PLATFORMS", "")
    if side == "torch":
        found["JAX_PLATFORMS"] = "cpu"
    elif platforms and "cpu" not in platforms.split(","):
        found["JAX_PLATFORMS"] = f"{platforms},cpu"  # `check` compares with the CPU
    return found


def run_part(name: str, side: str, tiny: bool, seconds: float) -> Figures:
    """Run one part in a process of its own; `{"skipped": reason}` if it cannot run."""
    if side == "torch" and importlib.util.find_spec("transformers") is None:
        return {"skipped": "transformers is not installed"}
    with tempfile.TemporaryDirectory() as directory:
        output = pathlib.Path(directory) / "figures.json"
        arguments = ["--run", name, "--side", side, "--output", str(output), *(["--tiny"] if tiny else [])]
        try:
            result = subprocess.run(
                [sys.executable, "-m", "benchmarks.gpu", *arguments],
                cwd=ROOT,
                env=environment(side),
                capture_output=True,
                text=True,
                timeout=seconds,
            )
        except subprocess.TimeoutExpired:
            return {"skipped": f"not finished after {seconds:.0f} s"}
        if result.returncode or not output.exists():
            lines = result.stderr.strip().splitlines() or [f"exit code {result.returncode}"]
            print(result.stderr, file=sys.stderr)
            return {"skipped": f"failed: {lines[-1][:300]}"}
        return json.loads(output.read_text(encoding="utf-8"))


def run_tests(tiny: bool, seconds: float) -> Figures:
    """Run the tests that an accelerator needs; the last line of pytest says how many passed."""
    if importlib.util.find_spec("pytest") is None:
        return {"skipped": "pytest is not installed"}
    if tiny:
        return {"skipped": "left out with --tiny"}
    command = [sys.executable, "-m", "pytest", "-q", "-m", "accelerator", "-n", "0", "-p", "no:cacheprovider"]
    found = environment("ours") | {"JAX_PLATFORMS": environment("ours").get("JAX_PLATFORMS", "cuda,cpu")}
    try:
        result = subprocess.run(command, cwd=ROOT, env=found, capture_output=True, text=True, timeout=seconds)
    except subprocess.TimeoutExpired:
        return {"skipped": f"not finished after {seconds:.0f} s"}
    if result.returncode:
        print(result.stdout[-5000:], file=sys.stderr)
    lines = result.stdout.strip().splitlines() or ["pytest printed nothing"]
    return {"passed": result.returncode == 0, "summary": lines[-1].strip("= ")}


def rows(figures: Figures) -> Iterator[tuple[str, str, str, str]]:
    """Yield the table's rows: what, ours, PyTorch's, ratio."""
    card = figures.get("card", {}).get("ours", {})
    peak = card.get("flops_by_datasheet") or card.get("flops_measured") or math.nan
    bandwidth = card.get("bandwidth_by_datasheet") or card.get("bandwidth_measured") or math.nan
    for name, sides in figures.items():
        ours, other = sides["ours"], sides.get("torch", {})
        if reason := ours.get("skipped"):
            yield name, reason, "", ""
            continue
        if name == "card":
            yield "bfloat16 product", f"{ours['flops_measured'] / 1e12:.1f} TFLOP/s", "", ""
            yield "copy in memory", f"{ours['bandwidth_measured'] / 1e9:.0f} GB/s", "", ""
        elif name == "check":
            result = "passed" if ours["passed"] else "FAILED"
            yield name, f"{result}: attention {ours['attention']:.1e}, model {ours['model']:.1e}", "", ""
        elif name == "tests":
            yield name, f"{'passed' if ours['passed'] else 'FAILED'}: {ours['summary']}", "", ""
        elif name in ("train", "lora"):
            yield from _step_rows(name, ours, other, peak)
        elif name == "generate":
            yield from _generation_rows(ours, other, bandwidth)
        else:
            for kind in (kind for kind in ours if kind != "wall_seconds"):
                yield _compared(f"{name}: {kind}, audio a second", ours[kind], other, kind, "s")
        if reason := other.get("skipped") or other.get("missing"):
            yield f"{name} in PyTorch", reason, "", ""


def _compared(what: str, ours: float, other: Figures, key: str, unit: str) -> tuple[str, str, str, str]:
    there = other.get(key)
    if not there:
        return what, f"{ours:,.1f} {unit}", "", ""
    return what, f"{ours:,.1f} {unit}", f"{there:,.1f} {unit}", f"{ours / there:.2f} x"


def _step_rows(name: str, ours: Figures, other: Figures, peak: float) -> Iterator[tuple[str, str, str, str]]:
    size = f"{name}, {ours['parameters'] / 1e9:.2g} B, {ours['rows']} x {ours['length']}"
    yield _compared(size, ours["tokens_per_second"], other, "tokens_per_second", "tok/s")
    yield f"{name}: step", f"{ours['step_seconds'] * 1e3:,.0f} ms, MFU {ours['flops_per_second'] / peak:.0%}", "", ""
    memory = [f"{side['peak_memory'] / 1e9:.1f} GB" if side.get("peak_memory") else "" for side in (ours, other)]
    yield f"{name}: peak of memory", memory[0], memory[1], ""


def _generation_rows(ours: Figures, other: Figures, bandwidth: float) -> Iterator[tuple[str, str, str, str]]:
    there = {row["batch"]: row for row in other.get("batches", [])}
    for row in ours["batches"]:
        batch = row["batch"]
        if reason := row.get("skipped"):
            yield f"generate, batch {batch}", reason, "", ""
            continue
        for stage in ("prefill", "decode"):
            key = f"{stage}_tokens_per_second"
            yield _compared(f"{stage}, batch {batch}", row[key], there.get(batch, {}), key, "tok/s")
        share = row["bytes_per_step"] / row["decode_step_seconds"] / bandwidth
        yield f"decode, batch {batch}: share of memory speed", f"{share:.0%}", "", ""


def main() -> None:
    """Run the parts one after the other, or one of them in this process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=SECONDS, default=list(SECONDS), help="parts to run, default all")
    parser.add_argument("--seconds", type=float, default=480, help="no part begins or runs later (default 480)")
    parser.add_argument("--tiny", action="store_true", help="tiny sizes, to try the script on any machine")
    report.add_option(parser)
    for name in ("--run", "--side", "--output"):
        parser.add_argument(name, help=argparse.SUPPRESS)  # the script starts itself with these
    options = parser.parse_args()
    if options.run:
        run_here(options.run, options.side, options.tiny, pathlib.Path(options.output))
        return
    where, end = report.machine(), time.monotonic() + options.seconds
    figures: Figures = {}
    for name in (name for name in SECONDS if name in options.parts):
        figures[name] = {}
        for side in ("ours",) if name in ALONE else ("ours", "torch"):
            seconds = min(SECONDS[name], end - time.monotonic())
            begin = time.monotonic()
            if seconds < 5:
                found: Figures = {"skipped": "no time was left"}
            elif name == "tests":
                found = run_tests(options.tiny, seconds)
            else:
                found = run_part(name, side, options.tiny, seconds)
            figures[name][side] = found | {"wall_seconds": round(time.monotonic() - begin, 1)}
            print(f"{name} ({side}): {json.dumps(figures[name][side])}", flush=True)
            if name == "card" and found.get("platform") == "cpu" and not options.tiny:
                sys.exit("JAX finds no GPU here: install the extra cuda13 or cuda12, or try the script with --tiny")
            report.write(options.json, where, figures)
    device = figures.get("card", {}).get("ours", {}).get("device", "no card measured")
    print(f"\n{device}\n\n| what | spirit_jax | PyTorch | ratio |\n|---|---|---|---|")
    for row in rows(figures):
        print(f"| {' | '.join(row)} |")


def run_here(name: str, side: str, tiny: bool, output: pathlib.Path) -> None:
    """Run one part on one side in this process and write its figures."""
    from benchmarks.gpu_parts.sizes import FULL, TINY

    sizes = TINY if tiny else FULL
    if side == "ours":
        from benchmarks.gpu_parts import ours

        found = ours.PARTS[name](sizes)
    else:
        try:
            from benchmarks.gpu_parts import others

            others.prepare()
            if others.DEVICE.type == "cpu" and not tiny:
                found = {"skipped": "PyTorch finds no card: install its build for CUDA"}
            else:
                found = others.PARTS[name](sizes)
        except ImportError as error:
            found = {"skipped": f"{error.name or error} is not installed"}
    output.write_text(json.dumps(found), encoding="utf-8")


if __name__ == "__main__":
    main()
