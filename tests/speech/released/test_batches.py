"""Clips in padded batches: each clip gets its own row, shapes are few, memory is bounded, devices share the rows."""

import itertools
import logging
import os
import pathlib
import subprocess
import sys

import numpy as np
import pytest

from spirit_jax.speech.released.batches import MAX_SAMPLES, PADDED_LENGTHS, encode_clips

ROOT = pathlib.Path(__file__).parents[3]


def energies(shapes):
    """A network that returns the energy of each frame of 100 samples, and records the shapes that it is called with."""

    def run(audio, lengths):
        shapes.append(audio.shape)
        audio = np.asarray(audio, np.float64)
        frames = audio[:, : audio.shape[1] // 100 * 100].reshape(len(audio), -1, 100)
        return np.square(frames).sum(-1), np.asarray(lengths) // 100

    return run


def test_every_clip_gets_its_own_row_and_shapes_are_few():
    rng, shapes = np.random.default_rng(0), []
    clips = [rng.normal(size=int(n)).astype(np.float32) for n in rng.integers(800, 160_000, 60)]
    for clip, (found,) in zip(clips, encode_clips(energies(shapes), clips, 800, "x"), strict=True):
        whole = clip[: len(clip) // 100 * 100].astype(np.float64).reshape(-1, 100)
        np.testing.assert_allclose(found, np.square(whole).sum(-1))
    assert all(b <= 4 / 3 * a + 1 for a, b in itertools.pairwise(PADDED_LENGTHS))
    assert {length for _, length in shapes} <= set(PADDED_LENGTHS)
    assert all(rows * length <= MAX_SAMPLES and rows & (rows - 1) == 0 for rows, length in shapes)
    assert sum(rows for rows, _ in shapes) == len(clips)  # no clip is computed twice


@pytest.mark.parametrize(("cores", "rows", "programs"), [(2, {1}, 7), (16, {1, 4}, 14)])
def test_a_folder_of_short_clips_compiles_few_programs(monkeypatch, caplog, cores, rows, programs):
    """100 clips of 2 to 6 s, in blocks of 64. Each shape is logged once, before it runs."""
    monkeypatch.setattr(os, "cpu_count", lambda: cores)
    rng, shapes = np.random.default_rng(0), []
    clips = [np.zeros(n, np.float32) for n in rng.integers(32_001, 96_000, 100)]
    run = energies(shapes)
    with caplog.at_level(logging.INFO, "spirit_jax.speech"):
        for block in (clips[:64], clips[64:]):
            encode_clips(run, block, 800, "units")
    assert {count for count, _ in shapes} == rows
    assert len(set(shapes)) <= programs
    logged = sorted(record.getMessage() for record in caplog.records)
    said = (f"compiling or loading: units of {rows} x {samples / 16_000:g} s of audio" for rows, samples in set(shapes))
    assert logged == sorted(said)


def test_rows_are_split_over_the_local_devices():
    """In a process with four virtual devices, 11 clips make three batches of 4 rows, and each clip gets its own sum."""
    code = """
import os
os.cpu_count = lambda: 2
import jax, numpy as np
from spirit_jax.speech.released.batches import encode_clips, jit_float32, replicate
seen = []
scale = replicate(np.float32(2))
run_ = jit_float32(lambda scale, audio, lengths: (scale * audio.sum(1, keepdims=True), lengths * 0 + 1))
def run(audio, lengths):
    seen.append((audio.shape, len(audio.sharding.device_set), len(scale.sharding.device_set)))
    return run_(scale, audio, lengths)
clips = [np.full(1000 + i, 1.0, np.float32) for i in range(11)]
found = [float(x[0]) for (x,) in encode_clips(run, clips, 1, "sums")]
assert found == [2.0 * len(clip) for clip in clips], found
assert seen == [((4, 16000), 4, 4)] * 3, seen
"""
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=4",
        "JAX_PLATFORMS": "cpu",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
