"""Runs tasks on a model and writes their results; the Python API of the command.

from spirit_jax import SpiritLM
from spirit_jax.evaluation.run import evaluate
results = evaluate(SpiritLM.from_pretrained("checkpoint"), ["mini"], "results")
print(results.main("mini_swuggy", "S").estimate)
"""

import contextlib
import dataclasses
import datetime
import hashlib
import json
import os
import pathlib
import platform
import subprocess
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import numpy as np

from spirit_jax import __version__, checkpoint
from spirit_jax.checkpoint import CheckpointError, local_directory
from spirit_jax.core.checksums import read_checksums
from spirit_jax.core.files import open_regular, write_file
from spirit_jax.evaluation import report
from spirit_jax.evaluation.task import Figure, Job, TaskResult, TaskSettings, missing
from spirit_jax.evaluation.tasks import GROUPS, TASKS, check_names, prompt_file, select
from spirit_jax.evaluation.units import UnitCache
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.models import quantized
from spirit_jax.models.llama import Params

RESULTS, REPORT, PLOT = "results.json", "results.md", "results.png"


@dataclasses.dataclass(frozen=True)
class Results:
    """Results of an evaluation by task."""

    tasks: Mapping[str, TaskResult]
    model: Mapping[str, Any]
    """Identity of the model, of the program and of the machine."""

    def main(self, task: str, direction: str = "") -> Figure:
        """The main figure of a task and direction.

        Raises:
            KeyError: the evaluation has none.
        """
        for figure in self.tasks[task].figures:
            if figure.is_main and not figure.group and figure.direction == direction:
                return figure
        raise KeyError((task, direction))

    def to_json(self) -> dict[str, Any]:
        """The content of results.json."""
        tasks = {
            name: {
                "figures": [figure.to_json() for figure in result.figures],
                "data": dict(result.data),
                "settings": dict(result.settings),
                "files": dict(result.files),
                "unusable": dict(result.unusable),
            }
            for name, result in self.tasks.items()
        }
        return {"model": dict(self.model), "tasks": tasks}


def evaluate(
    model: SpiritLM,
    tasks: Sequence[str],
    output: str | os.PathLike,
    settings: TaskSettings | None = None,
    checkpoint_directory: str | os.PathLike | None = None,
    overwrite: bool = False,
    units: UnitCache | None = None,
) -> Results:
    """Run tasks, and write `results.json`, `results.md`, `results.png` and `items/TASK.jsonl`.

    Items that the output directory has already are not scored again, so an interrupted evaluation continues.

    Args:
        tasks: names of tasks or groups, with directions if wanted: `["mini", "storycloze:T+T2S"]`.
        output: directory of the results; created if missing.
        settings: of the tasks; None means the defaults.
        checkpoint_directory: where the model was loaded from; its checksums identify the model. None hashes the
            parameters instead.
        overwrite: replace the items of another evaluation.
        units: encodes clips; None makes a cache in the output directory.

    Raises:
        BenchmarkError: an unknown task, data that are missing or cannot be used, or the items of another evaluation.
        SpiritError: a part that a task needs is missing; the message names it.
    """
    chosen = select(tasks)
    settings = settings or TaskSettings()
    check_names(settings.data, settings.prompts)
    output = pathlib.Path(output)
    output.mkdir(parents=True, exist_ok=True)
    identity = describe_model(model, checkpoint_directory)
    job = Job(model, settings, output, identity["fingerprint"], overwrite, units)
    found: dict[str, TaskResult] = {}
    results = Results(found, {**identity, "settings": dataclasses.asdict(settings)})
    for task, directions in chosen:
        found[task.name] = task.run(job, directions)
        write_results(results, output)  # after each task, so that a stopped evaluation has what is finished
    return results


def write_results(results: Results, output: pathlib.Path) -> None:
    """Write results.json, the report and its plot."""
    write_file(output / RESULTS, json.dumps(results.to_json(), indent=1, ensure_ascii=False, default=str) + "\n")
    title = f"Evaluation of {results.model.get('checkpoint') or 'a model'}"
    write_file(output / REPORT, report.markdown(title, results.tasks))
    report.plot(results.tasks, output / PLOT)


def describe_model(model: SpiritLM, directory: str | os.PathLike | None) -> dict[str, Any]:
    """The identity of a model and of the program: what a reader needs to repeat the figures.

    The fingerprint is that of the parameters' files, or of the parameters themselves if no directory is named, of
    quantization, of an adapter, of the vocabulary and of the speech tokenizer.
    """
    speech = ""
    if model.speech_tokenizer is not None:
        with contextlib.suppress(CheckpointError):  # it has a vocoder alone
            speech = model.speech_tokenizer.fingerprint
    if directory is None:
        weights = fingerprint_params(model.params)
    else:
        weights = fingerprint_llm(local_directory(directory, "--checkpoint"))
    quantize = quantized.find_kind(model.params)
    parts = [weights, model.vocabulary.fingerprint, speech, model.config.dtype]
    adapter = None if model.adapter is None else model.adapter.fingerprint
    if adapter is not None:
        parts.append(adapter)
    if quantize is not None:
        parts.append(quantize)
    device = model.mesh.devices.flat[0]
    return {
        "checkpoint": None if directory is None else os.fspath(directory),
        "fingerprint": hashlib.sha256(json.dumps(parts).encode()).hexdigest(),
        "weights": weights,
        "adapter": adapter,
        "vocabulary": model.vocabulary.fingerprint,
        "speech_tokenizer": speech,
        "variant": model.vocabulary.variant,
        "dtype": model.config.dtype,
        "quantize": quantize,
        "context": model.config.max_position_embeddings,
        "spirit_jax": __version__,
        "commit": _commit(),
        "jax": jax.__version__,
        "python": platform.python_version(),
        "device": f"{model.mesh.devices.size} x {device.device_kind}",
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
    }


def fingerprint_params(params: Params) -> str:
    """sha256 (hex) of the names, types and values of parameters."""
    digest = hashlib.sha256()
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        array = np.ascontiguousarray(leaf)
        digest.update(f"{jax.tree_util.keystr(path)} {array.dtype} {array.shape}".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return digest.hexdigest()


def fingerprint_llm(directory: str | os.PathLike) -> str:
    """sha256 (hex) of the names and contents of a checkpoint's `llm/`: of its checksums if it is sealed.

    Raises:
        CheckpointError: there is no `llm/`.
    """
    llm = checkpoint.find(directory, checkpoint.LLM)
    sealed = read_checksums(llm.parent) or {}
    entries = {name: entry for name, entry in sealed.items() if name.startswith(f"{checkpoint.LLM}/")}
    if entries:
        return hashlib.sha256(json.dumps(entries, sort_keys=True).encode()).hexdigest()
    digest = hashlib.sha256()
    for path in sorted(path for path in llm.rglob("*") if path.is_file()):
        digest.update(str(path.relative_to(llm)).encode())
        with open_regular(path) as file:
            while block := file.read(2**22):
                digest.update(block)
    return digest.hexdigest()


def describe_tasks(settings: TaskSettings) -> str:
    """A paragraph a task: directions, measure, data with source and license, prompt file, and what is missing here."""
    lines = []
    for name, task in TASKS.items():
        about = task.about
        lines.append(f"{name}  [{' '.join(about.directions).strip()}]  {about.title}")
        lines.append(f"    data: {about.data}; from {about.source}; license: {about.license}")
        if (file := prompt_file(task)) is not None:
            lines.append(f"    prompts and sampling: configs/evaluation/{file}; another file: --prompts.{name} FILE")
        lacking = missing(task, settings)
        lines.append(f"    missing here: {'; '.join(lacking)}" if lacking else "    ready")
    groups = [f"{name}: {', '.join(members)}" for name, members in GROUPS.items()]
    return "\n".join([*lines, "", "groups", *(f"    {line}" for line in groups)])


def _commit() -> str | None:
    """The commit of the checkout that the program runs from, None for an installed package."""
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=pathlib.Path(__file__).parent,
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()
