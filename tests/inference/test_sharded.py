"""Generation on meshes of 4 and 8 simulated devices gives what one device gives."""

import os
import pathlib
import subprocess
import sys

from tests.support import checkpoints


def test_meshes():
    """Tensor-parallel, with rows spread, and with weights spread: the same greedy and drawn tokens, and weights in shards
    as the table of rules says; log-likelihoods within 1e-3 of 93 nats (float32 sums in another order)."""
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.inference.eight_devices", str(checkpoints.converted("small_expressive"))]
    environment = {**os.environ, "PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
