"""Steps that went wrong: told by the compiled step itself, recorded, and answered by policy."""

import dataclasses
import json
import os
import pathlib
from collections.abc import Mapping
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from spirit_jax.parallel.processes import is_primary

_WINDOW = 128  # steps that the next one is compared with; half of them must be there (as OLMo-core's SkipStepAdamW)


@dataclasses.dataclass(frozen=True)
class FaultConfig:
    """What counts as a fault, and what is done about it."""

    on_bad_step: Literal["skip", "roll_back", "stop"] = "skip"
    """A step with a loss or gradient that is not finite, or a spike, never changes the weights. After it: go on with the
    next batch; or go back to the last checkpoint and on with the next batch; or end the run. Its data are kept in RUN/faults."""
    spike_sigmas: float = 6.0
    """A spike is a loss or gradient norm so many standard deviations above the mean of the last 128 steps; 0: none is."""
    hang_timeout: int = 1800
    """Seconds after which a process ends the job if nothing moves: no batch, step, evaluation or checkpoint is finished.
    Must be longer than a compilation and a save."""
    heartbeat_timeout: int = 100
    """Seconds without a sign of life after which a process is taken for dead, which ends the job's others."""

    def __post_init__(self) -> None:
        if self.spike_sigmas < 0:
            raise ValueError(f"faults.spike_sigmas must not be negative, found {self.spike_sigmas}")
        for name in ("hang_timeout", "heartbeat_timeout"):
            if getattr(self, name) < 1:
                raise ValueError(f"faults.{name} must be positive, found {getattr(self, name)}")


Recent = dict[str, Array]
"""What recent finite steps had: `values` float32 [2, W] (loss, gradient norm), and how many there were, `count` int32."""


def no_recent() -> Recent:
    """Before the first step."""
    return {"values": jnp.zeros((2, _WINDOW), jnp.float32), "count": jnp.zeros((), jnp.int32)}


def judge(
    recent: Recent, loss: Float[Array, ""], norm: Float[Array, ""], sigmas: float
) -> tuple[Bool[Array, ""], Recent]:
    """Whether a step is bad, and what the next one is compared with. Spikes enter it, so that a lasting change is accepted."""
    now = jnp.stack([loss, norm]).astype(jnp.float32)
    values, count = recent["values"], recent["count"]
    filled = (jnp.arange(_WINDOW) < count)[None]
    total = jnp.maximum(filled.sum(), 1)
    mean = jnp.where(filled, values, 0).sum(1) / total
    deviation = jnp.sqrt(jnp.where(filled, (values - mean[:, None]) ** 2, 0).sum(1) / total)
    finite = jnp.isfinite(now).all()
    spike = (count >= _WINDOW // 2) & (now > mean + sigmas * deviation).any() if sigmas else jnp.zeros((), bool)
    kept = jnp.where(finite, values.at[:, count % _WINDOW].set(now), values)
    return ~finite | spike, {"values": kept, "count": count + finite}


def to_json(recent: Recent) -> dict[str, Any]:
    """For a checkpoint's metadata, exactly."""
    return {"values": np.asarray(recent["values"], np.float64).tolist(), "count": int(recent["count"])}


def from_json(value: Mapping[str, Any] | None, shardings: Any) -> Recent:
    """The inverse of `to_json`; None, of a checkpoint without it, starts anew."""
    recent = no_recent() if value is None else {
        "values": np.asarray(value["values"], np.float32), "count": np.asarray(value["count"], np.int32)
    }  # fmt: skip
    return jax.device_put(recent, shardings)


def record(
    directory: str | os.PathLike, step: int, metrics: Mapping[str, Any], batch: Mapping[str, np.ndarray], streams: Any
) -> None:
    """Keep a bad step: a line in `faults.jsonl` with where the data streams stood before it, and, from each process, the
    rows of its batch in `faults/STEP-PROCESS.npz`."""
    directory = pathlib.Path(directory)
    (directory / "faults").mkdir(parents=True, exist_ok=True)
    np.savez_compressed(directory / "faults" / f"{step}-{jax.process_index()}.npz", **batch)
    if is_primary():
        line = {"step": step} | {name: repr(float(metrics[name])) for name in ("loss", "gradient_norm")}
        with (directory / "faults.jsonl").open("a") as file:
            file.write(json.dumps(line | {"data": streams}) + "\n")
