"""Speak units: write a WAV or FLAC file for each stretch of them.

    python -m spirit_jax.decode --checkpoint DIR --input UNITS --output DIR [--speaker ex01] [--format flac]

UNITS is a string of units ("[St71][Pi39][Hu99]..."), a text file with one such string a line (NAME, a tab and the string to name
the audio), or a directory of unit records as `python -m spirit_jax.encode` writes it.
"""

import dataclasses
import pathlib
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import numpy as np
import tqdm

from spirit_jax import config
from spirit_jax.audio import AudioError, save_audio
from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, find
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.data.records import METADATA, RecordError, RecordSource, read_metadata
from spirit_jax.speech import load_part
from spirit_jax.units import SpeechUnits, UnitError

PROG = "python -m spirit_jax.decode"


@dataclasses.dataclass(frozen=True)
class DecodeConfig:
    """Which units to speak, and how."""

    checkpoint: str
    """Checkpoint directory with a vocoder under `speech_tokenizer/`."""
    input: str
    """A unit string, a text file of them (a line each, or NAME, tab, string), or a directory of unit records."""
    output: str
    """Directory for the audio files, one for each item, named after it."""
    variant: Literal["auto", "base", "expressive"] = "auto"
    """Which vocoder; auto: the one that is there, and of two the expressive one if the first item has pitch units."""
    speaker: int | str = 2
    """Voice: a row of the vocoder's speaker table, or a name."""
    style: int | str | None = None
    """Style of everything: a row or a name (base), or a style unit (expressive); null: the default, or that of the units."""
    predict_durations: bool | None = None
    """Whether the vocoder says how long each unit lasts; null: for strings, not for records, whose units are frames."""
    format: Literal["wav", "flac"] = "wav"
    """Format of the files, 16 bits."""
    split: str | None = None
    """Which split of a directory of records; null: all."""
    batch_size: int = 8
    """Items that are spoken together."""
    overwrite: bool = False
    """Replace files that exist; otherwise one that exists stops the job before it starts."""

    def __post_init__(self):
        if self.batch_size < 1:
            raise ValueError(f"batch_size must be at least 1, found {self.batch_size}")


class DecodeError(SpiritError):
    """An input that cannot be used; the message names it."""


@dataclasses.dataclass(frozen=True)
class Inputs:
    """Named items to speak: `names[i]` goes with `items[i]`, a unit string or a place in the records."""

    names: Sequence[str]
    items: Sequence[Any]
    read: Callable[[Any], SpeechUnits]
    are_frames: bool

    def have_pitch(self) -> bool:
        """Whether the first item has pitch units."""
        try:
            return self.read(self.items[0]).pitch is not None
        except (UnitError, RecordError):
            return False  # reported when its turn comes


def open_inputs(source: str, split: str | None = None) -> Inputs:
    """What `--input` means. Units are read one by one, later.

    Raises:
        DecodeError, RecordError, UnitError: nothing there, or not what it should be.
    """
    if not source.strip():
        raise DecodeError("--input is empty: give a unit string ([Hu1]...), a file or a directory of unit records")
    path = pathlib.Path(source)
    if source.lstrip().startswith("["):
        SpeechUnits.from_string(source)  # refused here, as an argument
        return Inputs(["units"], [source], SpeechUnits.from_string, False)
    if path.is_dir():
        sources = [RecordSource(path, name) for name in ([split] if split else sorted(read_metadata(path)["splits"]))]
        places = [(records, row) for records in sources for row in range(len(records))]
        if not places:
            raise DecodeError(f"{source}: no records in it")
        names = [_file_name(records[row].id) for records, row in places]
        return Inputs(_distinct(names, source), places, _read_record, True)
    if not path.is_file():
        raise DecodeError(
            f"{source!r} is no unit string ([Hu1]...), no file and no directory of unit records ({METADATA})"
        )
    try:
        lines = [line for line in path.read_text().splitlines() if line.strip()]
    except UnicodeDecodeError as error:
        raise DecodeError(f"{source}: not a text file of unit strings ({error})") from error
    if not lines:
        raise DecodeError(f"{source}: no units in it")
    named = [line.rpartition("\t") for line in lines]
    names = [_file_name(name) if tab else f"{path.stem}-{i:05d}" for i, (name, tab, _) in enumerate(named)]
    return Inputs(_distinct(names, source), [string for *_, string in named], SpeechUnits.from_string, False)


def _read_record(place: tuple[RecordSource, int]) -> SpeechUnits:
    records, row = place
    record = records[row]
    if record.units is None:
        raise RecordError(f"record {record.id!r} is text: it has no units")
    return record.units


def _file_name(name: str) -> str:
    """A name that stays within the output directory."""
    return re.sub(r"[^\w.+=-]+", "_", name.strip()).lstrip(".") or "_"


def _distinct(names: list[str], source: str) -> list[str]:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise DecodeError(f"{source}: two items would be written as {name!r}")
        seen.add(name)
    return names


def open_vocoder(checkpoint: str, variant: str, expressive: bool) -> Any:
    """The vocoder part asked for; "auto" takes what is there, `expressive` choosing between two.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    if variant != "auto":
        return load_part(checkpoint, f"vocoder_{variant}")
    order = ("expressive", "base") if expressive else ("base", "expressive")
    for name in order:
        try:
            find(checkpoint, f"{SPEECH_TOKENIZER}/vocoder_{name}")
        except CheckpointError:
            continue
        return load_part(checkpoint, f"vocoder_{name}")
    raise CheckpointError(f"{checkpoint}: no vocoder under {SPEECH_TOKENIZER}/ (vocoder_base or vocoder_expressive)")


def speak(vocoder: Any, batch: Sequence[SpeechUnits], **options: Any) -> Iterator[np.ndarray | UnitError]:
    """The audio of each item, or why it has none; vocoders that take batches get one.

    Raises:
        ValueError: no such speaker or style.
    """
    if len(batch) > 1 and hasattr(vocoder, "decode_batch"):
        try:
            together = vocoder.decode_batch(batch, **options)
        except UnitError:
            pass  # one item is bad: speak them one by one
        else:
            yield from together
            return
    for units in batch:
        try:
            yield vocoder.decode(units, **options)
        except UnitError as error:
            yield error


def decode(cfg: DecodeConfig, vocoder: Any, inputs: Inputs) -> tuple[int, float, list[str]]:
    """Write the audio of every item.

    Returns:
        `(files, seconds, problems)`: how many were written, their length, and a line for each item that could not be.

    Raises:
        ValueError: no such speaker or style.
    """
    output = pathlib.Path(cfg.output)
    output.mkdir(parents=True, exist_ok=True)
    predict = not inputs.are_frames if cfg.predict_durations is None else cfg.predict_durations
    options = {"speaker": cfg.speaker, "style": cfg.style, "predict_durations": predict}
    files, samples, problems = 0, 0, []
    with tqdm.tqdm(total=len(inputs.names), unit="clip", disable=None) as progress:
        for start in range(0, len(inputs.names), cfg.batch_size):
            read: list[tuple[str, SpeechUnits]] = []
            for name, item in list(zip(inputs.names, inputs.items, strict=True))[start : start + cfg.batch_size]:
                try:
                    read.append((name, inputs.read(item)))
                except (UnitError, RecordError) as error:
                    problems.append(f"{name}: {error}")
            for (name, _), audio in zip(read, speak(vocoder, [units for _, units in read], **options), strict=True):
                if isinstance(audio, UnitError):
                    problems.append(f"{name}: {audio}")
                    continue
                save_audio(output / f"{name}.{cfg.format}", audio, SAMPLE_RATE)
                files, samples = files + 1, samples + audio.size
            progress.update(min(cfg.batch_size, len(inputs.names) - start))
    return files, samples / SAMPLE_RATE, problems


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: exit code 2 for a bad argument, 1 for a failed job."""
    cfg = config.parse(DecodeConfig, arguments, PROG, __doc__)
    try:
        inputs = open_inputs(cfg.input, cfg.split)
        taken = [name for name in inputs.names if (pathlib.Path(cfg.output) / f"{name}.{cfg.format}").exists()]
        if taken and not cfg.overwrite:
            path = pathlib.Path(cfg.output) / f"{taken[0]}.{cfg.format}"
            raise DecodeError(
                f"{path} exists ({len(taken)} of {len(inputs.names)} files do); say --overwrite true to replace"
            )
        vocoder = open_vocoder(cfg.checkpoint, cfg.variant, inputs.have_pitch())
    except (DecodeError, RecordError, UnitError, CheckpointError) as error:
        config.fail(PROG, error, config.BAD_ARGUMENT)
    began = time.monotonic()
    try:
        files, seconds, problems = decode(cfg, vocoder, inputs)
    except (OSError, AudioError) as error:
        config.fail(PROG, error, config.FAILED_JOB)
    except ValueError as error:
        config.fail(PROG, error, config.BAD_ARGUMENT)
    for problem in problems:
        print(f"{PROG}: {problem}", file=sys.stderr)
    elapsed = time.monotonic() - began
    print(f"{files} files, {seconds:.1f} s of audio in {elapsed:.1f} s, in {cfg.output}")
    if problems:
        config.fail(PROG, f"{len(problems)} of {len(inputs.names)} items were not spoken", config.FAILED_JOB)


if __name__ == "__main__":
    main()
