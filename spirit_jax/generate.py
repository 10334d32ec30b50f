"""Continue prompts of text and speech.

    python -m spirit_jax.generate --checkpoint DIR --input text:"Once upon a time" --output-modality speech --output DIR
    python -m spirit_jax.generate --checkpoint DIR --input speech:question.flac --input text:" The answer is" --output DIR
    python -m spirit_jax.generate --checkpoint DIR --prompts prompts.jsonl --few-shot examples.jsonl --output DIR

Each `--input` is the next segment of one prompt: `text:...`, `speech:FILE` or `units:[Hu1][Hu2]...`. A line of a prompts file is
`{"id": "a", "input": ["speech:a.flac", "text: Is it?"]}` or `{"id": "b", "prompt": "[Text]Once"}`; files are relative to it. The
output directory gets `results.jsonl`, a line a prompt in their order, and ID-N.wav for speech.
Ctrl-C or kill it at any time: the same command goes on with the prompts that have no answer yet.
"""

import contextlib
import dataclasses
import hashlib
import json
import math
import pathlib
import sys
from collections.abc import Iterator, Sequence
from typing import Any, Literal

import jax
import numpy as np
from tqdm import tqdm

from spirit_jax import config
from spirit_jax.audio import save_audio
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import write_file
from spirit_jax.costmodel.report import Report
from spirit_jax.costmodel.topology import Topology
from spirit_jax.inference.compile import compile_generation, model_config
from spirit_jax.inference.prompts import Segment
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.parallel.mesh import MeshConfig, make_mesh

PROG = "python -m spirit_jax.generate"


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """One prompt, or a file of prompts, and how to continue it."""

    checkpoint: str
    """Converted checkpoint, or a step of a training run (RUN/checkpoints/STEP)."""
    output: str | None = None
    """Directory for the results; made if missing."""
    input: list[str] = dataclasses.field(default_factory=list)
    """Next segment of the prompt: text:..., speech:FILE or units:[Hu1][Hu2]...; may be repeated."""
    prompts: str | None = None
    """JSONL file of prompts, in the place of --input."""
    few_shot: str | None = None
    """JSONL file of the same form whose prompts, one after the other, stand before every prompt."""
    output_modality: Literal["text", "speech", "any"] = "any"
    """What comes out; any: whatever the model says."""
    max_new_tokens: int | None = None
    """Tokens to generate at most; a second of speech takes 20 to 40. Null: the checkpoint's, else 200."""
    temperature: float | None = None
    """0 takes the most likely token each time; 0.8 is the paper's for open-ended answers. Null: the checkpoint's, else 0."""
    top_k: int | None = None
    """Draw from this many tokens, 0 for all. Null: the checkpoint's, else 50, as the released code does."""
    top_p: float | None = None
    """Draw from the fewest tokens that have this probability together; the paper's is 0.95. Null: the checkpoint's, else 1."""
    min_p: float | None = None
    """Draw from tokens with at least this fraction of the most likely one's probability. Null: the checkpoint's, else 0."""
    repetition_penalty: float | None = None
    """Above 1, tokens that have occurred become less likely. Null: the checkpoint's, else 1."""
    seed: int = 0
    """The same seed gives the same answers."""
    stop: list[str] = dataclasses.field(default_factory=list)
    """Strings at which an answer ends; may be repeated."""
    grammar: bool = False
    """Keep generated speech well formed, whatever the model thinks."""
    speaker: int | str = 2
    """Voice of the vocoder, by number or name."""
    overwrite: bool = False
    """Replace the results that are there; otherwise they stop the job before it starts."""
    slots: int = 16
    """Prompts that are worked on at a time."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation; null: the checkpoint's."""
    int8: bool = False
    """Keep the weights in 8 bits."""
    mesh: MeshConfig = MeshConfig(1, 1, 1)
    """Devices: tensor spreads one model, data spreads the prompts."""
    compile_topology: str | None = None
    """Generate nothing: compile prefill and decoding for these TPUs (v5e:2x2, v5p-8), which need not be there, and print what
    they will cost there. The checkpoint may then be the YAML config of a run; no weights are read."""


class InputError(SpiritError):
    """A prompt on the command line or in a file that cannot be read as one."""


RESULTS = "results.jsonl"

_NO_MATTER = ("output", "input", "prompts", "few_shot", "slots", "overwrite")
"""Settings without effect on an answer, but for the prompts that they name."""
_LONGEST_ID = 200  # bytes: file systems take names of 255


def segment(text: str, directory: pathlib.Path = pathlib.Path()) -> Segment:
    """The segment that `text:...`, `speech:FILE` or `units:[Hu1]...` describes; files are looked for in `directory`."""
    kind, separator, content = text.partition(":")
    makers = {
        "text": Segment.text,
        "speech": lambda name: Segment.speech(directory / name),
        "units": Segment.speech,
    }
    if not separator or kind not in makers or (kind == "units" and not content.lstrip().startswith("[")):
        raise InputError(f"{text[:40]!r}: expected text:..., speech:FILE or units:[Hu1][Hu2]...")
    return makers[kind](content)


def read_prompts(path: str) -> list[tuple[str, str | list[Segment]]]:
    """(id, prompt) of each line of a JSONL file; the id of a line without one is its number.

    Raises:
        InputError: names the file and the line.
    """
    prompts: list[tuple[str, str | list[Segment]]] = []
    try:
        lines = pathlib.Path(path).read_text().split("\n")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not text ({error})") from error
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line)
            if not isinstance(entry, dict) or ("prompt" in entry) == ("input" in entry):
                raise InputError('expected {"id": ..., "input": [...]} or {"id": ..., "prompt": "..."}')
            name = str(entry.get("id", number))
            if not name or pathlib.PurePath(name).name != name or "\0" in name or len(name.encode()) > _LONGEST_ID:
                raise InputError(f"id {name[:40]!r} cannot be part of a file name")
            prompts.append((name, _prompt(entry, pathlib.Path(path).parent)))
        except ValueError as error:
            raise InputError(f"{path}, line {number}: {error}") from error
    names = [name for name, _ in prompts]
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None or not prompts:
        raise InputError(f"{path}: " + (f"id {twice!r} comes twice" if prompts else "no prompts in it"))
    return prompts


def _prompt(entry: dict[str, Any], directory: pathlib.Path) -> str | list[Segment]:
    """The prompt of a line."""
    if "prompt" in entry:
        if not isinstance(entry["prompt"], str) or not entry["prompt"]:
            raise InputError(f'"prompt" must be a string with something in it, found {entry["prompt"]!r}')
        return entry["prompt"]
    parts = entry["input"]
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise InputError(f'"input" must be a list of text:..., speech:FILE and units:..., found {str(parts)[:40]!r}')
    return [segment(part, directory) for part in parts]


def main(arguments: Sequence[str] | None = None) -> None:
    """The command: exit code 2 for a bad argument, 1 for a failed or interrupted job."""
    settings = config.parse(GenerateConfig, arguments, PROG, __doc__)
    if settings.compile_topology is not None:
        try:
            for name, report in compile_run(settings).items():
                print(f"{name}, {settings.slots} slots\n{report}\n")
        except ValueError as error:
            config.fail(PROG, error, config.BAD_ARGUMENT)
        return
    if settings.output is None:
        config.fail(PROG, "name the directory for the results: --output DIR", config.BAD_ARGUMENT)
    output = pathlib.Path(settings.output)
    nearest = next(path for path in (output, *output.absolute().parents) if path.exists())
    if not nearest.is_dir():
        config.fail(PROG, f"--output {output}: {nearest} is a file", config.BAD_ARGUMENT)
    if (output / RESULTS).exists() and not settings.overwrite:
        config.fail(PROG, f"{output / RESULTS} exists; say --overwrite true to replace it", config.BAD_ARGUMENT)
    if bool(settings.input) == (settings.prompts is not None):
        config.fail(PROG, "give either --input (text:..., speech:FILE), or --prompts FILE", config.BAD_ARGUMENT)
    try:
        prompts = (
            read_prompts(settings.prompts) if settings.prompts else [("output", list(map(segment, settings.input)))]
        )
        shots = [] if settings.few_shot is None else read_prompts(settings.few_shot)
    except ValueError as error:
        config.fail(PROG, error, config.BAD_ARGUMENT)
    try:
        run(settings, prompts, [shot for _, shot in shots])
    except ValueError as error:  # what was named or asked for does not exist, or does not go with the checkpoint
        config.fail(PROG, " ".join(str(error).split()), config.BAD_ARGUMENT)
    except OSError as error:
        config.fail(PROG, error, config.FAILED_JOB)
    except KeyboardInterrupt:
        config.fail(PROG, "interrupted; the same command goes on where it was", config.FAILED_JOB)


def compile_run(settings: GenerateConfig) -> dict[str, Report]:
    """Compile what generates for `compile_topology`."""
    return compile_generation(
        Topology.parse(settings.compile_topology),
        model_config(settings.checkpoint, settings.dtype),
        settings.mesh,
        slots=settings.slots,
        new_tokens=settings.max_new_tokens or 200,
    )


def run(
    settings: GenerateConfig, prompts: list[tuple[str, str | list[Segment]]], shots: list[str | list[Segment]]
) -> None:
    """Generate all answers and write them; the results file comes last, whole."""
    sizes = dataclasses.astuple(settings.mesh)
    devices = jax.devices()[: math.prod(sizes)] if min(sizes) > 0 else jax.devices()
    mesh = make_mesh(settings.mesh, devices)
    model = SpiritLM.from_pretrained(settings.checkpoint, settings.dtype, mesh, settings.int8)
    if settings.output_modality != "text" and (
        model.speech_tokenizer is None or model.speech_tokenizer.vocoder is None
    ):
        print(f"{settings.checkpoint} has no vocoder: speech comes as units", file=sys.stderr)
    strings = list(_strings(model, settings.output_modality, prompts, shots))
    names = (
        "temperature",
        "top_k",
        "top_p",
        "min_p",
        "repetition_penalty",
        "seed",
        "stop",
        "grammar",
        "speaker",
        "slots",
    )
    options = {name: getattr(settings, name) for name in names}
    directory = pathlib.Path(settings.output)
    kept = _Kept(directory, settings, [name for name, _ in prompts], strings)
    todo = [index for index in range(len(strings)) if index not in kept.results]
    if kept.results:
        print(f"{len(kept.results)} of {len(strings)} prompts have their answers in {directory}", file=sys.stderr)
    chosen = [strings[index] for index in todo]
    answers = model.as_completed(chosen, settings.output_modality, settings.max_new_tokens, **options)
    for number, segments in tqdm(answers, total=len(todo), unit="prompt", disable=len(todo) == 1):
        index = todo[number]
        name = prompts[index][0]
        directory.mkdir(parents=True, exist_ok=True)  # not before the model has taken the prompts
        outputs = [_write(directory / f"{name}-{part}.wav", segment) for part, segment in enumerate(segments, 1)]
        result = {"id": name, "prompt": strings[index], "outputs": outputs}
        kept.add(index, json.dumps(result, ensure_ascii=False))
        if len(strings) == 1:
            for output in outputs:
                speech = output.get("speech") and directory / output["speech"]
                print(output.get("text") or speech or output.get("units", ""))
    print(kept.finish())


class _Kept:
    """Answers so far, by the prompt's place in the file, kept in `results.jsonl.part` until all are there.

    Attributes:
        results: the line of the results file of each prompt that is answered; those of an interrupted run of the same
            checkpoint, prompts and settings are there from the start.
    """

    def __init__(self, directory: pathlib.Path, settings: GenerateConfig, names: list[str], strings: list[str]):
        answers = dataclasses.asdict(settings)
        for what in _NO_MATTER:
            del answers[what]
        content = json.dumps([answers, names, strings], sort_keys=True)
        self._job = json.dumps({"job": hashlib.sha256(content.encode()).hexdigest()})
        self._path, self._part = directory / RESULTS, directory / f"{RESULTS}.part"
        self.results: dict[int, str] = {}
        with contextlib.suppress(OSError):
            first, *lines = self._part.read_text().split("\n")
            if first == self._job:
                for line in lines:
                    with contextlib.suppress(ValueError):  # the last one of a run that was killed while it wrote
                        index, result = json.loads(line)
                        self.results[index] = result
        self._begun = False

    def add(self, index: int, result: str) -> None:
        """Keep an answer."""
        self.results[index] = result
        if self._begun:
            with self._part.open("a") as file:
                file.write(json.dumps([index, result]) + "\n")
            return
        lines = [self._job, *(json.dumps(item) for item in self.results.items())]
        write_file(self._part, "".join(line + "\n" for line in lines))
        self._begun = True

    def finish(self) -> pathlib.Path:
        """Write the results file, whole and in the order of the prompts."""
        write_file(self._path, "".join(self.results[index] + "\n" for index in sorted(self.results)))
        self._part.unlink(missing_ok=True)
        return self._path


def _strings(model: SpiritLM, modality: str, prompts, shots) -> Iterator[str]:
    """String forms of the prompts, examples in front."""
    for name, prompt in prompts:
        try:
            if any(isinstance(part, str) for part in (prompt, *shots)):
                before = "".join(part if isinstance(part, str) else model.prompt_string(part) for part in shots)
                yield before + model.prompt_string(prompt, modality)
            else:
                yield model.prompt_string([part for shot in (*shots, prompt) for part in shot], modality)
        except ValueError as error:
            raise InputError(f"{name}: {error}" if len(prompts) > 1 else str(error)) from error


def _write(path: pathlib.Path, part: Segment) -> dict[str, Any]:
    """What the results say of a segment; its sound is written."""
    if part.kind == "text":
        return {"text": part.content}
    heard = isinstance(part.content, np.ndarray) and part.content.size > 0
    if heard:
        save_audio(path, part.content)
    return {"speech": path.name if heard else None, "units": part.tokens}


if __name__ == "__main__":
    main()
