"""Encode the speech of fine-tuning pairs and of preferences, so that training can read them.

    python -m spirit_jax.pairs --checkpoint BASE --input questions/train.jsonl --output encoded/train.jsonl

A line of the input is {"input": [...], "output": [...]}, {"turns": [...]}, or {"input": [...], "chosen": [...],
"rejected": [...]}. Every segment `speech:FILE`, relative to the input, becomes `units:[Hu1]...`; all else is copied.
The first line of the output names the speech tokenizer, and training refuses units of another one. The output appears
when it is complete.
"""

import dataclasses
import json
import pathlib
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal

from spirit_jax import config
from spirit_jax.core.errors import SpiritError, exit_codes
from spirit_jax.core.files import atomic_file
from spirit_jax.core.paths import as_path, local_path, output_path, parent_folder

if TYPE_CHECKING:
    from spirit_jax.inference.prompts import Segment

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.pairs"

_SIDES = ("input", "output", "chosen", "rejected")
_LINES = 64  # lines whose audio is encoded together


@dataclasses.dataclass(frozen=True)
class PairsConfig:
    """A file of pairs, the speech tokenizer and the file to write."""

    input: str
    """JSONL file of pairs or preferences."""
    output: str
    """JSONL file to write: SPLIT.jsonl in the directory that a source of the training config names."""
    checkpoint: str
    """Checkpoint or run with the speech tokenizer of the model that is to be trained."""
    variant: Literal["base", "expressive"] = "expressive"
    """base: HuBERT units alone; expressive: pitch and style units too."""
    overwrite: bool = False
    """Replace an existing output."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    settings = config.parse(PairsConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; no output was written"):
        count, clips = encode_pairs(settings)
        print(f"wrote {settings.output}: {count} lines, {clips} clips encoded")


def encode_pairs(settings: PairsConfig) -> tuple[int, int]:
    """Write the output; returns its number of lines and of encoded clips.

    Raises:
        RecordError: a line is no object, or a clip of it cannot be read; names the line. Or the input holds units of
            another speech tokenizer.
        CheckpointError: there is no speech tokenizer.
        FileExistsError: the output exists.
    """
    from tqdm import tqdm

    from spirit_jax.checkpoint import CheckpointError
    from spirit_jax.data.pairs import TOKENIZER_KEY, LineFile
    from spirit_jax.data.unit_record import RecordError
    from spirit_jax.inference.prompts import units_string
    from spirit_jax.speech import SpeechTokenizer, speech_fingerprints

    target = output_path(settings.output, "--output")
    if as_path(target).exists() and not settings.overwrite:
        raise FileExistsError(f"--output {target} exists; say --overwrite to replace it")
    lines = LineFile(pathlib.Path(local_path(settings.input, "--input")))
    if not len(lines):
        raise RecordError(f"{settings.input}: no pairs in it")
    entries = [lines.entry(index) for index in range(len(lines))]  # all are checked before anything is encoded
    fingerprints = sorted(speech_fingerprints(settings.checkpoint))
    if not fingerprints:
        raise CheckpointError(f"--checkpoint {settings.checkpoint}: it has no speech tokenizer")
    lines.check_units(fingerprints)
    tokenizer = SpeechTokenizer.from_pretrained(settings.checkpoint, variant=settings.variant)
    folder, clips = parent_folder(settings.input, "--input"), 0
    with atomic_file(target) as file, tqdm(total=len(entries), unit="line", disable=None) as bar:
        file.write(json.dumps({TOKENIZER_KEY: tokenizer.fingerprint}).encode() + b"\n")
        for start in range(0, len(entries), _LINES):
            some = entries[start : start + _LINES]
            places = [place for where, entry in some for place in _speech(entry, where, folder)]
            encoded = tokenizer.encode_batch([segment.audio for _, _, segment in places])
            for (parts, index, _), units in zip(places, encoded, strict=True):
                parts[index] = f"units:{units_string(units)}"
            for _, entry in some:
                file.write(json.dumps(entry, ensure_ascii=False).encode() + b"\n")
            clips += len(places)
            bar.update(len(some))
    return len(entries), clips


def _speech(entry: dict[str, Any], where: str, directory: pathlib.Path) -> Iterator[tuple[list[Any], int, "Segment"]]:
    """Each `speech:FILE` of a line: the list that holds it, its index there, and its audio."""
    from spirit_jax.data.unit_record import RecordError
    from spirit_jax.inference.prompts import Segment

    turns = entry.get("turns", [entry])
    for turn in turns if isinstance(turns, list) else []:
        sides = [turn.get(side) for side in _SIDES] if isinstance(turn, dict) else []
        for parts in (side for side in sides if isinstance(side, list)):
            for index, part in enumerate(parts):
                if isinstance(part, str) and part.startswith("speech:"):
                    try:
                        yield parts, index, Segment.speech(directory / part.removeprefix("speech:"))
                    except SpiritError as error:
                        raise RecordError(f"{where}: {error}") from error


if __name__ == "__main__":
    main()
