"""What a run reports: losses by kind of token, throughput, utilisation; JSONL always, TensorBoard beside it."""

import json
import math
import os
import pathlib
import time
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Int

from spirit_jax.core import hardware
from spirit_jax.core.files import write_file
from spirit_jax.vocabulary import TOKEN_KINDS


def peak_flops(device: jax.Device) -> float:
    """Floating-point operations per second that a device can do at most; measured for a CPU, NaN where unknown."""
    if device.platform == "cpu":
        return _measured_matmul_flops() / jax.local_device_count()
    return hardware.peak_flops(device.device_kind)


def _measured_matmul_flops(size: int = 1024, repeats: int = 8) -> float:
    """The best of a few float32 matrix products: what this process can reach on this machine's CPU."""
    product = jax.jit(jnp.matmul)
    x = jnp.ones((size, size), jnp.float32)
    product(x, x).block_until_ready()
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        product(x, x).block_until_ready()
        times.append(time.perf_counter() - start)
    return 2 * size**3 / min(times)


def by_kind(sums: Mapping[str, Any]) -> dict[str, float]:
    """Mean loss (nats) and accuracy over all tokens and by kind, out of the per-kind sums of a step or of many.

    Kinds without a token are left out. Where it was taken (evaluation), `loss_within_KIND` is the loss of a token among
    the ids of its own kind, as if the kind were told: what `unigram_entropy` compares with.
    """
    nll, correct, tokens = (np.asarray(sums[name], np.float64) for name in ("nll", "correct", "tokens"))
    total = max(tokens.sum(), 1.0)
    values = {"loss": nll.sum() / total, "accuracy": correct.sum() / total}
    for index, kind in enumerate(TOKEN_KINDS[: len(tokens)]):
        if tokens[index]:
            values[f"loss_{kind}"] = nll[index] / tokens[index]
            values[f"accuracy_{kind}"] = correct[index] / tokens[index]
            if "within" in sums:
                values[f"loss_within_{kind}"] = float(sums["within"][index]) / tokens[index]
    return values


def unigram_entropy(counts: Int[np.ndarray, " V"], token_kinds: Int[np.ndarray, " V"]) -> dict[str, float]:
    """Entropy in nats of the tokens of each kind: the least loss of a model that knows the kind and no context.

    Args:
        counts: how often each id occurs.
        token_kinds: the kind of each id (`Vocabulary.token_kinds`).
    """
    values = {}
    for index, kind in enumerate(TOKEN_KINDS):
        share = counts[(token_kinds == index) & (counts > 0)]
        if share.size:
            share = share / share.sum()
            values[f"unigram_entropy_{kind}"] = float(-(share * np.log(share)).sum())
    return values


class MetricsLog:
    """`metrics.jsonl`, a line for each record, and TensorBoard events beside it.

    Resuming at a step drops the lines after it, so that the file reads like an unbroken run. Processes other than the
    primary one pass `active=False` and write nothing.
    """

    def __init__(self, directory: str | os.PathLike, step: int, active: bool = True):
        self._file = self._writer = None
        self._active = active
        self._directory = pathlib.Path(directory)
        self.path = self._directory / "metrics.jsonl"
        self.cut_back(step)

    def cut_back(self, step: int) -> None:
        """Drop what came after a step, and go on from there."""
        self.close()
        if not self._active:
            return
        kept = []
        if self.path.exists():
            for line in self.path.read_text().splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # the last line of a run that was killed while it wrote
                if step and record["step"] <= step:
                    kept.append(line)
        write_file(self.path, "".join(f"{line}\n" for line in kept))
        from tensorboardX import SummaryWriter

        self._file = self.path.open("a")
        self._writer = SummaryWriter(str(self._directory / "tensorboard"), purge_step=step + 1 if step else None)

    def has(self, step: int, name: str) -> bool:
        """Whether a record of this step holds a value of this name (`prefix/name`)."""
        if not self._active:
            return False
        records = (json.loads(line) for line in self.path.read_text().splitlines())
        return any(record["step"] == step and name in record for record in records)

    def write(self, step: int, values: Mapping[str, float], prefix: str = "train") -> None:
        """Log a record; names are stored as `prefix/name`."""
        if self._file is None:
            return
        record = {f"{prefix}/{name}": _plain(value) for name, value in values.items()}
        self._file.write(json.dumps({"step": step, **record}) + "\n")
        self._file.flush()
        for name, value in record.items():
            if value is not None:
                self._writer.add_scalar(name, value, step)

    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate: int) -> None:
        """Put a clip, float32 [R] in [-1, 1], into TensorBoard."""
        if self._writer is not None:
            self._writer.add_audio(name, np.asarray(audio)[:, None], step, sample_rate=sample_rate)

    def text(self, step: int, name: str, text: str) -> None:
        """Put a text into TensorBoard."""
        if self._writer is not None:
            self._writer.add_text(name, text, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._writer.close()
            self._file = self._writer = None


def _plain(value: Any) -> float | None:
    value = float(value)
    return value if math.isfinite(value) else None  # JSON has no NaN
