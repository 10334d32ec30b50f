"""SALMon (Maimon et al. 2024, arXiv 2409.07437): does a model prefer recordings whose sound is consistent?

Each part is a folder with `sample_N_0.wav`, the consistent recording, and `sample_N_1.wav`. Further recordings of a
sample are not used, as in the official program.
"""

import collections
import pathlib
import re

from spirit_jax.evaluation.items import BenchmarkError, Choice, Clip, Hypothesis, Unusable, audio_files
from spirit_jax.evaluation.likelihood import LikelihoodTask
from spirit_jax.evaluation.task import BUNDLED, About

PARTS = (
    "bg_alignment",
    "bg_all_consistency",
    "bg_domain_consistency",
    "gender_consistency",
    "rir_consistency",
    "sentiment_alignment",
    "sentiment_consistency",
    "speaker_consistency",
)
"""The official parts, in the order of the official program."""


def read_salmon(root: pathlib.Path, direction: str) -> list[Choice | Unusable]:
    """The pairs of every part that is there; a missing official part is not an item.

    Raises:
        BenchmarkError: there is no part.
    """
    parts = [name for name in PARTS if (root / name).is_dir()]
    if not parts:
        raise BenchmarkError(f"{root}: none of the parts {', '.join(PARTS)} there")
    items: list[Choice | Unusable] = []
    for part in parts:
        samples: dict[int, list[pathlib.Path]] = collections.defaultdict(list)
        for path in audio_files(root / part):
            match = re.fullmatch(r"[^_]+_(\d+)_.*", path.stem)
            if match is None:
                items.append(Unusable(f"{part}/{path.stem}", f"{path}: its name is not sample_NUMBER_..."))
            else:
                samples[int(match[1])].append(path)
        for number, paths in sorted(samples.items()):
            name = f"{part}/{number}"
            if len(paths) < 2:
                items.append(Unusable(name, f"{paths[0]}: has no partner"))
                continue
            hypotheses = tuple(Hypothesis((Clip((path,)),), (), path.stem) for path in paths[:2])
            items.append(Choice(name, hypotheses, item=name, group=part))
    return items


SALMON = LikelihoodTask(
    "salmon",
    About(
        title="consistent or inconsistent sound",
        directions=("S",),
        data=f"folders {', '.join(PARTS)} with sample_N_0.wav and sample_N_1.wav",
        source="https://github.com/slp-rl/salmon",
        license="CC-BY-NC-4.0",
    ),
    read_salmon,
)
MINI_TONE = LikelihoodTask(
    "mini_tone",
    About(
        "same or another tone of voice in the second half",
        ("S",),
        "spoken by eSpeak NG (tools/make_mini_benchmark.py)",
        "this package",
        "Apache-2.0",
        BUNDLED / "salmon",
    ),
    read_salmon,
)
