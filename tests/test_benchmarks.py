"""Benchmarks: the pages show what the results hold, and the benchmark for GPUs runs from begin to end on a CPU."""

import json
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from benchmarks import gpu, report, tables
from benchmarks.curves import fit

ROOT = pathlib.Path(__file__).parents[1]


@pytest.mark.parametrize("page", sorted(tables.DOCS.glob("*.md")), ids=lambda page: page.name)
def test_tables_of_a_page_are_those_of_the_results(page):
    text = page.read_text(encoding="utf-8")
    assert tables.with_tables(text) == text, "run `python -m benchmarks.tables`"


def test_a_table_without_its_result_names_the_command(monkeypatch, tmp_path):
    monkeypatch.setattr(tables, "RESULTS", tmp_path)
    text = tables.with_tables("<!-- table data -->\nold\n<!-- end of table -->\n")
    assert "`python -m benchmarks.data --json FILE`" in text
    assert "old" not in text


def test_every_result_is_shown_by_a_page():
    shown = "\n".join(page.read_text(encoding="utf-8") for page in tables.DOCS.glob("*.md"))
    for path in report.RESULTS.glob("*.json"):
        assert f"benchmarks/results/{path.name}" in shown, path.name


def test_a_result_holds_the_command_without_its_own_file(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/a/benchmarks/encode.py", "--rounds", "3", "--json", "x.json", "--clips", "2"])
    report.write(tmp_path / "new" / "x.json", report.machine(), {"ratio": 1.5})
    found = json.loads((tmp_path / "new" / "x.json").read_text())
    assert found["command"] == "python -m benchmarks.encode --rounds 3 --clips 2"
    assert found["figures"] == {"ratio": 1.5}
    assert found["machine"]["cores"] >= 1


def test_a_fit_finds_the_terms_of_a_curve_and_no_negative_one():
    x = np.array([1, 2, 4, 8])
    assert fit(x, 3 + 0.5 * x**2, 2).coefficients == pytest.approx((3, 0, 0.5), abs=1e-9)
    assert str(fit(x, 3 + 0.5 * x**2, 2)) == "3 + 0.5 x²"
    assert min(fit(x, 10 - x, 1).coefficients) == 0


def test_the_gpu_table_shows_ratios_shares_and_what_was_left_out():
    """Shares are of the datasheet's limits."""
    step = {"parameters": 2e9, "rows": 4, "length": 10, "step_seconds": 2.0, "flops_per_second": 5e14}
    figures = {
        "card": {
            "ours": {"flops_by_datasheet": 1e15, "bandwidth_by_datasheet": 1e12}
            | {"flops_measured": 8e14, "bandwidth_measured": 9e11}
        },
        "train": {
            "ours": step | {"tokens_per_second": 20.0, "peak_memory": 3e9},
            "torch": {"tokens_per_second": 10.0, "peak_memory": 4e9},
        },
        "generate": {
            "ours": {
                "batches": [
                    {"batch": 1, "prefill_tokens_per_second": 9.0, "decode_tokens_per_second": 50.0}
                    | {"decode_step_seconds": 0.02, "bytes_per_step": 1e10}
                ]
            },
            "torch": {"skipped": "transformers is not installed"},
        },
        "lora": {"ours": {"skipped": "no time was left"}},
    }
    rows = list(gpu.rows(figures))
    assert ("train, 2 B, 4 x 10", "20.0 tok/s", "10.0 tok/s", "2.00 x") in rows
    assert ("train: step", "2,000 ms, MFU 50%", "", "") in rows
    assert ("train: peak of memory", "3.0 GB", "4.0 GB", "") in rows
    assert ("decode, batch 1: share of memory speed", "50%", "", "") in rows
    assert ("generate in PyTorch", "transformers is not installed", "", "") in rows
    assert ("lora", "no time was left", "", "") in rows


def test_the_gpu_benchmark_notices_wrong_attention(monkeypatch):
    from benchmarks.gpu_parts import ours
    from benchmarks.gpu_parts.sizes import TINY

    found = ours.check(TINY)
    assert found["passed"], found
    fused = ours.gpu_kernels.cudnn_attention
    monkeypatch.setattr(
        ours.gpu_kernels, "cudnn_attention", lambda q, k, v, segments, **options: fused(q, k, v, None, **options)
    )
    assert not ours.check(TINY)["passed"]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_the_gpu_benchmark_runs_from_begin_to_end_with_tiny_sizes(tmp_path):
    result = subprocess.run(
        [sys.executable, "-m", "benchmarks.gpu", "--tiny", "--json", str(tmp_path / "gpu.json")],
        cwd=ROOT,
        env={**os.environ, "JAX_PLATFORMS": "cpu"},
        capture_output=True,
        text=True,
        timeout=580,
    )
    assert result.returncode == 0, result.stderr
    figures = json.loads((tmp_path / "gpu.json").read_text())["figures"]
    assert set(figures) == set(gpu.SECONDS)
    for name, sides in figures.items():
        assert set(sides) == ({"ours"} if name in gpu.ALONE else {"ours", "torch"})
        for side, found in sides.items():
            assert name == "tests" or "skipped" not in found, (name, side, found)
    assert figures["check"]["ours"]["passed"]
    assert result.stdout.count(" x |") >= 10  # ratios
