"""Continue prompts of text and speech.

    python -m spirit_jax.generate --checkpoint DIR --input text:"Once upon a time" --output-modality speech --output DIR
    python -m spirit_jax.generate --checkpoint DIR --input speech:question.flac --input text:" The answer is" --output DIR

Each `--input` is the next segment of one prompt: `text:...`, `speech:FILE` or `units:[Hu1][Hu2]...`. DIR gets the text and the
WAV files of what was generated, and `results.jsonl`, a line a prompt.
"""

import dataclasses
import json
import pathlib
import sys
from collections.abc import Sequence
from typing import Literal

import numpy as np

from spirit_jax import config

PROG = "python -m spirit_jax.generate"


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """One prompt, or a file of prompts, and how to continue it."""

    checkpoint: str
    """Converted checkpoint, or a step of a training run (RUN/checkpoints/STEP)."""
    output: str
    """Directory for the results; made if missing."""
    input: list[str] = dataclasses.field(default_factory=list)
    """Segments of the prompt in order: text:..., speech:FILE or units:[Hu1][Hu2]..."""
    output_modality: Literal["text", "speech", "any"] = "any"
    """What comes out; any: whatever the model says."""
    max_new_tokens: int = 200
    """Tokens to generate at most; a second of speech takes 20 to 40."""
    temperature: float = 0.0
    """0 takes the most likely token each time; 0.8 is the paper's for open-ended answers."""
    top_k: int | None = None
    """Draw from this many tokens; null is 50, 0 is all."""
    top_p: float = 1.0
    """Draw from the fewest tokens that have this probability together."""
    seed: int = 0
    """The same seed gives the same answer."""
    speaker: int = 2
    """Voice of the vocoder."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation; null: the checkpoint's."""


class InputError(ValueError):
    """An `--input` that is not of the form KIND:CONTENT."""


def segment_of(text: str):
    """The segment that an `--input` describes."""
    from spirit_jax import Segment

    makers = {"text": Segment.text, "speech": Segment.speech, "units": Segment.speech}
    kind, separator, content = text.partition(":")
    if not separator or kind not in makers:
        raise InputError(f"--input {text[:40]!r}: expected text:..., speech:FILE or units:[Hu1][Hu2]...")
    if kind == "speech":
        return makers[kind](pathlib.Path(content))
    return makers[kind](content)


def main(arguments: Sequence[str] | None = None) -> None:
    given = list(sys.argv[1:] if arguments is None else arguments)
    settings = config.parse(GenerateConfig, [_option(word) for word in given], PROG, __doc__)
    if not settings.input:
        config.fail(PROG, "no prompt: give --input text:... or --input speech:FILE", config.BAD_ARGUMENT)
    try:
        prompt = [segment_of(text) for text in settings.input]
    except (InputError, ValueError) as error:
        config.fail(PROG, error, config.BAD_ARGUMENT)
    from spirit_jax import SpiritLM

    try:
        model = SpiritLM.from_pretrained(settings.checkpoint, dtype=settings.dtype)
        segments, string = model.generate(
            prompt,
            settings.output_modality,
            settings.max_new_tokens,
            temperature=settings.temperature,
            top_k=settings.top_k,
            top_p=settings.top_p,
            seed=settings.seed,
            speaker=settings.speaker,
            return_prompt=True,
        )
        write_result(pathlib.Path(settings.output), "output", string, segments)
    except (ValueError, OSError) as error:
        config.fail(PROG, " ".join(str(error).split()), config.FAILED_JOB)


def write_result(directory: pathlib.Path, name: str, prompt: str, segments) -> None:
    """Write the sound of an answer as NAME-1.wav, NAME-2.wav, ..., and append a line to results.jsonl."""
    from spirit_jax.audio import save_audio

    directory.mkdir(parents=True, exist_ok=True)
    outputs = []
    for index, segment in enumerate(segments, 1):
        if segment.kind == "text":
            outputs.append({"text": segment.content})
            print(segment.content)
            continue
        outputs.append({"speech": None, "units": segment.tokens})
        if isinstance(segment.content, np.ndarray) and segment.content.size:
            path = directory / f"{name}-{index}.wav"
            save_audio(path, segment.content)
            outputs[-1]["speech"] = path.name
            print(path)
    with open(directory / "results.jsonl", "a") as file:
        file.write(json.dumps({"id": name, "prompt": prompt, "outputs": outputs}, ensure_ascii=False) + "\n")


def _option(word: str) -> str:
    """An option as the parser knows it: `--output-modality` as well as `--output_modality`, and every `--input` adds one."""
    if not word.startswith("--"):
        return word
    name, separator, value = word[2:].partition("=")
    name = name.replace("-", "_")
    return f"--{name}{'+' if name == 'input' else ''}{separator}{value}"


if __name__ == "__main__":
    main()
