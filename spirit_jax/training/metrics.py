"""The metrics log of a run: JSON lines always, TensorBoard beside them."""

import json
import math
import os
import pathlib
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, Any

import numpy as np

from spirit_jax.core.files import naming, read_text, write_file
from spirit_jax.core.lazy import hidden_modules

if TYPE_CHECKING:
    from tensorboardX import SummaryWriter


class MetricsLog:
    """`metrics.jsonl`, one line for each record, and TensorBoard events beside it.

    A run that resumes at a step drops the lines after it, so that the file reads like an uninterrupted run.

    Args:
        directory: the run directory.
        step: the step at which the run starts or resumes; 0 starts an empty log.
        active: False for processes other than the primary one, which write nothing.
    """

    def __init__(self, directory: str | os.PathLike, step: int, active: bool = True):
        self._open: tuple[IO[str], SummaryWriter] | None = None
        self._active = active
        self._directory = pathlib.Path(directory)
        self.path = self._directory / "metrics.jsonl"
        self.cut_back(step)

    def cut_back(self, step: int) -> None:
        """Drop all records after a step and continue from there."""
        self.close()
        if not self._active:
            return
        kept = []
        if self.path.exists():
            for line in read_text(self.path).splitlines():
                try:
                    record = json.loads(line)
                except json.JSONDecodeError:
                    continue  # The last line of a run that was killed while it wrote.
                if step and record["step"] <= step:
                    kept.append(line)
        write_file(self.path, "".join(f"{line}\n" for line in kept))
        with hidden_modules("torch", "google.cloud.storage"):  # tensorboardX loads them if they are installed: 3 s
            from tensorboardX import SummaryWriter

        writer = SummaryWriter(str(self._directory / "tensorboard"), purge_step=step + 1 if step else None)
        self._open = self.path.open("a"), writer

    def has(self, step: int, start: str) -> bool:
        """Whether a record of this step holds a value whose `prefix/name` starts so; False if the log is inactive."""
        if not self._active:
            return False
        records = (json.loads(line) for line in read_text(self.path).splitlines())
        return any(record["step"] == step and any(name.startswith(start) for name in record) for record in records)

    def write(self, step: int, values: Mapping[str, float], prefix: str = "train") -> None:
        """Log a record; its names are stored as `prefix/name`, values that are not finite as null."""
        if self._open is None:
            return
        file, writer = self._open
        record = {f"{prefix}/{name}": _finite(value) for name, value in values.items()}
        with naming(self.path):
            file.write(json.dumps({"step": step, **record}) + "\n")
            file.flush()
        for name, value in record.items():
            if value is not None:
                writer.add_scalar(name, value, step)

    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate: int) -> None:
        """Add a clip, float32 [R] in [-1, 1], to TensorBoard."""
        if self._open is not None:
            self._open[1].add_audio(name, np.asarray(audio)[:, None], step, sample_rate=sample_rate)

    def text(self, step: int, name: str, text: str) -> None:
        """Add a text to TensorBoard."""
        if self._open is not None:
            self._open[1].add_text(name, text, step)

    def close(self) -> None:
        """Close the files; further records are dropped."""
        if self._open is not None:
            for each in self._open:
                each.close()
            self._open = None


def _finite(value: Any) -> float | None:
    """A plain float, or None for NaN and infinity, which JSON lacks."""
    value = float(value)
    return value if math.isfinite(value) else None
