"""Preferences from a model's own answers: several are generated to each prompt, and the best and the worst are kept."""

import collections
import dataclasses
import functools
import itertools
import json
import math
import pathlib
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jaxtyping import Int

from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import write_file
from spirit_jax.core.paths import as_path, local_path, output_path, parent_folder
from spirit_jax.data.pairs import TOKENIZER_KEY, LineFile
from spirit_jax.evaluation.metrics import normalizer, word_errors
from spirit_jax.evaluation.ranking_config import RankConfig
from spirit_jax.inference.prompt_files import InputError, parse_segment
from spirit_jax.inference.prompts import EncodedPrompt, Segment
from spirit_jax.inference.sampling import SamplingParams
from spirit_jax.inference.scheduler import Request
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.speech.asr import open_recognizer
from spirit_jax.vocabulary import TEXT_TOKEN, TOKEN_KINDS


def rank(settings: RankConfig) -> str:
    """Write the preferences, and return a line about them.

    Raises:
        SpiritError: a prompt, the checkpoint or the recognizer cannot be used, or no prompt has a preference.
        FileExistsError: the output exists.
    """
    target = output_path(settings.output, "--output")
    if as_path(target).exists() and not settings.overwrite:
        raise FileExistsError(f"--output {target} exists; say --overwrite to replace it")
    lines = LineFile(pathlib.Path(local_path(settings.prompts, "--prompts")))
    entries = [lines.entry(index) for index in range(len(lines))]
    references = [_reference(entry, where, settings.by) for where, entry in entries]
    mesh = make_mesh(MeshConfig(1, 1, 1), jax.devices()[:1])
    model = SpiritLM.from_pretrained(settings.checkpoint, settings.dtype, mesh, adapter=settings.adapter)
    lines.check_units([] if model.speech_tokenizer is None else [model.speech_tokenizer.fingerprint])
    folder = parent_folder(settings.prompts, "--prompts")
    prompts = [_read_prompt(model, where, entry, folder) for where, entry in entries]
    encoded = [model.encode_prompt(segments, settings.output_modality) for segments in prompts]
    if settings.by == "tone":
        for (where, _), prompt in zip(entries, encoded, strict=True):
            if not any(styles(model, prompt.ids)):
                raise InputError(
                    f"{where}: no style units in the input, which --by tone compares answers with; it needs speech and "
                    "an expressive model"
                )
    answers = _answers(model, settings, encoded)
    score = _Scorer(model, settings)
    kept: list[dict[str, Any]] = []
    for (_, entry), segments, prompt, reference, found in zip(
        entries, prompts, encoded, references, answers, strict=True
    ):
        scored = sorted(((score(prompt, ids, reference), ids.tolist()) for ids in found), reverse=True)
        if len(scored) > 1 and scored[0][0] > scored[-1][0]:
            line = {"id": entry["id"]} if "id" in entry else {}
            line["input"] = [_string(segment) for segment in segments]
            line |= {"chosen": strings(model, scored[0][1]), "rejected": strings(model, scored[-1][1])}
            kept.append({**line, "scores": [scored[0][0], scored[-1][0]]})
    unfinished = len(prompts) * settings.samples - sum(map(len, answers))
    if not kept:
        raise SpiritError(
            f"{settings.prompts}: no prompt has a better and a worse answer ({unfinished} answers did not end within "
            f"{settings.max_new_tokens} tokens): raise --samples, --temperature or --max_new_tokens"
        )
    header = [] if model.speech_tokenizer is None else [{TOKENIZER_KEY: model.speech_tokenizer.fingerprint}]
    write_file(target, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (*header, *kept)))
    best, worst = np.mean([line["scores"] for line in kept], axis=0)
    return (
        f"wrote {target}: {len(kept)} preferences, mean score {best:.3f} against {worst:.3f}; left out: "
        f"{len(prompts) - len(kept)} prompts whose answers are equally good, {unfinished} answers without an end"
    )


def _reference(entry: dict[str, Any], where: str, by: str) -> str:
    """Reference text that the words of the answers are compared with."""
    reference = entry.get("reference", "")
    if not isinstance(reference, str) or (by == "wer" and not reference.strip()):
        raise InputError(f'{where}: "reference" must be a text with words in it, which --by wer compares answers with')
    return reference


def _read_prompt(model: SpiritLM, where: str, entry: dict[str, Any], directory: pathlib.Path) -> list[Segment]:
    """The segments of a prompt, their audio encoded."""
    parts = entry.get("input")
    if not isinstance(parts, list) or not parts or not all(isinstance(part, str) for part in parts):
        raise InputError(f'{where}: "input" must be a list of text:..., speech:FILE and units:...')
    try:
        return [model.prompt_encoder.encode_speech(parse_segment(part, directory)) for part in parts]
    except SpiritError as error:
        raise InputError(f"{where}: {error}") from error


def _answers(
    model: SpiritLM, settings: RankConfig, prompts: Sequence[EncodedPrompt]
) -> list[list[Int[np.ndarray, " N"]]]:
    """The ids of the different answers to each prompt that end, without the end."""
    sampling = SamplingParams(
        temperature=settings.temperature, top_p=settings.top_p, max_new_tokens=settings.max_new_tokens
    )
    requests = [
        Request(prompt, dataclasses.replace(sampling, seed=settings.seed + number))
        for number, prompt in enumerate(prompt for prompt in prompts for _ in range(settings.samples))
    ]
    answers: list[dict[tuple[int, ...], Int[np.ndarray, " N"]]] = [{} for _ in prompts]
    for index, ids in model.engine.run(requests, settings.slots):
        if len(ids) > 1 and ids[-1] in model.vocabulary.end_ids:
            answers[index // settings.samples][tuple(ids.tolist())] = ids[:-1]
    return [[found[key] for key in sorted(found)] for found in answers]


class _Scorer:
    """Scores answers. The recognizer is loaded when the first spoken answer is scored."""

    def __init__(self, model: SpiritLM, settings: RankConfig):
        self._model, self._by = model, settings.by
        self._recognizer = functools.cache(lambda: open_recognizer(settings.recognizer))
        self._normalize = normalizer("english") if settings.by == "wer" else str.strip

    def __call__(self, prompt: EncodedPrompt, ids: Int[np.ndarray, " N"], reference: str) -> float:
        """Minus the word error rate, the mean log-probability of a token of the words, or the share of styles kept."""
        if self._by == "tone":
            return kept_tone(self._model, prompt.ids, ids)
        segments = self._model.decode_answer(prompt, ids)
        words = self._normalize(" ".join(self._words(segment) for segment in segments))
        if self._by == "wer":
            found = word_errors(self._normalize(reference), words)
            return -found.errors / max(found.length, 1)
        if not words:
            return -math.inf
        total, tokens = self._model.log_likelihood("", TEXT_TOKEN + words)
        return total / tokens

    def _words(self, segment: Segment) -> str:
        if isinstance(segment.content, str):
            return segment.content
        return self._recognizer().transcribe([segment.audio])[0]


def kept_tone(model: SpiritLM, prompt: Int[np.ndarray, " N"], answer: Int[np.ndarray, " M"]) -> float:
    """The share of style units, 0..1, that the speech of an answer has in common with that of its prompt.

    It is the sum over styles of the smaller of their two shares. An answer without speech keeps nothing.
    """
    found = styles(model, np.concatenate([prompt, answer]))
    counts = collections.Counter(found[: len(prompt)]), collections.Counter(found[len(prompt) :])
    totals = []
    for count in counts:
        del count[None]
        totals.append(max(count.total(), 1))
    return sum(min(counts[0][style] / totals[0], counts[1][style] / totals[1]) for style in counts[0])


def styles(model: SpiritLM, ids: Int[np.ndarray, " N"]) -> list[int | None]:
    """The id of the style unit that each phonetic unit is spoken in; None for other tokens and before the first style.

    A style lasts until the next one, as in the paper's sequences; one second of speech has one (docs/formats.md,
    "Speech tokenizer").
    """
    found: list[int | None] = []
    style: int | None = None
    for index in ids.tolist():
        kind = TOKEN_KINDS[model.vocabulary.token_kinds[index]]
        style = index if kind == "style" else None if kind == "text" else style
        found.append(style if kind == "hubert" else None)
    return found


def strings(model: SpiritLM, ids: Sequence[int]) -> list[str]:
    """Ids as segments `text:...` and `units:...`."""
    vocabulary = model.vocabulary
    found = []
    for kind, run in itertools.groupby(ids, key=lambda index: TOKEN_KINDS[vocabulary.token_kinds[index]]):
        part = list(run)
        if kind == "text":
            found.append("text:" + vocabulary.decode([vocabulary.text_id, *part]).removeprefix(TEXT_TOKEN))
        elif kind != "control":
            found.append("units:" + vocabulary.decode(part))
    joined: list[str] = []  # units of different streams alternate
    for part in found:
        if joined and part.startswith("units:") and joined[-1].startswith("units:"):
            joined[-1] += part.removeprefix("units:")
        else:
            joined.append(part)
    return joined


def _string(segment: Segment) -> str:
    return f"text:{segment.content}" if segment.kind == "text" else f"units:{segment.tokens}"
