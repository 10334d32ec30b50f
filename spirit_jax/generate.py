"""Continue prompts of text and speech.

    python -m spirit_jax.generate --checkpoint DIR --input text:"Once upon a time" --output-modality speech --output DIR
    python -m spirit_jax.generate --checkpoint DIR --input speech:a.flac --input text:" The answer is" --output DIR
    python -m spirit_jax.generate --checkpoint DIR --prompts prompts.jsonl --few-shot examples.jsonl --output DIR
    python -m spirit_jax.generate --checkpoint BASE --adapter runs/voice/checkpoints/300 --input text:Hello --output DIR

Each `--input` is the next segment of one prompt: `text:...`, `speech:FILE` or `units:[Hu1][Hu2]...`. A line of a
prompts file is `{"id": "a", "input": ["speech:a.flac", "text: Is it?"]}` or `{"id": "b", "prompt": "[Text]Once"}`;
audio files are relative to it. The output directory gets `results.jsonl`, with a line for each prompt in their order,
and ID-N.wav for speech. A prompt that cannot be used is named, its line holds the error, and the others are answered.
A run may be interrupted or killed at any time: the same command continues with the prompts that have no answer yet.

    python -m spirit_jax.generate --checkpoint DIR --task asr --input speech:a.flac --output DIR
    python -m spirit_jax.generate --checkpoint DIR --task tts --input text:"Once upon a time" --output DIR

`--task` writes each prompt as training writes the pairs of that recipe, and takes speech (asr) or text (tts) alone.
"""

import contextlib
import dataclasses
import json
import math
import os
import pathlib
import sys
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Literal

from spirit_jax import config
from spirit_jax.core.errors import JobError, SpiritError, exit_codes, printable
from spirit_jax.core.paths import as_path, output_path
from spirit_jax.core.working_copy import output_directory
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh_config import MeshConfig
from spirit_jax.speech.protocols import DEFAULT_SPEAKER

if TYPE_CHECKING:
    from spirit_jax.costmodel.report import Report
    from spirit_jax.inference.prompt_files import NamedPrompt
    from spirit_jax.inference.sampling_params import SamplingParams
    from spirit_jax.inference.spiritlm import SpiritLM

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.generate"


@dataclasses.dataclass(frozen=True)
class GenerateConfig:
    """One prompt, or a file of prompts, and how to continue it."""

    checkpoint: str
    """Converted checkpoint, or a step of a training run (RUN/checkpoints/STEP)."""
    output: str | None = None
    """Directory for the results, also gs://BUCKET/NAME; created if missing."""
    input: list[str] = dataclasses.field(default_factory=list)
    """Next segment of the prompt: text:..., speech:FILE or units:[Hu1][Hu2]...; may be repeated."""
    prompts: str | None = None
    """JSONL file of prompts, instead of --input."""
    few_shot: str | None = None
    """JSONL file of the same form; its prompts, one after the other, stand before every prompt."""
    task: Literal["asr", "tts"] | None = None
    """Write prompts as the recipe of this name does: asr transcribes speech, tts speaks text."""
    output_modality: Literal["text", "speech", "any"] = "any"
    """Modalities that an answer may hold; any: text and speech in any order."""
    max_new_tokens: int | None = None
    """Longest answer in tokens; a second of speech takes 20 to 40. Null: the checkpoint's, else 200."""
    temperature: float | None = None
    """0 takes the most likely token; the paper uses 0.8 for open-ended answers. Null: the checkpoint's, else 0."""
    top_k: int | None = None
    """Draw from this many of the most likely tokens, 0 for all. Null: the checkpoint's, else the released code's 50."""
    top_p: float | None = None
    """Draw from the fewest most likely tokens that together have this probability; the paper uses 0.95. Null: the
    checkpoint's, else 1."""
    min_p: float | None = None
    """Draw from tokens of at least this fraction of the highest probability. Null: the checkpoint's, else 0."""
    repetition_penalty: float | None = None
    """Above 1, tokens that have occurred become less likely. Null: the checkpoint's, else 1."""
    seed: int = 0
    """The same seed gives the same answers."""
    stop: list[str] = dataclasses.field(default_factory=list)
    """String that ends an answer; may be repeated."""
    grammar: bool = False
    """Keep generated speech well formed, whatever the model predicts."""
    f0: Literal["fcpe", "pyaapt"] | None = None
    """Pitch extractor of a released tokenizer for the audio of prompts. Null: fcpe."""
    speaker: int | str = DEFAULT_SPEAKER
    """Voice of the vocoder, by number or name."""
    overwrite: bool = False
    """Replace existing results; otherwise they stop the job before it starts."""
    slots: int = 16
    """Prompts that are worked on at once."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation. Null: the checkpoint's."""
    quantize: Quantization | None = None
    """Keep the weights in 8 bits (int8) or 4 bits (int4). Null: in floats."""
    adapter: str | None = None
    """Low-rank adapter of the checkpoint to use: a step of a run with a section `lora`, or a directory in PEFT's
    format."""
    mesh: MeshConfig = MeshConfig(1, 1, 1)
    """Devices: tensor spreads one model, data spreads the prompts."""
    compile_topology: str | None = None
    """Generate nothing: compile prefill and decoding for these TPUs (v5e:2x2, v5p-8), which need not be present, and
    print what they will cost there. The checkpoint may then be the YAML config of a run; no weights are read."""

    def sampling(self, defaults: "SamplingParams") -> "SamplingParams":
        """Return the decoding options: those given here, else the checkpoint's.

        Raises:
            SamplingError: an option is out of range.
        """
        return defaults.override(**{field.name: getattr(self, field.name) for field in dataclasses.fields(defaults)})


_NO_EFFECT_ON_ANSWERS = ("output", "input", "prompts", "few_shot", "slots", "overwrite")
"""Options that do not change the generated output. The prompts themselves are compared by their ids."""


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. The exit code is 2 for a bad argument, 1 for a failed or interrupted job."""
    settings = config.parse(GenerateConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command resumes the job"):
        settings = _with_local_paths(settings)
        if settings.compile_topology is not None:
            for name, report in compile_run(settings, settings.compile_topology).items():
                print(f"{name}, {settings.slots} slots\n{report}\n")
        else:
            with _open_output(settings) as directory:
                prompts, few_shot = _read_inputs(settings)
                run(settings, directory, prompts, few_shot)


def _with_local_paths(settings: GenerateConfig) -> GenerateConfig:
    """Expand `~` in every path, and copy inputs in buckets to this machine.

    Raises:
        PathError: names the option.
        BucketError, BucketJobError: an input is in a bucket and cannot be read.
    """
    from spirit_jax.checkpoint import local_directory

    kinds: dict[str, Callable[[str, str], str | os.PathLike]]
    kinds = {"checkpoint": local_directory, "adapter": local_directory, "output": output_path}
    paths = {name: getattr(settings, name) for name in kinds}
    return dataclasses.replace(
        settings, **{name: str(kinds[name](path, f"--{name}")) for name, path in paths.items() if path is not None}
    )


def compile_run(settings: GenerateConfig, topology: str) -> "dict[str, Report]":
    """Compile generation for TPUs, such as v5e:2x2, and return a report for prefill and one for decoding."""
    from spirit_jax.costmodel.topology import Topology
    from spirit_jax.inference.compile import compile_generation, model_config
    from spirit_jax.inference.sampling_params import SamplingParams

    return compile_generation(
        Topology.parse(topology),
        model_config(settings.checkpoint, settings.dtype),
        settings.mesh,
        slots=settings.slots,
        new_tokens=settings.max_new_tokens or SamplingParams().max_new_tokens,
        quantize=settings.quantize,
    )


@contextlib.contextmanager
def _open_output(settings: GenerateConfig) -> Iterator[pathlib.Path]:
    """Yield the directory for the results, which need not exist yet; one in a bucket has a local copy.

    Raises:
        InputError: no directory is named, it is a file, or it has results.
        BucketError, BucketJobError: it is in a bucket that cannot be used.
    """
    from spirit_jax.inference.prompt_files import InputError
    from spirit_jax.inference.results import RESULTS

    if settings.output is None:
        raise InputError("name the directory for the results: --output DIR")
    with output_directory(settings.output, "--output", lambda name: name.startswith(RESULTS)) as directory:
        nearest = next(path for path in (directory, *directory.absolute().parents) if os.path.exists(path))
        if not nearest.is_dir():
            raise InputError(f"--output {directory}: {nearest} is a file")
        if (directory / RESULTS).exists() and not settings.overwrite:
            raise InputError(f"{directory / RESULTS} exists; say --overwrite to replace it")
        yield directory


def _read_inputs(settings: GenerateConfig) -> "tuple[list[NamedPrompt], list[NamedPrompt]]":
    """Return the prompts and the few-shot examples."""
    from spirit_jax.inference.prompt_files import InputError, NamedPrompt, parse_segment, read_prompts

    if bool(settings.input) == (settings.prompts is not None):
        raise InputError("give either --input (text:..., speech:FILE), or --prompts FILE")
    if settings.prompts is None:
        prompts = [NamedPrompt("output", [parse_segment(text) for text in settings.input])]
    else:
        prompts = read_prompts(settings.prompts)
    return prompts, [] if settings.few_shot is None else read_prompts(settings.few_shot)


def run(
    settings: GenerateConfig,
    directory: pathlib.Path,
    prompts: "Sequence[NamedPrompt]",
    few_shot: "Sequence[NamedPrompt]",
) -> None:
    """Generate all answers and write them. The results file comes last and is atomic.

    Raises:
        SpiritError: an option or every prompt cannot be used, or (`JobError`) some prompts cannot; names them.
    """
    from tqdm import tqdm

    from spirit_jax.inference.prompt_files import encode_prompts
    from spirit_jax.inference.results import PartialResults, describe_outputs, write_segment

    model = _load_model(settings)
    sampling = settings.sampling(model.sampling)
    encoded = encode_prompts(model.prompt_encoder, prompts, few_shot, settings.output_modality, settings.task)
    options = dataclasses.asdict(settings)
    for name in _NO_EFFECT_ON_ANSWERS:
        del options[name]
    ids = [prompt.id for prompt in prompts]
    contents = [str(prompt) if isinstance(prompt, SpiritError) else prompt.ids.tolist() for prompt in encoded]
    place = as_path(settings.output or directory)  # as the user named it; the directory may be a local copy
    partial = PartialResults(directory, [options, ids, contents])
    if partial.lines:
        answered = f"{len(partial.lines)} of {len(prompts)} prompts"
        print(f"{answered} have their answers in {place}", file=sys.stderr)
    usable = {
        index: prompt
        for index, prompt in enumerate(encoded)
        if not isinstance(prompt, SpiritError) and index not in partial.lines
    }
    todo = list(usable)
    answers = model.as_completed(
        list(usable.values()), settings.output_modality, sampling, slots=settings.slots, speaker=settings.speaker
    )
    for position, segments in tqdm(answers, total=len(todo), unit="prompt", disable=len(todo) == 1):
        index = todo[position]
        directory.mkdir(parents=True, exist_ok=True)  # only once the model has accepted the prompts
        paths = (directory / f"{ids[index]}-{number}.wav" for number in range(1, len(segments) + 1))
        outputs = [write_segment(path, segment) for path, segment in zip(paths, segments, strict=True)]
        result = {"id": ids[index], "prompt": usable[index].string, "outputs": outputs}
        partial.add(index, json.dumps(result, ensure_ascii=False))
        if len(prompts) == 1:
            print(describe_outputs(outputs, place))
    problems = []
    for index, prompt in enumerate(encoded):
        if isinstance(prompt, SpiritError):
            problems.append(printable(f"{ids[index]}: {prompt}"))
            partial.add(index, json.dumps({"id": ids[index], "error": printable(str(prompt)), "outputs": []}))
    print(place / partial.finish().name)
    if problems:
        raise JobError(f"{len(problems)} of {len(prompts)} prompts cannot be used, the others are answered", problems)


def _load_model(settings: GenerateConfig) -> "SpiritLM":
    import jax

    from spirit_jax.inference.spiritlm import SpiritLM
    from spirit_jax.parallel.mesh import make_mesh

    sizes = dataclasses.astuple(settings.mesh)
    devices = jax.devices()[: math.prod(sizes)] if min(sizes) > 0 else jax.devices()
    mesh = make_mesh(settings.mesh, devices)
    model = SpiritLM.from_pretrained(
        settings.checkpoint, settings.dtype, mesh, settings.quantize, settings.f0, settings.adapter
    )
    speaks = model.speech_tokenizer is not None and model.speech_tokenizer.has_vocoder
    if settings.output_modality != "text" and settings.task != "asr" and not speaks:
        print(f"{settings.checkpoint} has no vocoder: speech comes as units", file=sys.stderr)
    return model


if __name__ == "__main__":
    main()
