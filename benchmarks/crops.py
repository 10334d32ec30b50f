"""python -m benchmarks.crops [--clips 240] [--batches 20] [--workers 1 2] [--json FILE]

Measures how fast a host decodes and crops recordings for HuBERT's pre-training: FLAC files of 4 to 20 s, made of the
bundled prompts one after the other, in rows of configs/speech/hubert_base_25hz.yaml with labels and masks. Prints
seconds of audio a second with each number of threads, from files and from memory, and what a host of four chips of
v5e-32 takes there, by the bound in `benchmarks/results/speech_pods.json`.
"""

import argparse
import pathlib
import tempfile
import time
from typing import Any

import numpy as np
import soundfile

from benchmarks import report
from spirit_jax import config
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import read_json
from spirit_jax.corpora.prepare import open_splits
from spirit_jax.corpora.utterance import Utterance
from spirit_jax.parallel.sharding import HostShare
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.crops import Clips, CropBatches, CropShape
from spirit_jax.speech_training.hubert import HubertRows
from spirit_jax.speech_training.hubert_config import HubertTraining
from spirit_jax.speech_training.labels import Labels

CONFIG = pathlib.Path(__file__).parents[1] / "configs/speech/hubert_base_25hz.yaml"
CASE, HOSTS = "hubert_base_25hz v5e-32", 8


def write_clips(directory: pathlib.Path, count: int) -> list[Utterance]:
    """Write FLAC files of 4 to 20 s, and return them as a split."""
    prompts, rng = open_splits("asterisk_prompts", 0)[0], np.random.default_rng(0)
    whole = np.concatenate([prompts[index].load() for index in range(len(prompts))])
    made = []
    for number in range(count):
        size = int(rng.uniform(4, 20) * SAMPLE_RATE)
        start = int(rng.integers(whole.size - size))
        path = directory / f"{number}.flac"
        soundfile.write(path, whole[start : start + size], SAMPLE_RATE)
        made.append(Utterance(str(number), path, "", transcript_required=False))
    return made


def measure(clips: Clips, settings: HubertTraining, batches: int, workers: int) -> dict[str, Any]:
    """Take batches as fast as they come. The labels are zeros, because their values do not change the time."""
    hop, frames = settings.label_hop, 21 * SAMPLE_RATE // settings.label_hop
    labels = Labels(np.zeros(len(clips) * frames, np.uint16), np.arange(len(clips) + 1) * frames)
    shape = CropShape(settings.samples, settings.shortest, hop, settings.encoder.hop - hop)
    make = HubertRows(settings, labels)
    found = CropBatches(clips, shape, make, rows=settings.rows // HOSTS, seed=0, share=HostShare(0, 1), workers=workers)
    seconds, start = 0.0, time.perf_counter()
    for _ in range(batches):
        seconds += float(next(found)["length_b"].sum()) / SAMPLE_RATE
    return {"workers": workers, "speed": seconds / (time.perf_counter() - start), "batch": seconds / batches}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clips", type=int, default=240, help="files that are written (default 240)")
    parser.add_argument("--batches", type=int, default=20, help="batches of 24 rows that are measured (default 20)")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2], help="threads (default 1 and 2)")
    report.add_option(parser)
    arguments = parser.parse_args()

    where, figures = report.machine(), []
    settings = config.load(TrainSpeechConfig, CONFIG).hubert_1
    assert settings is not None
    with tempfile.TemporaryDirectory() as scratch:
        written = write_clips(pathlib.Path(scratch), arguments.clips)
        for workers in arguments.workers:
            for source, memory in (("files", 1), ("memory", 2**31)):
                clips = Clips(written, memory)
                if source == "memory":
                    for _ in clips.usable():
                        pass
                got = {"source": source, **measure(clips, settings, arguments.batches, workers)}
                figures.append(got)
                print(f"{workers} threads, from {source}: {got['speed']:.0f} s of audio a second")
    step = read_json(report.RESULTS / "speech_pods.json")["figures"][CASE]["step_seconds"]
    print(f"a host of {CASE} takes {figures[0]['batch'] / step:.0f} s of audio a second")
    report.write(arguments.json, where, figures)


if __name__ == "__main__":
    main()
