"""How much units tell about the words of a corpus that has its words aligned.

Phones would be better, where a corpus has them; words are what most alignments give. Frames of silence belong to no
word and do not count.
"""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Float, Int

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.speech_training.crops import Clips
from spirit_jax.speech_training.labels import Compute, compute_clips, in_chunks


def joint_counts(units: Int[np.ndarray, " N"], labels: Int[np.ndarray, " N"]) -> Int[np.ndarray, "units labels"]:
    """How often each unit and each label come together."""
    counts = np.zeros((units.max(initial=-1) + 1, labels.max(initial=-1) + 1), np.int64)
    np.add.at(counts, (units, labels), 1)
    return counts


def quality(counts: Int[np.ndarray, "units labels"]) -> dict[str, float]:
    """Label purity, cluster purity and PNMI, as HuBERT's section 4.5 defines them.

    Label purity is the accuracy of the likeliest label of each unit, cluster purity that of the likeliest unit of each
    label. PNMI is the information that units give about labels as a share of the entropy of the labels.
    """
    joint = counts / counts.sum()
    by_unit, by_label = joint.sum(1), joint.sum(0)
    with np.errstate(divide="ignore", invalid="ignore"):
        information = np.nansum(joint * np.log(joint / (by_unit[:, None] * by_label)))
        entropy = -np.nansum(by_label * np.log(by_label))
    return {
        "label_purity": float(joint.max(1).sum()),
        "cluster_purity": float(joint.max(0).sum()),
        "pnmi": float(information / entropy) if entropy > 0 else 0.0,
    }


def word_labels(clips: Clips, index: int, frames: int, config: Wav2Vec2Config, known: dict[str, int]) -> np.ndarray:
    """The word at the middle of each frame, a number out of `known`, which grows; -1 for none."""
    utterance = clips.utterance(index)
    middle_ms = (np.arange(frames) * config.hop + config.receptive_field / 2) * 1000 / SAMPLE_RATE
    labels = np.full(frames, -1)
    for word, (start, end) in zip(utterance.words, utterance.spans_ms, strict=True):
        labels[(middle_ms >= start) & (middle_ms < end)] = known.setdefault(word.casefold(), len(known))
    return labels


def unit_quality(clips: Clips, encode: Compute, config: Wav2Vec2Config) -> dict[str, float]:
    """`quality` of the units of a split against its words; nothing if no frame lies in a word.

    Args:
        clips: the split.
        encode: gives the units of clips, one a frame of `config`.
        config: the encoder whose frames the units are.
    """
    units, labels = [np.zeros(0, np.int32)], [np.zeros(0, np.int32)]
    known: dict[str, int] = {}
    for index, found in compute_clips(_with_words(clips, config), in_chunks(encode, config)):
        words = word_labels(clips, index, len(found), config, known)
        units.append(found[words >= 0])
        labels.append(words[words >= 0])
    counts = joint_counts(np.concatenate(units), np.concatenate(labels))
    return quality(counts) if counts.size else {}


def _with_words(clips: Clips, config: Wav2Vec2Config) -> Iterator[tuple[int, Float[np.ndarray, " R"]]]:
    """The clips that have words and at least one frame, with their indices."""
    for index, audio in clips.usable():
        try:
            has_words = bool(clips.utterance(index).words)
        except SpiritError:
            continue
        if has_words and audio.size >= config.receptive_field:
            yield index, audio
