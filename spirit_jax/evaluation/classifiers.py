"""Sentiment of speech and of text, behind two small protocols.

The classifiers of the paper were never released, so every figure depends on a substitute, which the report names. A
directory in Hugging Face's layout is read for either; small built-in ones need no download.
"""

import dataclasses
import pathlib
import re
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from spirit_jax.checkpoint import unflatten
from spirit_jax.convert.components import style
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.hf_weights import load_weights
from spirit_jax.convert.table import to_jax
from spirit_jax.core.files import read_json
from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.evaluation.stsp import EMOTIONS, Sentiment
from spirit_jax.speech.f0 import F0_HOP, f0

_LABELS: Mapping[str, Sentiment] = {
    **EMOTIONS,
    "positive": "positive",
    "pos": "positive",
    "hap": "positive",
    "surprised": "positive",
    "negative": "negative",
    "neg": "negative",
    "ang": "negative",
    "anger": "negative",
    "disgust": "negative",
    "fear": "negative",
    "fearful": "negative",
    "neu": "neutral",
    "calm": "neutral",
}
"""Labels of published classifiers."""


class SpeechClassifier(Protocol):
    """Tells the sentiment of recordings."""

    name: str
    """Description of the classifier in the report."""

    def classify(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Sentiment]:
        """One sentiment a clip, float32 [R] at 16 kHz."""
        ...


class TextClassifier(Protocol):
    """Tells the sentiment of texts."""

    name: str
    """Description of the classifier in the report."""

    def classify(self, texts: Sequence[str]) -> list[Sentiment]:
        """One sentiment a text."""
        ...


def sentiment_of(label: str) -> Sentiment | None:
    """The sentiment of a classifier's label, whatever its case; None for an unknown label."""
    return _LABELS.get(label.strip().lower())


class ToneClassifier:
    """Logistic regression on pitch, its movement, voicing and length of a clip, fitted on labelled clips."""

    def __init__(self, clips: Sequence[Float[np.ndarray, " R"]], sentiments: Sequence[str]):
        """Fit on clips.

        Raises:
            BenchmarkError: there are fewer than two sentiments to tell apart.
        """
        from sklearn.linear_model import LogisticRegression
        from sklearn.pipeline import make_pipeline
        from sklearn.preprocessing import StandardScaler

        if len(set(sentiments)) < 2:
            raise BenchmarkError("the tone classifier needs labelled clips of at least two sentiments in train.jsonl")
        self._model: Any = make_pipeline(StandardScaler(), LogisticRegression(max_iter=1000))
        self._model.fit(np.stack([tone_features(clip) for clip in clips]), list(sentiments))
        self.name = f"built-in tone classifier fitted on {len(clips)} clips"

    def classify(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Sentiment]:
        """As `SpeechClassifier.classify`."""
        return list(self._model.predict(np.stack([tone_features(clip) for clip in clips]))) if len(clips) else []


def tone_features(clip: Float[np.ndarray, " R"]) -> Float[np.ndarray, " 5"]:
    """Median and spread of log F0, its mean change from frame to frame, share of voiced frames, changes of voicing."""
    pitch, voiced = f0(clip, max(clip.size // F0_HOP, 1))
    if voiced.sum() < 2:
        return np.zeros(5, np.float32)
    octaves = np.log2(pitch[voiced])
    both = voiced[1:] & voiced[:-1]
    change = np.abs(np.diff(np.log2(np.where(voiced, pitch, 1))))[both]
    return np.array(
        [
            np.median(octaves),
            np.subtract(*np.quantile(octaves, [0.9, 0.1])),
            change.mean() if change.size else 0.0,
            voiced.mean(),
            np.mean(voiced[1:] != voiced[:-1]),
        ],
        np.float32,
    )


class LabelClassifier:
    """A Wav2Vec2ForSequenceClassification directory, run on this package's own Flax network.

    Attributes:
        labels: its labels, in the order of their scores.
        name: what the report says of it.
    """

    def __init__(self, directory: str):
        """
        Raises:
            BenchmarkError: the directory cannot be read, or a feature of it is not implemented; names it.
        """
        folder = pathlib.Path(directory).expanduser()
        config = read_json(folder / "config.json", BenchmarkError)
        labels = config.get("id2label") if isinstance(config, dict) else None
        if not isinstance(labels, dict):
            raise BenchmarkError(f"{folder}/config.json: no id2label; expected a Wav2Vec2ForSequenceClassification")
        if config.get("use_weighted_layer_sum"):
            raise BenchmarkError(f"{folder}/config.json: use_weighted_layer_sum is not supported")
        if (folder / "preprocessor_config.json").is_file():
            features = read_json(folder / "preprocessor_config.json", BenchmarkError)
            if isinstance(features, dict) and features.get("do_normalize") is False:
                raise BenchmarkError(f"{folder}/preprocessor_config.json: do_normalize false is not supported")
        self.labels = [str(labels.get(str(index))) for index in range(len(labels))]
        try:
            part = style.part_config(config)
            tensors, _ = load_weights(folder)
            arrays, _ = to_jax(style.rows(part), tensors, style.shapes(part), str(folder))
        except ConversionError as error:
            raise BenchmarkError(error.message, error.details) from error
        self._params = unflatten({path: np.asarray(array, np.float32) for path, array in arrays.items()})
        self._network = style.classifier(part)
        self.name = f"Wav2Vec2ForSequenceClassification {folder.name}"

    def logits(self, clip: Float[np.ndarray, " R"]) -> Float[np.ndarray, " labels"]:
        """Scores of the labels of one clip: the mean over all its frames, as Hugging Face pools."""
        frames = max(clip.size // 320, 1)  # at least as many as there are, so that one window holds all
        network = dataclasses.replace(self._network, window=frames)
        logits_bkl, _ = _classify(network, self._params, jnp.asarray(clip, jnp.float32)[None])
        return np.asarray(logits_bkl)[0, 0]

    def label(self, clip: Float[np.ndarray, " R"]) -> str:
        """The label of the highest score of one clip."""
        return self.labels[int(np.argmax(self.logits(clip)))]


class HuggingFaceSpeechClassifier:
    """The sentiments of the labels of a Wav2Vec2ForSequenceClassification directory."""

    def __init__(self, directory: str):
        """
        Raises:
            BenchmarkError: as `LabelClassifier`, or a label has no sentiment; names it.
        """
        self._classifier = LabelClassifier(directory)
        self.name = self._classifier.name
        self._sentiments: dict[str, Sentiment] = {}
        for label in self._classifier.labels:
            sentiment = sentiment_of(label)
            if sentiment is None:
                raise BenchmarkError(
                    f"{directory}/config.json: label {label!r} has no sentiment; known labels are {', '.join(_LABELS)}"
                )
            self._sentiments[label] = sentiment

    def classify(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[Sentiment]:
        """As `SpeechClassifier.classify`."""
        return [self._sentiments[self._classifier.label(clip)] for clip in clips]


def _classify(network, params, audio_br):
    with jax.default_matmul_precision("float32"):
        return jax.jit(network.apply)({"params": params}, audio_br)


_POSITIVE = """good great happy love lovely nice beautiful wonderful joy glad enjoy enjoyed excellent amazing best fun
smile smiled laugh laughed proud proudly happily calm grateful thank thanks kind gentle gently sweet delicious excited
perfect pleased delighted hope warm friend celebrate won win success brilliant cheerful funny""".split()
_NEGATIVE = """bad sad angry hate hated terrible awful worst cry cried afraid fear lost lose broken hurt pain ill sick
worried tired lonely nervous badly burned stole thief dead died death kill problem wrong fail failed ugly cruel sorry
upset annoyed disappointed bored hungry never nobody swollen""".split()


class WordClassifier:
    """Counts words of two short lists: more positive than negative ones make a text positive."""

    name = f"built-in list of {len(_POSITIVE) + len(_NEGATIVE)} words"

    def classify(self, texts: Sequence[str]) -> list[Sentiment]:
        """As `TextClassifier.classify`."""
        result: list[Sentiment] = []
        for text in texts:
            words = re.findall(r"[a-z']+", text.lower())
            score = sum(word in _POSITIVE for word in words) - sum(word in _NEGATIVE for word in words)
            result.append("positive" if score > 0 else "negative" if score < 0 else "neutral")
        return result


class HuggingFaceTextClassifier:
    """A text-classification directory such as a RoBERTa's, run by transformers and PyTorch."""

    def __init__(self, directory: str):
        """
        Raises:
            BenchmarkError: transformers or torch is not installed, or the directory cannot be read.
        """
        try:
            import transformers

            self._classify: Any = transformers.pipeline("text-classification", model=directory, top_k=None)
        except ImportError as error:
            raise BenchmarkError(f"{directory} is read by transformers and torch: {error}") from error
        except (OSError, ValueError) as error:
            raise BenchmarkError(f"{directory}: not a text classifier that can be read ({error})") from error
        self.name = f"text-classification {pathlib.Path(directory).name}"

    def classify(self, texts: Sequence[str]) -> list[Sentiment]:
        """As `TextClassifier.classify`; the label of the highest score.

        Raises:
            BenchmarkError: a label has no sentiment.
        """
        result = []
        for scores in self._classify([text or " " for text in texts], truncation=True):
            label = max(scores, key=lambda score: score["score"])["label"]
            sentiment = sentiment_of(label)
            if sentiment is None:
                raise BenchmarkError(f"{self.name}: label {label!r} has no sentiment; known labels are {list(_LABELS)}")
            result.append(sentiment)
        return result


def open_text_classifier(name: str) -> TextClassifier:
    """The built-in `words`, or that of a directory.

    Raises:
        BenchmarkError: an unknown name, or a directory that cannot be used.
    """
    if name == "words":
        return WordClassifier()
    if not pathlib.Path(name).is_dir():
        raise BenchmarkError(f"--text-classifier {name}: expected words, or a Hugging Face directory")
    return HuggingFaceTextClassifier(name)


def open_speech_classifier(
    name: str, clips: Sequence[Float[np.ndarray, " R"]], sentiments: Sequence[str]
) -> SpeechClassifier:
    """The built-in `tone`, fitted on labelled clips, or that of a directory.

    Raises:
        BenchmarkError: an unknown name, or a directory or clips that cannot be used.
    """
    if name == "tone":
        return ToneClassifier(clips, sentiments)
    if not pathlib.Path(name).is_dir():
        raise BenchmarkError(f"--speech-classifier {name}: expected tone, or a Hugging Face directory")
    return HuggingFaceSpeechClassifier(name)
