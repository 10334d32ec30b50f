"""The metrics log reads like that of an uninterrupted run, whatever happened to the run."""

import json
import subprocess
import sys

import numpy as np
import pytest

from spirit_jax.training.language_model import means_by_kind
from spirit_jax.training.metrics import MetricsLog


def _lines(path):
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_means_by_kind_by_hand():
    """Means of a kind are over its own tokens, the others over all tokens; kinds without a token are left out."""
    sums = {"nll": np.array([6.0, 10, 0, 1]), "correct": [1, 2, 0, 4], "tokens": [2, 4, 0, 4], "within": [3.0, 8, 0, 2]}
    assert means_by_kind(sums) == {
        "loss": pytest.approx(17 / 10),
        "accuracy": pytest.approx(7 / 10),
        "loss_text": 3.0, "accuracy_text": 0.5, "loss_within_text": 1.5,
        "loss_hubert": 2.5, "accuracy_hubert": 0.5, "loss_within_hubert": 2.0,
        "loss_style": 0.25, "accuracy_style": 1.0, "loss_within_style": 0.5,
    }  # fmt: skip


def test_the_log_loads_no_torch(tmp_path):
    """TensorBoard's writer would, in seconds, where it is installed."""
    script = (
        "import sys; from spirit_jax.training.metrics import MetricsLog; log = MetricsLog(sys.argv[1], 0); "
        "log.write(1, {'train/loss': 2.0}); log.close(); assert not {'torch', 'google.cloud.storage'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)
    assert list((tmp_path / "tensorboard").iterdir())


def test_resuming_drops_records_after_the_checkpoint(tmp_path):
    log = MetricsLog(tmp_path, 0)
    for step in range(1, 6):
        log.write(step, {"loss": 10.0 - step})
    log.close()
    with log.path.open("a") as file:
        file.write('{"step": 6, "train/lo')  # killed while it wrote
    log = MetricsLog(tmp_path, 3)
    log.write(4, {"loss": 6.5, "mfu": float("nan")})
    log.close()
    assert [line["step"] for line in _lines(log.path)] == [1, 2, 3, 4]
    assert _lines(log.path)[-1] == {"step": 4, "train/loss": 6.5, "train/mfu": None}


def test_a_fresh_run_starts_a_fresh_log(tmp_path):
    for _ in range(2):
        log = MetricsLog(tmp_path, 0)
        log.write(0, {"loss": 1.0}, "validation")
        log.close()
    assert _lines(log.path) == [{"step": 0, "validation/loss": 1.0}]


def test_other_processes_write_nothing(tmp_path):
    log = MetricsLog(tmp_path, 0, active=False)
    log.write(1, {"loss": 1.0})
    log.text(1, "a", "b")
    log.close()
    assert list(tmp_path.iterdir()) == []
