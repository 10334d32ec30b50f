"""The paper's figures (arXiv 2402.05755 v2; docs/paper.md), to set ours beside them.

They hold for the released 7 B models and the paper's data and classifiers. Ours are comparable where the data are the
same and the report names no substitute.
"""

from collections.abc import Mapping

Row = Mapping[str, float]

_MODELS = ("Base", "Expressive", "Whisper + Llama 2")
_WITH_PAIRS = "Base + ASR + TTS"  # trained on transcribed speech too


def _row(*values: float) -> Row:
    return dict(zip(_MODELS, values, strict=False))


PAPER: Mapping[tuple[str, str, str], Row] = {
    ("swuggy", "T", "accuracy"): _row(80.3, 75.8, 84.1),
    ("swuggy", "S", "accuracy"): _row(69.0, 65.0, 79.2),
    ("sblimp", "T", "accuracy"): _row(73.3, 73.6, 72.8),
    ("sblimp", "S", "accuracy"): _row(58.3, 54.2, 71.6),
    ("tstorycloze", "T", "accuracy"): _row(98.0, 97.9, 98.5),
    ("tstorycloze", "S", "accuracy"): _row(82.9, 75.4, 94.8),
    ("tstorycloze", "T>S", "accuracy"): _row(72.7, 61.6, 94.8),
    ("tstorycloze", "S>T", "accuracy"): _row(88.6, 73.2, 94.8),
    ("storycloze", "T", "accuracy"): _row(79.4, 78.9, 81.9),
    ("storycloze", "S", "accuracy"): _row(61.0, 56.9, 75.7),
    ("storycloze", "T>S", "accuracy"): _row(59.5, 54.6, 75.7),
    ("storycloze", "S>T", "accuracy"): _row(64.6, 58.8, 75.7),
    ("mmlu", "T", "accuracy"): _row(36.9, 33.3, 46.2),
    ("asr", "S>T", "WER"): {**_row(21.9, 37.9), _WITH_PAIRS: 6.0},
    ("tts", "T>S", "CER"): {**_row(45.5, 52.0), _WITH_PAIRS: 6.7},
    ("intent", "S>T", "exact match"): {**_row(71.9, 66.2), _WITH_PAIRS: 75.8},
    ("stsp", "T>T", "accuracy"): _row(65.0, 63.0),
    ("stsp", "T>S", "accuracy"): _row(33.0, 38.0),
    ("stsp", "S>S", "accuracy"): _row(33.0, 54.0),
    ("stsp", "S>T", "accuracy"): _row(34.0, 36.0),
    ("resynthesis", "S>S", "WER"): _row(23.4, 23.2),
    ("resynthesis", "S>S", "style accuracy"): _row(20.4, 41.4),
    ("resynthesis", "S>S", "F0 frame error"): _row(40.0, 16.0),
}
"""Figures in percent by task, direction and measure. Accuracies of likelihood tasks are the normalized ones, WER and
CER are those of LibriSpeech test-clean with 10 shots, STSP is zero-shot."""
