"""Measure how good a model is: the paper's tasks with their exact rules, prompts and seeds.

    python -m spirit_jax.evaluate --list
    python -m spirit_jax.evaluate --checkpoint runs/tiny/checkpoints/500 --tasks mini --output results
    python -m spirit_jax.evaluate --checkpoint DIR --tasks swuggy --data.swuggy sLM21 --output DIR
    python -m spirit_jax.evaluate --checkpoint DIR --tasks storycloze:T+T2S --data.storycloze sSC --output DIR

`mini` is a small benchmark that comes with the package; other tasks read data that you get from their authors. The
output directory gets `results.md`, tables with our figures beside the paper's, `results.json` with fingerprints,
settings and intervals, a plot, and the score of every item. The same command continues an evaluation that was killed.
"""

import dataclasses
import math
import os
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Literal

from spirit_jax import config
from spirit_jax.core.checks import check_seed
from spirit_jax.core.errors import SpiritError, exit_codes
from spirit_jax.core.working_copy import output_directory
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh_config import MeshConfig

if TYPE_CHECKING:
    from spirit_jax.evaluation.task import TaskSettings
    from spirit_jax.inference.spiritlm import SpiritLM

# Functions import what they run, so that --help and a bad argument need neither JAX nor a network.

PROG = "python -m spirit_jax.evaluate"


@dataclasses.dataclass(frozen=True)
class EvaluateConfig:
    """Which model, on which tasks, with which data.

    Raises:
        ValueError: an option is out of range.
    """

    checkpoint: str | None = None
    """Converted checkpoint, or a step of a training run (RUN/checkpoints/STEP)."""
    tasks: tuple[str, ...] = ()
    """Tasks or groups, separated by commas or repeated: mini, swuggy, storycloze:T+T2S. --list shows them."""
    output: str | None = None
    """Directory of the results, also gs://BUCKET/NAME; created if missing."""
    data: dict[str, str] = dataclasses.field(default_factory=dict)
    """Where a task's data are: --data.TASK DIR. Bundled tasks need none."""
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)
    """Prompt file of a task: --prompts.TASK FILE. By default that of configs/evaluation/."""
    limit: int | None = None
    """Items of each task and direction at most, spread over all of them. Null: all."""
    seed: int = 0
    """Seed of sampling, of the choice of few-shot examples, and of the bootstrap."""
    recognizer: str = "moonshine"
    """Speech recognizer for tasks that need transcripts: moonshine (English, no download) or whisper:DIR."""
    speech_classifier: str = "tone"
    """Sentiment of speech: the built-in tone, or a Hugging Face directory with a Wav2Vec2ForSequenceClassification."""
    text_classifier: str = "words"
    """Sentiment of text: the built-in words, or a Hugging Face directory (needs transformers and torch)."""
    style_classifier: str | None = None
    """Hugging Face directory with a Wav2Vec2ForSequenceClassification whose labels are styles, for resynthesis. The
    style of a recording is the label that its id has, as in Expresso's ex01_happy_00012."""
    text_model: str | None = None
    """Text model for the perplexity of continuations: a checkpoint of this package, or a Hugging Face directory (needs
    transformers and torch)."""
    toxic_words: str | None = None
    """File with a word or phrase a line, for the toxicity that continuations add."""
    batch_tokens: int = 8192
    """Tokens of a batch where likelihoods are compared."""
    slots: int = 16
    """Answers that are generated at once."""
    dtype: Literal["float32", "bfloat16"] | None = None
    """Type of weights and computation. Null: the checkpoint's."""
    quantize: Quantization | None = None
    """Keep the weights in 8 bits (int8) or 4 bits (int4). Null: in floats."""
    adapter: str | None = None
    """Low-rank adapter of the checkpoint to evaluate: a step of a run with a section `lora`, or a directory in PEFT's
    format."""
    mesh: MeshConfig = MeshConfig(1, 1, 1)
    """Devices: tensor spreads one model, data spreads the items."""
    overwrite: bool = False
    """Replace the items of another evaluation in the output directory."""
    list: bool = False
    """Print the tasks, where their data come from, their license, and what is missing here; evaluate nothing."""

    def __post_init__(self) -> None:
        check_seed(self.seed)
        for name in ("limit", "batch_tokens", "slots"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{name} must be 1 or more, found {value}")

    def task_settings(self) -> "TaskSettings":
        """The settings that tasks see."""
        from spirit_jax.evaluation.task import TaskSettings

        names = [field.name for field in dataclasses.fields(TaskSettings)]
        return TaskSettings(**{name: getattr(self, name) for name in names})


def run(settings: EvaluateConfig) -> None:
    """Evaluate, and print the main table.

    Raises:
        SpiritError: an option, data or a part of the checkpoint cannot be used; names it.
    """
    if not settings.list and (settings.checkpoint is None or settings.output is None):
        raise SpiritError("name the model and the directory for the results: --checkpoint DIR --output DIR")
    from spirit_jax.evaluation.run import REPORT, describe_tasks, evaluate
    from spirit_jax.evaluation.tasks import check_names, select
    from spirit_jax.parallel.processes import refuse_job

    if settings.list or settings.checkpoint is None or settings.output is None:
        print(describe_tasks(settings.task_settings()))
        return
    select(settings.tasks)  # a misspelled task is refused before the model is loaded
    check_names(settings.data, settings.prompts)
    refuse_job(PROG)
    if os.path.lexists(disk := os.path.expanduser(settings.output)) and not os.path.isdir(disk):
        raise SpiritError(f"--output {settings.output}: is a file")
    with output_directory(settings.output, "--output") as output:
        model = _load_model(settings.checkpoint, settings)
        evaluate(model, settings.tasks, output, settings.task_settings(), settings.checkpoint, settings.overwrite)
        report = (output / REPORT).read_text(encoding="utf-8")
    print(report.split("\n## ")[0].strip())
    print(f"\nmore in {settings.output.rstrip('/')}/{REPORT}", file=sys.stderr)


def _load_model(checkpoint: str, settings: EvaluateConfig) -> "SpiritLM":
    import jax

    from spirit_jax.inference.spiritlm import SpiritLM
    from spirit_jax.parallel.mesh import make_mesh

    sizes = dataclasses.astuple(settings.mesh)
    devices = jax.devices()[: math.prod(sizes)] if min(sizes) > 0 else jax.devices()
    mesh = make_mesh(settings.mesh, devices)
    return SpiritLM.from_pretrained(checkpoint, settings.dtype, mesh, settings.quantize, adapter=settings.adapter)


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command. The exit code is 2 for a bad argument or bad data, 1 for a failed or interrupted job."""
    settings = config.parse(EvaluateConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command continues the evaluation"):
        run(settings)


if __name__ == "__main__":
    main()
