"""Speech recognition behind a small protocol: transcripts for alignment, word error rates for evaluation.

Recognizers are optional packages with weights of their own; none is imported before it is asked for.

    recognizer = open_recognizer("moonshine")
    transcript, *_ = recognizer.transcribe([audio])
"""

import os
import pathlib
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError


class RecognizerError(SpiritError):
    """A recognizer that is unknown, not installed, or whose weights cannot be read; the message says what to do."""


class Recognizer(Protocol):
    """Turns speech into text."""

    name: str
    """Name and version of the model, for result files."""

    def transcribe(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[str]:
        """One transcript a clip, in their order; an empty string where nothing was heard.

        Args:
            clips: float32 [R] in [-1, 1] at 16 kHz, of any lengths.
        """
        ...


class Moonshine:
    """The English model inside the `moonshine-voice` wheel: no download, faster than real time on two CPU cores."""

    def __init__(self, model: str | None = None):
        """
        Args:
            model: a directory of other Moonshine weights; None uses those of the wheel.

        Raises:
            RecognizerError: the package or its model is not installed.
        """
        try:
            import moonshine_voice
            from moonshine_voice.transcriber import Transcriber
        except ImportError as error:
            raise RecognizerError(
                "recognizer moonshine is not installed; run: pip install 'spirit_jax[asr]'"
            ) from error
        directory = pathlib.Path(model) if model else pathlib.Path(moonshine_voice.get_model_path("tiny-en"))
        if not directory.is_dir():
            raise RecognizerError(
                f"{directory}: no Moonshine model there; moonshine-voice==0.0.48 is the wheel that has one"
            )
        self._transcriber = Transcriber(str(directory), moonshine_voice.ModelArch.TINY)
        self.name = f"moonshine-voice {_version('moonshine-voice')} {directory.name}"

    def transcribe(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[str]:
        """As `Recognizer.transcribe`; clips are transcribed one after the other."""
        return [" ".join(line.text.strip() for line in self._lines(clip)).strip() for clip in clips]

    def _lines(self, clip: np.ndarray):
        if not clip.size:
            return ()
        return self._transcriber.transcribe_without_streaming(np.asarray(clip, np.float32).tolist(), SAMPLE_RATE).lines


class Whisper:
    """Whisper from a local directory in the layout of faster-whisper (CTranslate2) or of transformers."""

    def __init__(self, model: str | None = None, language: str | None = None):
        """
        Args:
            model: the directory of the weights.
            language: a code such as `en`; None lets the model detect it.

        Raises:
            RecognizerError: no such directory, or the package that reads it is not installed.
        """
        if model is None or not os.path.isdir(model):
            raise RecognizerError(
                f"recognizer whisper needs a local directory of weights, found {model!r}; write whisper:DIR"
            )
        faster = (pathlib.Path(model) / "model.bin").is_file()
        try:
            self._transcribe = self._faster(model, language) if faster else self._transformers(model, language)
        except ImportError as error:
            package = "faster-whisper" if faster else "transformers and torch"
            raise RecognizerError(f"{model} is read by {package}, which is not installed ({error})") from error
        except (OSError, ValueError, RuntimeError) as error:
            raise RecognizerError(f"{model}: not a Whisper model that can be read ({error})") from error
        self.name = f"whisper {pathlib.Path(model).name}"

    @staticmethod
    def _faster(model: str, language: str | None) -> Callable[[np.ndarray], str]:
        import faster_whisper

        network = faster_whisper.WhisperModel(model, local_files_only=True)

        def transcribe(clip: np.ndarray) -> str:
            segments, _ = network.transcribe(clip, language=language, beam_size=5)
            return " ".join(segment.text.strip() for segment in segments)

        return transcribe

    @staticmethod
    def _transformers(model: str, language: str | None) -> Callable[[np.ndarray], str]:
        import transformers

        recognize = transformers.pipeline("automatic-speech-recognition", model=model, chunk_length_s=30)
        options = {} if language is None else {"generate_kwargs": {"language": language}}

        def transcribe(clip: np.ndarray) -> str:
            result: Any = recognize({"raw": clip, "sampling_rate": SAMPLE_RATE}, **options)
            return result["text"].strip()

        return transcribe

    def transcribe(self, clips: Sequence[Float[np.ndarray, " R"]]) -> list[str]:
        """As `Recognizer.transcribe`."""
        return [self._transcribe(np.asarray(clip, np.float32)) if clip.size else "" for clip in clips]


RECOGNIZERS: dict[str, Callable[[str | None], Recognizer]] = {"moonshine": Moonshine, "whisper": Whisper}
"""Recognizers by name; each takes the directory of its weights, or None for its own."""


def open_recognizer(name: str) -> Recognizer:
    """The recognizer of a name such as `moonshine`, or `whisper:DIR` with a directory of weights.

    Raises:
        RecognizerError: an unknown name, a package that is not installed, or weights that cannot be read.
    """
    kind, _, directory = name.partition(":")
    if kind not in RECOGNIZERS:
        raise RecognizerError(f"unknown recognizer {kind!r}; choose among {', '.join(RECOGNIZERS)}, or whisper:DIR")
    return RECOGNIZERS[kind](directory or None)


def _version(package: str) -> str:
    import importlib.metadata

    return importlib.metadata.version(package)
