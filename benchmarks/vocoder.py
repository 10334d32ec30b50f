"""Real-time factor of the unit vocoder against PyTorch's, full size, in one run.

    python -m benchmarks.vocoder [--batch 1 8] [--seconds 10] [--rounds 7]

Both have their weight norms multiplied out and run in float32 on the same cores, in turn; medians are compared. Ours is the whole
`HifiGanVocoder.decode_batch` of frame-rate units (windows, masks, copies to NumPy), PyTorch's is the network alone, written from
docs/formats.md, "Vocoders" (`tests/support/torch_hifigan.py`). A last line says what a stream costs: the time that each chunk takes to compute once its units
are there, which comes on top of waiting for the units that it looks ahead (`HifiGanVocoder.latency`).
"""

import argparse
import json
import pathlib
import statistics
import time

import numpy as np
import torch

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import hifigan as table
from spirit_jax.convert.table import to_jax
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from tests.support.torch_hifigan import TorchHifiGan

FULL_SIZE = pathlib.Path(__file__).parents[1] / "tests" / "golden" / "FULL_SIZE.json"


def networks() -> tuple[HifiGanVocoder, TorchHifiGan]:
    """Ours and PyTorch's Base vocoder with the same random weights."""
    config = json.loads(FULL_SIZE.read_text())["hifigan_spiritlm_base/generator.pt"]["config"]
    torch.manual_seed(0)
    theirs = TorchHifiGan(config).eval()
    part = table.part_config(config)
    state = {name: value.numpy() for name, value in theirs.state_dict().items()}
    params, _ = to_jax(table.rows(part), state, table.shapes(part), "random weights")
    return HifiGanVocoder.load(part, unflatten(params)), theirs.fold()


def measure(batch: int, seconds: float, rounds: int) -> dict:
    ours, theirs = networks()
    units = np.random.default_rng(0).integers(0, 500, (batch, round(seconds * 25)))
    speaker, style = torch.full((batch,), 2), torch.full((batch,), 8)

    def run_ours():
        return ours.decode_batch([{"hubert": row} for row in units], predict_durations=False)

    @torch.inference_mode()
    def run_theirs():
        return theirs(torch.tensor(units), speaker=speaker, style=style).numpy()

    difference = float(np.abs(np.stack(run_ours()) - run_theirs()).max())  # and both are warm now
    times: dict[str, list[tuple[float, float]]] = {"ours": [], "torch": []}
    for _ in range(rounds):
        for name, run in (("ours", run_ours), ("torch", run_theirs)):
            time.sleep(0.3)  # OpenMP's threads go on spinning for a fifth of a second after the other side's work
            wall, busy = time.perf_counter(), time.process_time()
            run()
            times[name].append((time.perf_counter() - wall, time.process_time() - busy))
    wall = {name: statistics.median(wall for wall, _ in pairs) for name, pairs in times.items()}
    busy = {name: statistics.median(busy for _, busy in pairs) for name, pairs in times.items()}
    return {
        "batch": batch,
        "seconds": seconds,
        "real_time_factor": {name: round(value / (batch * seconds), 4) for name, value in wall.items()},
        "cpu_seconds": {
            name: round(value, 3) for name, value in busy.items()
        },  # steadier than the clock on a busy machine
        "speedup": round(wall["torch"] / wall["ours"], 2),
        "speedup_cpu_seconds": round(busy["torch"] / busy["ours"], 2),
        "largest_difference": difference,
    }


def measure_stream(seconds: float, chunk_frames: int = 16) -> dict:
    """Units arrive one by one without delay; the first stream compiles."""
    ours, _ = networks()
    units = np.random.default_rng(0).integers(0, 500, round(seconds * 25))
    for _ in range(2):
        stamps = [time.perf_counter()]
        for _ in ours.stream(
            ({"hubert": [unit]} for unit in units), predict_durations=False, chunk_frames=chunk_frames
        ):
            stamps.append(time.perf_counter())
    chunks = np.diff(stamps)
    return {
        "stream_chunk_seconds": chunk_frames / 25,
        "looks_ahead_seconds": ours.latency(predict_durations=False)[1] / 25,
        "seconds_to_first_audio": round(float(chunks[0]), 3),
        "median_seconds_a_chunk": round(float(np.median(chunks)), 3),
    }


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 8])
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--rounds", type=int, default=7)
    arguments = parser.parse_args()
    for batch in arguments.batch:
        print(json.dumps(measure(batch, arguments.seconds, arguments.rounds)), flush=True)
    print(json.dumps(measure_stream(arguments.seconds)), flush=True)


if __name__ == "__main__":
    main()
