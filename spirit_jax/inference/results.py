"""The results of the generate command: sound files, `results.jsonl`, and the answers of an interrupted run."""

import contextlib
import hashlib
import json
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np

from spirit_jax.audio import save_audio
from spirit_jax.core.files import FileFormatError, read_text, write_file
from spirit_jax.inference.prompts import Segment

RESULTS = "results.jsonl"


_NOTHING_TO_SPEAK = "no phonetic unit ([Hu...]) in it, so there is nothing to speak; allow more new tokens"
_NO_SEGMENT = "(nothing: the answer ended at once, or held speech of fewer than 24 phonetic units, which is left out)"


def write_segment(path: pathlib.Path, segment: Segment) -> dict[str, Any]:
    """Write the audio of a generated segment, and return what the results file says about the segment.

    Speech that is too short to be spoken has a `reason` instead of a file.
    """
    if segment.kind == "text":
        return {"text": segment.content}
    output = {"speech": None, "units": segment.tokens}
    if isinstance(segment.content, np.ndarray):
        if segment.content.size:
            save_audio(path, segment.audio)
            output["speech"] = path.name
        else:
            output["reason"] = _NOTHING_TO_SPEAK
    return output


class PartialResults:
    """The answers so far. They are kept in `results.jsonl.part` until all are there, so that a run can be continued.

    Attributes:
        lines: the line of the results file of each answered prompt, by the prompt's position. Answers of an interrupted
            run of the same job are there from the start.
    """

    def __init__(self, directory: pathlib.Path, job: Any):
        """
        Args:
            directory: where the results file will be.
            job: everything that the answers depend on, as JSON values; another job starts anew.
        """
        digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()
        self._header = json.dumps({"job": digest})
        self._path, self._part = directory / RESULTS, directory / f"{RESULTS}.part"
        self._is_current = False  # whether the part file is this run's
        self.lines: dict[int, str] = {}
        with contextlib.suppress(FileFormatError):
            header, *entries = read_text(self._part).split("\n")
            for entry in entries if header == self._header else ():
                with contextlib.suppress(ValueError):  # a process that was killed may have left half a line
                    index, line = json.loads(entry)
                    self.lines[index] = line

    def add(self, index: int, line: str) -> None:
        """Keep the answer to the prompt at a position."""
        self.lines[index] = line
        if self._is_current:
            with self._part.open("a", encoding="utf-8") as file:
                file.write(json.dumps([index, line]) + "\n")
            return
        entries = [self._header, *(json.dumps(item) for item in self.lines.items())]
        write_file(self._part, "".join(entry + "\n" for entry in entries))
        self._is_current = True

    def finish(self) -> pathlib.Path:
        """Write the results file in the order of the prompts and return its path."""
        write_file(self._path, "".join(self.lines[index] + "\n" for index in sorted(self.lines)))
        self._part.unlink(missing_ok=True)
        return self._path


def describe_outputs(outputs: Sequence[dict[str, Any]], directory: pathlib.Path) -> str:
    """Return the outputs of one answer for a terminal, a line each: text, the path of a sound file, or units.

    Speech that was not spoken, and an empty answer, come with the reason.
    """
    lines = []
    for output in outputs:
        speech = output.get("speech") and str(directory / output["speech"])
        units = (
            f"{output.get('units') or 'no units'} ({output['reason']})" if "reason" in output else output.get("units")
        )
        lines.append(output.get("text") or speech or units or "")
    return "\n".join(lines) if any(lines) else _NO_SEGMENT
