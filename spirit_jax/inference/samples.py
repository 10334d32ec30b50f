"""Samples during training: what the model generates so far, as text and sound files and in TensorBoard."""

import dataclasses
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
from spirit_jax.inference.prompts import Modality, Segment
from spirit_jax.inference.sampling import SamplingParams
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.parallel.processes import is_primary
from spirit_jax.speech import has_vocoder, load_vocoder
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class SamplePrompt:
    """A prompt, and what may continue it."""

    prompt: str
    """Token string: `[Text]the cat`, `[Speech][Hu3]...`. Its last modality token says what comes next."""
    output_modality: Modality = "any"
    """What may be generated."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What is generated during training, into {run}/samples/STEP/."""

    prompts: list[SamplePrompt] = dataclasses.field(default_factory=list)
    """Prompts; without any, there are no samples."""
    max_new_tokens: int = 200
    """Tokens that continue each prompt at most."""
    temperature: float = 0.8
    """Temperature of sampling; 0 takes the most likely tokens. The paper's generations use 0.8."""
    top_p: float = 0.95
    """Tokens are drawn from the most likely ones that together have this probability; the paper uses 0.95."""

    def __post_init__(self) -> None:
        self.sampling(seed=0)

    def sampling(self, seed: int) -> SamplingParams:
        """Return the decoding options of all samples.

        Raises:
            SamplingError: a value is out of range.
        """
        return SamplingParams(
            temperature=self.temperature, top_p=self.top_p, max_new_tokens=self.max_new_tokens, seed=seed
        )


class SampleLog(Protocol):
    """Where samples are shown beside files: the metrics of a run."""

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
