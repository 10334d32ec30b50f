"""The tasks by name, and the groups that `--tasks` accepts. Each file holds one task or one family of tasks."""

from collections.abc import Iterable, Mapping, Sequence

from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.evaluation.task import Task
from spirit_jax.evaluation.tasks import (
    alignment,
    few_shot,
    generation,
    mmlu,
    perplexity,
    resynthesis,
    salmon,
    stories,
    stsp,
    zerospeech,
)

TASKS: Mapping[str, Task] = {
    task.name: task
    for task in (
        zerospeech.SWUGGY,
        zerospeech.SBLIMP,
        stories.TOPIC_STORYCLOZE,
        stories.STORYCLOZE,
        salmon.SALMON,
        mmlu.MMLU,
        perplexity.PERPLEXITY,
        few_shot.ASR,
        few_shot.TTS,
        few_shot.INTENT,
        *stsp.STSP,
        resynthesis.RESYNTHESIS,
        generation.GENERATION,
        generation.TOXICITY,
        alignment.ALIGNMENT,
        zerospeech.MINI_SWUGGY,
        zerospeech.MINI_SBLIMP,
        stories.MINI_STORIES,
        salmon.MINI_TONE,
        few_shot.MINI_ASR,
        few_shot.MINI_TTS,
        stsp.MINI_STSP,
        resynthesis.MINI_RESYNTHESIS,
        generation.MINI_CONTINUATION,
    )
}
"""Every task by its name."""

GROUPS: Mapping[str, tuple[str, ...]] = {
    "mini": ("mini_swuggy", "mini_sblimp", "mini_stories", "mini_tone"),
    "mini_generation": ("mini_asr", "mini_tts", "mini_stsp", "mini_resynthesis", "mini_continuation"),
    "paper_likelihood": ("swuggy", "sblimp", "tstorycloze", "storycloze", "mmlu"),
}
"""Several tasks under one name."""


_PROMPTED = (few_shot.FewShotTask, stsp.StspTask, generation.GenerationTask)


def select(names: Sequence[str]) -> list[tuple[Task, tuple[str, ...]]]:
    """The tasks and directions of names such as `mini`, `swuggy` or `storycloze:T+T2S`, each task once.

    `T2S` is `T>S`, which a shell would take for a redirection.

    Raises:
        BenchmarkError: an unknown task, group or direction; lists those that there are.
    """
    chosen: dict[str, tuple[str, ...]] = {}
    for name in _split(names):
        task_name, _, wanted = name.partition(":")
        for each in GROUPS.get(task_name, (task_name,)):
            if each not in TASKS:
                raise BenchmarkError(
                    f"--tasks {name}: no task or group {each!r}; there are {', '.join([*GROUPS, *TASKS])}"
                )
            known = TASKS[each].about.directions
            directions = tuple(wanted.replace("2", ">").split("+")) if wanted else known
            unknown = [direction for direction in directions if direction not in known]
            if unknown:
                raise BenchmarkError(
                    f"--tasks {name}: {each} has no direction {unknown[0]!r}; it has {', '.join(known) or 'one only'}"
                )
            chosen[each] = tuple(dict.fromkeys((*chosen.get(each, ()), *directions)))
    if not chosen:
        raise BenchmarkError(f"name the tasks: --tasks NAME,...; there are {', '.join([*GROUPS, *TASKS])}")
    return [(TASKS[name], directions) for name, directions in chosen.items()]


def prompt_file(task: Task) -> str | None:
    """The prompt file of a task in configs/evaluation/, None if it has none."""
    return task.prompts if isinstance(task, _PROMPTED) else None


def check_names(data: Iterable[str], prompts: Iterable[str]) -> None:
    """Check the names of `--data` and `--prompts`, so that a misspelled one is not ignored.

    Args:
        data: names of tasks, and `NAME_examples` for the data that the examples of a few-shot task come from.
        prompts: names of tasks with prompt files.

    Raises:
        BenchmarkError: a name is none of a task's.
    """
    prompted = {name for name, task in TASKS.items() if prompt_file(task) is not None}
    known = {task.about.data_name or name for name, task in TASKS.items()}
    examples = {f"{name}_examples" for name, task in TASKS.items() if isinstance(task, few_shot.FewShotTask)}
    for name in data:
        if name not in known | examples:
            raise BenchmarkError(f"--data.{name}: no task has data of this name; there are {', '.join(sorted(known))}")
    for name in prompts:
        if name not in prompted:
            raise BenchmarkError(
                f"--prompts.{name}: no task has a prompt file of this name; there are {', '.join(sorted(prompted))}"
            )


def _split(names: Sequence[str]) -> list[str]:
    return [part.strip() for name in names for part in name.split(",") if part.strip()]
