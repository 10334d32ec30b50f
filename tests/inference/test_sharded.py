"""Generation on meshes of 4 and 8 simulated devices gives what one device gives."""

import pathlib
import subprocess
import sys

import pytest

from tests.support import checkpoints
from tests.support.compilation import fast_environment


@pytest.mark.slow
def test_every_mesh_generates_what_one_device_does():
    """Greedy and drawn tokens are equal under tensor parallelism, with rows spread and with weights spread. Weights lie
    in the shards of the table of rules. Log-likelihoods are within 1e-3 of 93 nats (float32 sums in another order)."""
    root = pathlib.Path(__file__).parents[2]
    command = [sys.executable, "-m", "tests.inference.eight_devices", str(checkpoints.converted("small_expressive"))]
    environment = fast_environment(devices=8) | {"PYTHONPATH": str(root)}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, timeout=280)
    assert done.stdout.strip().endswith("equal"), done.stderr[-3000:]
