"""Samples during training: what the model says by now, as text and sound files and in TensorBoard."""

import dataclasses
import os
import pathlib
from typing import Literal, Protocol

import numpy as np
from jax.sharding import Mesh

from spirit_jax.audio import save_audio
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import write_file
from spirit_jax.inference.prompts import Segment
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.parallel.processes import is_primary
from spirit_jax.speech import has_vocoder, load_vocoder
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary


@dataclasses.dataclass(frozen=True)
class SamplePrompt:
    """A prompt and what should continue it."""

    prompt: str
    """Token string: `[Text]the cat`, `[Speech][Hu3]...`; what comes next is said by its last modality token."""
    output_modality: Literal["text", "speech", "any"] = "any"
    """What may be generated."""


@dataclasses.dataclass(frozen=True)
class SampleConfig:
    """What is generated during training, into {run}/samples/STEP/."""

    prompts: list[SamplePrompt] = dataclasses.field(default_factory=list)
    """Prompts; none: no samples."""
    max_new_tokens: int = 200
    """Tokens that continue each prompt at most."""
    temperature: float = 0.8
    """Of drawing tokens; 0 takes the most likely ones. The paper's generations use 0.8."""
    top_p: float = 0.95
    """Tokens are drawn from the most likely ones that have this probability together; the paper's is 0.95."""

    def __post_init__(self) -> None:
        if self.max_new_tokens < 1 or self.temperature < 0 or not 0 < self.top_p <= 1:
            raise ValueError("sample: needs max_new_tokens of 1 or more, temperature of 0 or more, top_p in (0, 1]")


class _Log(Protocol):
    def text(self, step: int, name: str, text: str) -> None: ...
    def audio(self, step: int, name: str, audio: np.ndarray, sample_rate: int) -> None: ...


class Sampler:
    """Writes the samples of a step. The speech of a run without a vocoder is kept as units."""

    def __init__(
        self,
        config: SampleConfig,
        model: LlamaConfig,
        vocabulary: Vocabulary,
        run_directory: str | os.PathLike,
        mesh: Mesh,
        log: _Log,
        seed: int,
    ):
        self._config, self._model, self._vocabulary, self._mesh = config, model, vocabulary, mesh
        self._run, self._log, self._seed = pathlib.Path(run_directory), log, seed
        variant = vocabulary.variant
        has_voice = is_primary() and has_vocoder(run_directory, variant)
        self._vocoder = load_vocoder(run_directory, variant) if has_voice else None

    def __call__(self, params: Params, step: int) -> None:
        """Generate from every prompt and write `samples/STEP/N.txt`, and `N.wav` where speech was generated."""
        if not self._config.prompts:
            return
        model = SpiritLM(params, self._model, self._vocabulary, None, self._mesh)  # answers in units, spoken below
        directory = self._run / "samples" / str(step)
        for number, wanted in enumerate(self._config.prompts):
            segments = model.generate(
                wanted.prompt,
                wanted.output_modality,
                self._config.max_new_tokens,
                temperature=self._config.temperature,
                top_p=self._config.top_p,
                seed=self._seed,
            )
            if not is_primary():
                continue
            lines = [wanted.prompt]
            for segment in segments:
                lines.append(f"[Text]{segment.content}" if segment.kind == "text" else f"[Speech]{segment.tokens}")
            try:
                audio = self._speak(segments)
            except ValueError as error:  # a model that is not trained yet says things that no voice can
                lines.append(f"(cannot be spoken: {error})")
                audio = None
            write_file(directory / f"{number}.txt", "\n".join(lines) + "\n")
            self._log.text(step, f"sample/{number}", "\n\n".join(lines))
            if audio is not None:
                save_audio(directory / f"{number}.wav", audio)
                self._log.audio(step, f"sample/{number}", audio, SAMPLE_RATE)

    def _speak(self, segments: list[Segment]) -> np.ndarray | None:
        """The speech among the segments as one clip, None where there is none."""
        if self._vocoder is None:
            return None
        units = [SpeechUnits.from_string(segment.tokens) for segment in segments if segment.kind == "speech"]
        spoken = [self._vocoder.decode(each) for each in units]
        return np.concatenate(spoken) if spoken else None
