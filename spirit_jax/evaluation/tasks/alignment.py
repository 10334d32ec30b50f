"""Speech-text alignment by layer, the paper's probe: do both modalities of a word have similar hidden states?

A sentence is read once as text and once as units. For each word and layer, the similarity is the maximum cosine between
a hidden state of its text pieces and one of its units. The control compares the text of a word with the units of the
next word of the sentence. The paper gives the figure of its models as a plot without numbers.
"""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.audio import AudioError
from spirit_jax.corpora import CorpusError, Utterance, open_input
from spirit_jax.data.sequences import word_frames
from spirit_jax.evaluation.item_log import ItemLog
from spirit_jax.evaluation.items import BenchmarkError, limited
from spirit_jax.evaluation.rules import estimate
from spirit_jax.evaluation.task import About, Figure, Job, TaskResult, corpus_source
from spirit_jax.inference import network
from spirit_jax.inference.shapes import bucket, padded_rows
from spirit_jax.inference.spiritlm import SpiritLM
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.parallel.sharding import tracing
from spirit_jax.units import SpeechUnits

_CHUNK = 8  # sentences of a batch


@dataclasses.dataclass(frozen=True)
class AlignmentTask:
    """Similarity of the hidden states of words in both modalities."""

    name: str
    about: About
    split: str = "validation"

    def run(self, job: Job, directions: Sequence[str]) -> TaskResult:
        """As `Task.run`."""
        tokenizer = job.model.speech_tokenizer
        if tokenizer is None:
            raise BenchmarkError(f"task {self.name}: the checkpoint has no speech_tokenizer/")
        place = corpus_source(self.name, self.about, job.settings)
        corpus = open_input(place, self.split)
        indices = limited(range(len(corpus)), job.settings.limit)
        log = job.log(self.name, directions[0], {"data": corpus.fingerprint, "items": len(indices)})
        todo = [index for index in indices if str(index) not in log.lines]
        probe = _Probe(job.model, corpus.__getitem__)
        job.in_chunks(todo, _CHUNK, self.name, lambda chunk: log.add(probe(chunk)))
        unusable = {f"sentence {name}": reason for name, reason in log.unusable().items()}
        figures = self._figures(log, directions[0], job.settings.seed)
        files = {}
        if figures and _plot(figures, job.output / f"{self.name}.png"):
            files["plot"] = f"{self.name}.png"
        data = {"place": place, "fingerprint": corpus.fingerprint, "items": len(indices)}
        return TaskResult(figures, unusable, {}, data, files)

    def _figures(self, log: ItemLog, direction: str, seed: int) -> list[Figure]:
        lines = log.usable()
        figures: list[Figure] = []
        layers = len(lines[0]["similarity"]) if lines else 0
        for key, measure in (("similarity", "similarity"), ("control", "similarity with the next word")):
            for layer in range(layers):
                value = estimate([line[key][layer] for line in lines], seed)
                figures.append(
                    Figure(self.name, direction, measure, value, group=f"layer {layer + 1:02}", is_fraction=False)
                )
        gains, best = gains_of_best_layer(lines)
        figures.append(
            Figure(
                self.name,
                direction,
                "similarity above the next word's, best layer",
                estimate(gains, seed),
                is_main=True,
                is_fraction=False,
                unusable=len(log.lines) - len(lines),
                note=f"the best layer is {best}" if lines else "",
            )
        )
        return figures


@dataclasses.dataclass(frozen=True)
class _Probe:
    """Hidden states of sentences in both modalities."""

    model: SpiritLM
    read: Callable[[int], Utterance]

    def __call__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = []
        texts: list[np.ndarray] = []
        speeches: list[np.ndarray] = []
        words: list[list[tuple[range, range]]] = []
        for index in indices:
            try:
                text, speech, spans = self._documents(index)
                lines.append({"id": str(index)})
                texts.append(text)
                speeches.append(speech)
                words.append(spans)
            except (CorpusError, AudioError) as error:
                lines.append({"id": str(index), "unusable": str(error)})
        if texts:
            text_layers, speech_layers = (hidden_states(self.model, ids) for ids in (texts, speeches))
            usable = [line for line in lines if "unusable" not in line]
            for row, line in enumerate(usable):
                line |= _similarities(text_layers[:, row], speech_layers[:, row], words[row])
        return lines

    def _documents(self, index: int) -> tuple[np.ndarray, np.ndarray, list[tuple[range, range]]]:
        """The ids of a sentence as text and as speech, and the places of each word in both.

        Raises:
            CorpusError, AudioError: the sentence cannot be used; says why.
        """
        utterance, vocabulary = self.read(index), self.model.vocabulary
        if len(utterance.words) < 2:
            raise CorpusError(f"utterance {utterance.id!r}: no words with times")
        assert self.model.speech_tokenizer is not None
        units: SpeechUnits = self.model.speech_tokenizer.encode(utterance.load())
        prefix = [*vocabulary.prefix, vocabulary.text_id]
        ends = [len(vocabulary.encode_text(" ".join(utterance.words[: n + 1]))) for n in range(len(utterance.words))]
        text = [*prefix, *vocabulary.encode_text(" ".join(utterance.words))]
        speech = [*vocabulary.prefix, vocabulary.speech_id, *vocabulary.unit_ids(units)]
        spans: list[tuple[range, range]] = []
        start = 0
        for end, (first, last) in zip(ends, word_frames(utterance.spans_ms, len(units.hubert)), strict=True):
            # units are in the order of their times, so those before a frame are a prefix of all
            before, until = (len(vocabulary.unit_ids(units.cut(0, int(frame)))) for frame in (first, last))
            if until > before and end > start:
                offset = len(vocabulary.prefix) + 1
                spans.append((range(len(prefix) + start, len(prefix) + end), range(offset + before, offset + until)))
            start = end
        context = self.model.config.max_position_embeddings
        if max(len(text), len(speech)) > context:
            raise CorpusError(f"utterance {utterance.id!r}: {len(speech)} tokens, the model's context is {context}")
        if len(spans) < 2:
            raise CorpusError(f"utterance {utterance.id!r}: fewer than two words have units")
        return np.asarray(text, np.int32), np.asarray(speech, np.int32), spans


def gains_of_best_layer(lines: Sequence[Mapping[str, list[float]]]) -> tuple[list[float], int]:
    """Gain in similarity of the words of each sentence over their neighbors, in the layer with the highest mean.

    Args:
        lines: `similarity` and `control` of each sentence, a number for each layer.

    Returns:
        A number for each sentence, and the layer, from 1; 0 without sentences.
    """
    if not lines:
        return [], 0
    gains_sl = np.array([np.subtract(line["similarity"], line["control"]) for line in lines])
    best = int(gains_sl.mean(0).argmax())
    return gains_sl[:, best].tolist(), best + 1


def _similarities(
    text_ltd: Float[np.ndarray, "L T D"], speech_ltd: Float[np.ndarray, "L U D"], words: Sequence[tuple[range, range]]
) -> dict[str, list[float]]:
    """Mean over the words of the maximum cosine, by layer, with their own units and with those of the next word."""
    text, speech = (x / np.maximum(np.linalg.norm(x, axis=-1, keepdims=True), 1e-9) for x in (text_ltd, speech_ltd))
    cosine = np.einsum("ltd,lud->ltu", text, speech)
    found: dict[str, list[float]] = {}
    for name, shift in (("similarity", 0), ("control", 1)):
        values = []
        for place, (pieces, _) in enumerate(words):
            units = words[(place + shift) % len(words)][1]
            values.append(cosine[:, pieces.start : pieces.stop, units.start : units.stop].max((1, 2)))
        found[name] = np.mean(values, axis=0).astype(float).tolist()
    return found


def hidden_states(model: SpiritLM, documents: Sequence[Int[np.ndarray, " N"]]) -> Float[np.ndarray, "L B T D"]:
    """The residual stream after each layer, up to a positive factor for each token; rows are padded on the right."""
    rows = padded_rows(len(documents), model.mesh)
    tokens_bt = np.zeros((rows, bucket(max(map(len, documents)), steps=2)), np.int32)
    for row, ids in enumerate(documents):
        tokens_bt[row, : len(ids)] = ids
    layers = []
    with tracing(model.mesh, model.config.dtype):
        for count in range(1, model.config.num_hidden_layers + 1):
            config, params = _first_layers(model.config, model.params, count)
            layers.append(np.asarray(_hidden(config, params, tokens_bt), np.float32))
    return np.stack(layers)


def _first_layers(config: LlamaConfig, params: Params, count: int) -> tuple[LlamaConfig, Params]:
    """A model of the first layers. Its last norm has weights of 1, so that it changes the length of states alone."""
    layers = params["layers"]
    layers = layers[:count] if network.is_per_layer(params) else jax.tree.map(lambda array: array[:count], layers)
    norm = jax.tree.map(jnp.ones_like, params["norm"])
    return dataclasses.replace(config, num_hidden_layers=count), {**params, "layers": layers, "norm": norm}


@functools.partial(jax.jit, static_argnums=0)
def _hidden(config: LlamaConfig, params: Params, tokens_bt: Int[Array, "B T"]) -> Float[Array, "B T D"]:
    return network.forward(config, params, tokens_bt)[0]


def _plot(figures: Sequence[Figure], path: Any) -> bool:
    """Draw the similarity by layer; returns False without matplotlib."""
    try:
        from matplotlib.figure import Figure as Canvas
    except ImportError:
        return False
    canvas = Canvas(figsize=(6, 4), layout="constrained")
    axes = canvas.subplots()
    for measure in dict.fromkeys(f.measure for f in figures if f.group):
        own = [f for f in figures if f.measure == measure and f.group]
        layers = range(1, len(own) + 1)
        axes.plot(layers, [f.estimate.value for f in own], marker="o", label=measure)
        axes.fill_between(layers, [f.estimate.low for f in own], [f.estimate.high for f in own], alpha=0.2)
    axes.set_xlabel("layer")
    axes.set_ylabel("maximum cosine of a word's text and units")
    axes.legend()
    canvas.savefig(path, dpi=120)
    return True


ALIGNMENT = AlignmentTask(
    "alignment",
    About(
        "similarity of words heard and read, by layer",
        ("ST",),
        data="recordings with word times: what align wrote, or a prepared corpus",
        source="your corpus",
        license="yours",
        default="spirit_mini",
    ),
)
