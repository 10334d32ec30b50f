"""Samples during training: what the model generates, as text and sound files and in TensorBoard."""

import os
import pathlib
from typing import Protocol

import numpy as np
from jax.sharding import Mesh
from jaxtyping import Float

from spirit_jax.audio import save_audio
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import write_file
from spirit_jax.inference.prompts import Segment
from spirit_jax.inference.sample_config import SampleConfig
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.parallel.processes import is_primary
from spirit_jax.speech import has_vocoder, load_vocoder
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary


class SampleLog(Protocol):
    """A place that shows samples beside files: the metrics of a run."""

    def text(self, step: int, name: str, text: str) -> None:
        """Show a text."""
        ...

    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate: int) -> None:
        """Show a clip, float32 [R]."""
        ...


class SampleWriter:
    """Writes the samples of a training step. In a run without a vocoder, speech is written as units."""

    def __init__(
        self,
        config: SampleConfig,
        model: LlamaConfig,
        vocabulary: Vocabulary,
        run_directory: str | os.PathLike,
        mesh: Mesh,
        log: SampleLog,
        seed: int,
    ):
        self._config, self._model, self._vocabulary, self._mesh = config, model, vocabulary, mesh
        self._run, self._log, self._sampling = pathlib.Path(run_directory), log, config.sampling(seed)
        speaks = is_primary() and has_vocoder(run_directory, vocabulary.variant)
        self._vocoder = load_vocoder(run_directory, vocabulary.variant) if speaks else None

    def __call__(self, params: Params, step: int) -> None:
        """Generate from every prompt and write `samples/STEP/N.txt`, and `N.wav` if there is speech."""
        if not self._config.prompts:
            return
        model = SpiritLM(params, self._model, self._vocabulary, None, self._mesh)  # answers in units, spoken below
        directory = self._run / "samples" / str(step)
        for number, wanted in enumerate(self._config.prompts):
            segments = model.generate(wanted.prompt, wanted.output_modality, self._sampling)
            if not is_primary():
                continue
            lines = [wanted.prompt]
            for segment in segments:
                lines.append(f"[Text]{segment.content}" if segment.kind == "text" else f"[Speech]{segment.tokens}")
            try:
                audio = self._speak(segments)
            except SpiritError as error:  # units of a model that is hardly trained may be unspeakable
                lines.append(f"(cannot be spoken: {error})")
                audio = None
            write_file(directory / f"{number}.txt", "\n".join(lines) + "\n")
            self._log.text(step, f"sample/{number}", "\n\n".join(lines))
            if audio is not None:
                save_audio(directory / f"{number}.wav", audio)
                self._log.audio(step, f"sample/{number}", audio, SAMPLE_RATE)

    def _speak(self, segments: list[Segment]) -> Float[np.ndarray, " R"] | None:
        """Return the speech among the segments as one clip, or None if there is none."""
        if self._vocoder is None:
            return None
        spoken = [
            self._vocoder.decode(SpeechUnits.from_string(segment.tokens or ""))
            for segment in segments
            if segment.kind == "speech"
        ]
        return np.concatenate(spoken) if spoken else None
