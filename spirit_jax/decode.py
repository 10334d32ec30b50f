"""Speak units: write an audio file for each unit string or unit record.

    python -m spirit_jax.decode --checkpoint DIR --input UNITS --output DIR [--speaker ex01] [--format flac]

UNITS is a unit string ("[St71][Pi39][Hu99]..."), a text file with one unit string a line, each optionally after a name
and a tab, or a directory of unit records, as `python -m spirit_jax.encode` writes it.
"""

import dataclasses
import os
import pathlib
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spirit_jax import config
from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, local_directory
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import JobError, SpiritError, exit_codes
from spirit_jax.core.paths import as_path, file_sizes, output_path
from spirit_jax.core.working_copy import output_directory
from spirit_jax.speech.protocols import DEFAULT_SPEAKER, Vocoder

if TYPE_CHECKING:
    import numpy as np

    from spirit_jax.data.unit_inputs import UnitInputs
    from spirit_jax.units import SpeechUnits, UnitError
    from spirit_jax.vocabulary import Variant

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.decode"


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Which units to speak, and how.

    Raises:
        ValueError: `batch_size` is less than 1.
    """

    checkpoint: str
    """Checkpoint directory with a vocoder under `speech_tokenizer/`."""
    input: str
    """A unit string, a text file of them (one a line, or NAME, tab, string), or a directory of unit records."""
    output: str
    """Directory for the audio files, one for each item, named after it; also gs://BUCKET/NAME."""
    variant: Literal["auto", "base", "expressive"] = "auto"
    """Which vocoder. auto: the one that the checkpoint has; of two, the expressive one if the first item has pitch."""
    speaker: int | str = DEFAULT_SPEAKER
    """Voice: number or name of a speaker of the vocoder."""
    style: int | str | None = None
    """Style of all items: number or name (base), or style unit (expressive). null: the default, or the units' own."""
    predict_durations: bool | None = None
    """Whether the vocoder chooses the length of each unit. null: yes for strings, no for records, which hold frames."""
    format: Literal["wav", "flac"] = "wav"
    """Format of the files, 16 bits."""
    split: str | None = None
    """Which split of a directory of records. null: all splits."""
    batch_size: int = 8
    """Items that are spoken together."""
    overwrite: bool = False
    """Replace existing files. Otherwise an existing file stops the job before it starts."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")


class DecodeError(SpiritError):
    """An output that cannot be used; the message names it."""


def open_vocoder(checkpoint: str, variant: Literal["auto", "base", "expressive"], prefer: "Variant") -> Vocoder:
    """Load the vocoder of `--variant`.

    Args:
        checkpoint: a checkpoint directory.
        variant: "auto" takes the vocoder that the checkpoint has.
        prefer: what "auto" takes if there are two.

    Raises:
        CheckpointError: the vocoder is missing or damaged.
    """
    from spirit_jax.speech import has_vocoder, load_vocoder

    if variant != "auto":
        return load_vocoder(checkpoint, variant)
    for name in (prefer, "base", "expressive"):
        if has_vocoder(checkpoint, name):
            return load_vocoder(checkpoint, name)
    raise CheckpointError(f"{checkpoint}: no vocoder under {SPEECH_TOKENIZER}/ (vocoder_base or vocoder_expressive)")


@dataclasses.dataclass(frozen=True)
class DecodeSummary:
    """The result of a job."""

    files: int
    """Files that were written."""
    seconds: float
    """Length of their audio."""
    problems: list[str]
    """One line for each item that could not be spoken."""


def decode(settings: DecodeConfig, vocoder: Vocoder, inputs: "UnitInputs") -> DecodeSummary:
    """Write the audio of every item that can be spoken, with a progress bar on a terminal.

    Raises:
        VoiceError: an unknown speaker or style.
        OSError: a file cannot be written.
    """
    import tqdm

    from spirit_jax.audio import save_audio
    from spirit_jax.data.unit_record import RecordError
    from spirit_jax.units import SpeechUnits, UnitError

    output = pathlib.Path(settings.output)
    output.mkdir(parents=True, exist_ok=True)
    predict_durations = not inputs.are_frames if settings.predict_durations is None else settings.predict_durations
    files, samples, problems = 0, 0, []
    with tqdm.tqdm(total=len(inputs.items), unit="clip", disable=None) as progress:
        for start in range(0, len(inputs.items), settings.batch_size):
            items = inputs.items[start : start + settings.batch_size]
            names: list[str] = []
            batch: list[SpeechUnits] = []
            for item in items:
                try:
                    batch.append(item.read())
                    names.append(item.name)
                except (UnitError, RecordError) as error:
                    problems.append(f"{item.name}: {error}")
            for name, audio in zip(names, _speak(vocoder, batch, settings, predict_durations), strict=True):
                if isinstance(audio, UnitError):
                    problems.append(f"{name}: {audio}")
                    continue
                save_audio(output / f"{name}.{settings.format}", audio, SAMPLE_RATE)
                files, samples = files + 1, samples + audio.size
            progress.update(len(items))
    return DecodeSummary(files, samples / SAMPLE_RATE, problems)


def _speak(
    vocoder: Vocoder, batch: "Sequence[SpeechUnits]", settings: DecodeConfig, predict_durations: bool
) -> "Sequence[np.ndarray | UnitError]":
    """The audio of each item, or the reason why it has none."""
    from spirit_jax.units import UnitError

    try:
        return vocoder.decode_batch(batch, settings.speaker, settings.style, predict_durations)
    except UnitError:
        return [_speak_one(vocoder, units, settings, predict_durations) for units in batch]


def _speak_one(
    vocoder: Vocoder, units: "SpeechUnits", settings: DecodeConfig, predict_durations: bool
) -> "np.ndarray | UnitError":
    from spirit_jax.units import UnitError

    try:
        return vocoder.decode(units, settings.speaker, settings.style, predict_durations)
    except UnitError as error:
        return error


def run(settings: DecodeConfig) -> None:
    """Do the job and print a summary.

    Raises:
        SpiritError: an argument cannot be used, or (`JobError`) some items could not be spoken.
        OSError: a file cannot be written.
    """
    from spirit_jax.data.unit_inputs import open_unit_inputs

    settings = dataclasses.replace(
        settings,
        checkpoint=str(local_directory(settings.checkpoint, "--checkpoint")),
        output=output_path(settings.output, "--output"),
    )
    inputs = open_unit_inputs(settings.input, settings.split)
    if os.path.lexists(settings.output) and not os.path.isdir(settings.output):
        raise DecodeError(f"--output {settings.output}: is a file, a directory is needed")
    present = file_sizes(settings.output)
    names = [f"{item.name}.{settings.format}" for item in inputs.items]
    existing = [name for name in names if name in present]
    if existing and not settings.overwrite:
        first = as_path(settings.output) / existing[0]
        raise DecodeError(
            f"{first} exists ({len(existing)} of {len(names)} files do); pass --overwrite to replace them"
        )
    vocoder = open_vocoder(settings.checkpoint, settings.variant, "expressive" if inputs.have_pitch() else "base")
    began = time.monotonic()
    with output_directory(settings.output, "--output", lambda name: False) as output:
        summary = decode(dataclasses.replace(settings, output=str(output)), vocoder, inputs)
    elapsed = time.monotonic() - began
    print(f"{summary.files} files, {summary.seconds:.1f} s of audio in {elapsed:.1f} s, in {settings.output}")
    if summary.problems:
        raise JobError(f"{len(summary.problems)} of {len(inputs.items)} items were not spoken", summary.problems)


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line. Exit code 2 means a bad argument, 1 a failed job."""
    settings = config.parse(DecodeConfig, arguments, PROG, __doc__)
    with exit_codes(PROG):
        run(settings)


if __name__ == "__main__":
    main()
