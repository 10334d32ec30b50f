"""Speed of the unit vocoder against PyTorch, at full size, in one run.

    python -m benchmarks.vocoder [--batch 1 8] [--seconds 10] [--rounds 7] [--json FILE]

Both sides have their weight norm multiplied out and run in float32 on the same cores, in turn; medians are compared.
Ours is all of `HifiGanVocoder.decode_batch` on frame-rate units, with windows, masks and copies to NumPy. PyTorch's is
the network alone (`tests/support/torch_hifigan.py`).

The last line measures a stream: the time to compute each chunk once its units are there. Waiting for the units that the
vocoder looks ahead comes on top (`HifiGanVocoder.latency`).
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np
import torch

from benchmarks import report
from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import hifigan as table
from spirit_jax.convert.table import to_jax
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.units import HUBERT_RATE, SpeechUnits
from tests.support.torch_hifigan import TorchHifiGan

FULL_SIZE = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "FULL_SIZE.json"


def networks() -> tuple[HifiGanVocoder, TorchHifiGan]:
    """Our Base vocoder and PyTorch's with the same random weights."""
    config = json.loads(FULL_SIZE.read_text())["hifigan_spiritlm_base/generator.pt"]["config"]
    torch.manual_seed(0)
    reference = TorchHifiGan(config).eval()
    part = table.part_config(config)
    state = {name: value.numpy() for name, value in reference.state_dict().items()}
    params, _ = to_jax(table.rows(part), state, table.shapes(part), "random weights")
    return HifiGanVocoder.load(part, unflatten(params)), reference.fold()


def random_units(batch: int, seconds: float) -> np.ndarray:
    """Phonetic units at the frame rate, [batch, frames]."""
    return np.random.default_rng(0).integers(0, 500, (batch, round(seconds * HUBERT_RATE)))


def measure(batch: int, seconds: float, rounds: int) -> dict:
    """Real-time factors, CPU times and their ratios, for one batch size."""
    ours, reference = networks()
    units = random_units(batch, seconds)
    speaker, style = torch.full((batch,), 2), torch.full((batch,), 8)

    def run_ours() -> np.ndarray:
        return np.stack(ours.decode_batch([SpeechUnits(row) for row in units], predict_durations=False))

    @torch.inference_mode()
    def run_torch() -> np.ndarray:
        return reference(torch.tensor(units), speaker=speaker, style=style).numpy()

    difference = float(np.abs(run_ours() - run_torch()).max())  # this also warms up both
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": []}
    for _ in range(rounds):
        for name, run in (("ours", run_ours), ("torch", run_torch)):
            time.sleep(0.3)  # the other side's OpenMP threads keep spinning for a fifth of a second after their work
            wall, busy = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - busy))
    wall = {name: statistics.median(wall for wall, _ in pairs) for name, pairs in times.items()}
    busy = {name: statistics.median(busy for _, busy in pairs) for name, pairs in times.items()}
    return {
        "batch": batch,
        "seconds": seconds,
        "real_time_factor": {name: round(value / (batch * seconds), 4) for name, value in wall.items()},
        # CPU time is steadier than wall-clock time on a busy machine.
        "cpu_seconds": {name: round(value, 3) for name, value in busy.items()},
        "speedup": round(wall["torch"] / wall["ours"], 2),
        "speedup_cpu_seconds": round(busy["torch"] / busy["ours"], 2),
        "largest_difference": difference,
    }


def measure_stream(seconds: float, chunk_frames: int = 16) -> dict:
    """Times of the chunks of a stream whose units arrive one by one without delay. A first stream compiles."""
    ours, _ = networks()
    (units,) = random_units(1, seconds)
    stamps: list[float] = []
    for _ in range(2):
        pieces = (SpeechUnits(units[i : i + 1]) for i in range(len(units)))
        stamps = [time.perf_counter()]
        for _ in ours.stream(pieces, predict_durations=False, chunk_frames=chunk_frames):
            stamps.append(time.perf_counter())
    chunks = np.diff(stamps)
    return {
        "stream_chunk_seconds": chunk_frames / HUBERT_RATE,
        "looks_ahead_seconds": ours.latency(predict_durations=False)[1] / HUBERT_RATE,
        "seconds_to_first_audio": round(float(chunks[0]), 3),
        "median_seconds_a_chunk": round(float(np.median(chunks)), 3),
    }


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8], help="batch sizes (default 1 8)")
    parser.add_argument("--seconds", type=float, default=10.0, help="length of each utterance (default 10)")
    parser.add_argument("--rounds", type=int, default=7, help="measured rounds (default 7)")
    report.add_option(parser)
    arguments = parser.parse_args()
    where, batches = report.machine(), []
    for batch in arguments.batch:
        batches.append(measure(batch, arguments.seconds, arguments.rounds))
        print(json.dumps(batches[-1]), flush=True)
    stream = measure_stream(arguments.seconds)
    print(json.dumps(stream), flush=True)
    report.write(arguments.json, where, {"batches": batches, "stream": stream})


if __name__ == "__main__":
    main()
