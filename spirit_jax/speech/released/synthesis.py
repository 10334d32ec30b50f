"""Runs a HiFi-GAN on inputs of any length, in windows of a few lengths that share batches.

A long input is cut into windows, and each window is computed with the positions around it that its output depends on
(`HifiGanConfig.context`). The output is that of the whole input at once, and nothing is compiled for a new length.

Each window length and each batch size is a program of its own. A CPU compiles fast and computes slowly: it gets four
lengths, and batches padded to a power of two. An accelerator compiles for long and computes fast: it gets the largest
of each.
"""

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.checkpoint import CheckpointError, flatten
from spirit_jax.core.arithmetic import next_power_of_two
from spirit_jax.kernels.platform import platform
from spirit_jax.models.hifigan import HifiGan, durations, fold_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.speech.released.batches import jit_float32
from spirit_jax.speech.released.hifigan_cpu import Generate, for_inference
from spirit_jax.speech.released.vocoder_input import VocoderInput

WINDOWS = (32, 64, 128, 256)
"""Window lengths. An input takes as many of the largest as fit, and one for the rest."""

MAX_BATCH = 8
"""Windows in the largest batch."""

DURATION_CONTEXT = 2
"""Units on either side that a predicted duration depends on."""


class PositionRange(NamedTuple):
    """A stretch of an input to compute: positions `start` to `stop - 1`."""

    source: VocoderInput
    start: int
    stop: int


class WindowBatch(NamedTuple):
    """Windows with their context, in the layout of the network: B rows of T positions, int32."""

    units_bt: Int[np.ndarray, "B T"]
    pitch_bt: Int[np.ndarray, "B T"]
    styles_bt: Int[np.ndarray, "B T"]
    speaker_b: Int[np.ndarray, " B"]
    style_b: Int[np.ndarray, " B"]
    first_b: Int[np.ndarray, " B"]
    """The first position that belongs to the input."""
    last_b: Int[np.ndarray, " B"]
    """The position after the last one that belongs to the input."""


class Synthesizer:
    """The vocoder network with its parameters, in the form that the platform runs fastest.

    Attributes:
        network: shape of the vocoder.
        model: the network.
        variables: its parameters, as `model.apply` takes them.
    """

    def __init__(self, network: HifiGanConfig, params: dict):
        """Fold the weight norm of the parameters and place them on the device.

        Args:
            network: shape of the vocoder.
            params: parameters as in a checkpoint, weight norm in two factors or already folded.

        Raises:
            CheckpointError: a parameter is missing, unexpected or of another shape; names the first.
        """
        self.network = network
        params = fold_weight_norm(params)
        wanted, found = _shapes(network), {path: leaf.shape for path, leaf in flatten(params).items()}
        for path in sorted(wanted.keys() | found.keys()):
            if found.get(path) != wanted.get(path):
                what = f"array {path} has shape {found.get(path)}, its config asks for {wanted.get(path)}"
                raise CheckpointError(f"vocoder: {what}")
        self.model, self._method, params = for_inference(network, params)
        self.variables = {"params": jax.tree.map(jnp.asarray, params)}

    def durations(self, ranges: Sequence[PositionRange]) -> list[Int[np.ndarray, " U"]]:
        """Predicted frames of each unit of each range."""

        def run(batch: WindowBatch, window: int) -> np.ndarray:
            counts = _predict(self.model, self.variables, batch.units_bt, batch.first_b, batch.last_b)
            return np.asarray(counts)[:, DURATION_CONTEXT : DURATION_CONTEXT + window]

        return _in_windows(ranges, WINDOWS, (DURATION_CONTEXT, DURATION_CONTEXT), 1, run)

    def audio(
        self, ranges: Sequence[PositionRange], *, context: tuple[int, int], windows: Sequence[int] | None = None
    ) -> list[Float[np.ndarray, " R"]]:
        """Audio of the frames of each range.

        Args:
            ranges: stretches of frames.
            context: frames before and after a window that are computed with it: `network.context`, or none for inputs
                that fit one window.
            windows: window lengths; None for `WINDOWS`.
        """

        def run(batch: WindowBatch, window: int) -> np.ndarray:
            return np.asarray(_generate(self.model, self._method, self.variables, batch, context))

        return _in_windows(ranges, windows or WINDOWS, context, self.network.code_hop_size, run)


@functools.cache
def _shapes(network: HifiGanConfig) -> dict[str, tuple[int, ...]]:
    units = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(HifiGan(network).init, jax.random.key(0), units)["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}


@functools.partial(jit_float32, static_argnums=0)
def _predict(model: HifiGan, variables: dict, units_bt: Array, first_b: Array, last_b: Array) -> Array:
    log_durations_bt = model.apply(variables, units_bt, first_b, last_b, method="log_durations")
    return durations(jnp.asarray(log_durations_bt))


@functools.partial(jax.jit, static_argnums=(0, 1, 4))
def _generate(model: HifiGan, method: Generate, variables: dict, batch: WindowBatch, context: tuple[int, int]) -> Array:
    # Audio tolerates rounding, unlike units. On TPU "high" makes three bfloat16 products out of one in float32, where
    # "float32" makes six, and compiles three times as fast.
    with jax.default_matmul_precision("high" if platform() == "tpu" else "float32"):
        return jnp.asarray(model.apply(variables, *batch, context=context, method=method))


def _in_windows(
    ranges: Sequence[PositionRange],
    windows: Sequence[int],
    context: tuple[int, int],
    hop: int,
    run: Callable[[WindowBatch, int], np.ndarray],
) -> list[np.ndarray]:
    """Run ranges in windows, in batches, and join the outputs of each range.

    Args:
        ranges: what to compute.
        windows: window lengths, ascending.
        context: positions before and after a window that are computed with it.
        hop: outputs of a position.
        run: gets a batch and its window length, and returns [B, window * hop].
    """
    on_cpu = platform() == "cpu"
    if not on_cpu:
        windows = windows[-1:]
    planned: dict[int, list[tuple[int, int, int]]] = {}  # window length -> (range, first position, positions wanted)
    for index, (_, start, stop) in enumerate(ranges):
        while start < stop:
            window = next((size for size in windows if size >= stop - start), windows[-1])
            planned.setdefault(window, []).append((index, start, min(window, stop - start)))
            start += window
    outputs: dict[tuple[int, int], np.ndarray] = {}
    for window, places in planned.items():
        for at in range(0, len(places), MAX_BATCH):
            chosen = places[at : at + MAX_BATCH]
            size = next_power_of_two(len(chosen)) if on_cpu else MAX_BATCH
            rows = [(ranges[index].source, start) for index, start, _ in chosen]
            batch = _batch(rows + rows[:1] * (size - len(rows)), window, context)
            for (index, start, wanted), output in zip(chosen, run(batch, window), strict=False):
                outputs[index, start] = output[: wanted * hop]
    joined: list[list[np.ndarray]] = [[] for _ in ranges]
    for index, start in sorted(outputs):
        joined[index].append(outputs[index, start])
    return [np.concatenate(pieces) for pieces in joined]


def _batch(rows: Sequence[tuple[VocoderInput, int]], window: int, context: tuple[int, int]) -> WindowBatch:
    """A batch of windows, given the input of each and the position where it starts."""
    before, after = context
    taken = [source.take(np.arange(start - before, start + window + after)) for source, start in rows]
    first_b = np.array([before - start for _, start in rows], np.int32)
    return WindowBatch(
        units_bt=np.stack([codes.units for codes in taken]),
        pitch_bt=np.stack([codes.pitch for codes in taken]),
        styles_bt=np.stack([codes.styles for codes in taken]),
        speaker_b=np.array([codes.voice.speaker for codes in taken], np.int32),
        style_b=np.array([codes.voice.style for codes in taken], np.int32),
        first_b=first_b,
        last_b=first_b + np.array([len(source) for source, _ in rows], np.int32),
    )
