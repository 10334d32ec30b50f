"""The classes of each second of speech: pooled features, normalized by speaker, and clustered (paper, section 3.1)."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.checkpoint import SPEECH_TOKENIZER, find
from spirit_jax.core.checksums import read_checksums
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.speech.features import log_mel, style_frames
from spirit_jax.speech.scratch.prosody import log_f0, style_features
from spirit_jax.speech_training import kmeans
from spirit_jax.speech_training.hubert import layer_features, read_phonetic_encoder
from spirit_jax.speech_training.labels import Compute, Labels, cached, compute_clips, split_labels
from spirit_jax.speech_training.part import Context
from spirit_jax.speech_training.style_config import StyleTargets

_DEVIATION_FLOOR = 1e-4


def prosody(clips: Sequence[Float[np.ndarray, " R"]]) -> list[Float[np.ndarray, "K 3"]]:
    """Statistics of each second of clips (`speech.scratch.prosody.style_features`)."""
    features = []
    for clip in clips:
        octaves, mean = log_f0(clip)
        features.append(style_features(log_mel(clip), octaves, mean, style_frames(clip.size)))
    return features


def pooled(extract: Compute, hop: int) -> Compute:
    """The mean of an encoder's frames over each second, of which the last may be shorter.

    Args:
        extract: gives a frame every `hop` samples.
        hop: must divide a second.
    """
    size = SAMPLE_RATE // hop

    def run(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = []
        for clip, frames in zip(clips, extract(clips), strict=True):
            count = style_frames(clip.size)
            starts = [min(second * size, len(frames) - 1) for second in range(count)]
            found.append(np.stack([frames[start : start + size].mean(0) for start in starts]))
        return found

    return run


def normalize(
    features: Mapping[int, Float[np.ndarray, "_K F"]], speakers: Sequence[str]
) -> dict[int, Float[np.ndarray, "_K F"]]:
    """The features of each clip with mean 0 and variance 1 over all clips of its speaker.

    Args:
        features: by index of the clip.
        speakers: the speaker of every clip.
    """
    result = {}
    for speaker in {speakers[index] for index in features}:
        own = [index for index in features if speakers[index] == speaker]
        joined = np.concatenate([features[index] for index in own])
        mean, deviation = joined.mean(0), np.maximum(joined.std(0), _DEVIATION_FLOOR)
        result |= {index: ((features[index] - mean) / deviation).astype(np.float32) for index in own}
    return result


def style_labels(context: Context, targets: StyleTargets) -> tuple[Labels, Labels]:
    """The cluster of each second of the clips to learn from and of those held out; kept in the part's folder.

    Raises:
        SpiritError: there is less speech than clusters, or no HuBERT whose layer could be pooled.
    """
    extract, teacher = _extractor(context, targets)
    made_from = {"targets": dataclasses.asdict(targets), "teacher": teacher, "data": context.data}

    def make() -> dict[str, np.ndarray]:
        features, speakers = {}, {}
        for split, clips in (("train", context.train), ("held_out", context.held_out)):
            found = dict(compute_clips(clips.usable(), extract))
            speakers[split] = [clips.utterance(index).speaker if index in found else "" for index in range(len(clips))]
            everyone = speakers[split] if targets.by_speaker else [""] * len(clips)
            features[split] = normalize(found, everyone)
        if not features["train"]:
            raise SpiritError(f"none of {len(context.train)} clips can be used")
        order = np.random.default_rng((context.seed, 5)).permutation(sorted(features["train"]))
        points = np.concatenate([features["train"][index] for index in order])[: int(targets.hours * 3600)]
        centroids, _ = kmeans.fit(points, targets.clusters, context.seed)
        arrays: dict[str, np.ndarray] = {"centroids": centroids}
        for split, found in features.items():
            count = len(context.train if split == "train" else context.held_out)
            arrays |= _labels(split, found, count, lambda x: kmeans.assign(x, centroids))
        return arrays

    return split_labels(cached(context.directory / "targets", made_from, make))


def _labels(
    split: str,
    features: Mapping[int, np.ndarray],
    count: int,
    assign: Callable[[np.ndarray], Int[np.ndarray, " K"]],
) -> dict[str, Any]:
    none = np.zeros(0, np.int32)
    each = [assign(features[index]) if index in features else none for index in range(count)]
    return {
        f"{split}_values": np.concatenate([none, *each]).astype(np.uint16),
        f"{split}_offsets": np.cumsum([0, *map(len, each)]),
    }


def _extractor(context: Context, targets: StyleTargets) -> tuple[Compute, Any]:
    """The function that computes the features to cluster, and what its results depend on, as JSON."""
    if targets.features == "prosody":
        return prosody, "prosody"
    source = targets.teacher or str(context.run)
    shape, params = read_phonetic_encoder(source)
    if not targets.layer <= shape.num_layers:
        raise SpiritError(f"style.targets.layer is {targets.layer}: the encoder has layers 1 to {shape.num_layers}")
    described = read_checksums(find(source, f"{SPEECH_TOKENIZER}/phonetic"))
    return pooled(layer_features(shape, params, targets.layer), shape.hop), described
