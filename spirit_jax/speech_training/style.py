"""The training of the style encoder, and of a classifier of labels that the user brings, as parts of a run."""

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, find, load_arrays
from spirit_jax.convert.trained_parts import write_classifier
from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.kernels.masked import valid_frames
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import WindowClassifier
from spirit_jax.parallel.processes import report
from spirit_jax.speech.released.batches import MAX_SAMPLES, BatchFunction, encode_clips, jit_float32, replicate
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.storage import read_part_config
from spirit_jax.speech_training.clip_labels import LabelError, match, read_labels
from spirit_jax.speech_training.crops import Clips, Crop, CropData, CropShape, empty_crop
from spirit_jax.speech_training.labels import Labels, compute_clips
from spirit_jax.speech_training.part import ConfiguredPart, Context, Outline, Prepared, RatioSummary
from spirit_jax.speech_training.release import save_trained_part
from spirit_jax.speech_training.style_config import ClassifierTraining, StyleTraining
from spirit_jax.speech_training.style_targets import style_labels
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.state import DeviceBatch, Metrics, Params
from spirit_jax.training.step import UpdateRule

WINDOW = 50
"""Frames of a window, 1.0 s."""

Classes = Callable[[int, int, int], Int[np.ndarray, " K"]]
"""`(clip, first window, windows)` to the class of each window; raises a `SpiritError` for a clip without one."""

RATIOS = {"loss": ("nll_sum", "windows"), "accuracy": ("correct", "windows")}
"""The values of the log: mean cross entropy in nats, and share of the windows whose class is the likeliest."""


@dataclasses.dataclass(frozen=True)
class WindowObjective:
    """Cross entropy of the class of each window (a `training.step.Objective`)."""

    model: WindowClassifier
    initial: Params | None = None
    """Weights of the encoder to begin with."""
    dtype: str = "float32"

    def init(self, key: Array) -> Params:
        """Fresh parameters; the encoder's are those of `initial` if they are given."""
        audio_br = jnp.zeros((1, self.model.config.receptive_field))
        params = dict(self.model.init(key, audio_br)["params"])
        return params if self.initial is None else {**params, "encoder": jax.tree.map(jnp.asarray, self.initial)}

    def logical_axes(self) -> Any:
        """Every device holds all parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda shape: (None,) * len(shape.shape), shapes)

    def loss_scale(self, batch: DeviceBatch) -> Float[Array, ""]:
        """The reciprocal of the number of windows that have a class."""
        return 1 / jnp.maximum((batch["label_bk"] >= 0).sum(), 1).astype(jnp.float32)

    def loss(self, params: Params, batch: DeviceBatch, scale: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The mean cross entropy of a batch, or its share of a part of it."""
        metrics = self.evaluate(params, batch)
        loss = metrics["nll_sum"] * scale
        return loss, metrics | {"loss": loss}

    def evaluate(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Sums over the windows of rows."""
        outputs: Any = self.model.apply({"params": params}, batch["audio_br"], batch["length_b"])
        logits_bkl, windows_b = outputs
        label_bk, size = batch["label_bk"], logits_bkl.shape[1]
        label_bk = label_bk[:, :size]
        counted = valid_frames(windows_b, size) & (label_bk >= 0) & (batch["weight_b"][:, None] > 0)
        log_bkl = jax.nn.log_softmax(logits_bkl)
        nll_bk = -jnp.take_along_axis(log_bkl, jnp.maximum(label_bk, 0)[..., None], axis=-1)[..., 0]
        correct_bk = jnp.argmax(logits_bkl, -1) == label_bk
        return {
            "nll_sum": jnp.where(counted, nll_bk, 0.0).sum(),
            "correct": (correct_bk & counted).sum().astype(jnp.float32),
            "windows": counted.sum().astype(jnp.float32),
            "seconds": (batch["length_b"] * batch["weight_b"]).sum() / SAMPLE_RATE,
        }


@dataclasses.dataclass(frozen=True)
class StyleRows:
    """Makes the arrays of a row from a crop, whose windows are those of the clip."""

    config: StyleTraining | ClassifierTraining
    classes: Classes
    """Knows the classes of the clips."""

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Mapping[str, Any]:
        """Audio [R] and the class of each window [K]; -1 for windows outside the clip.

        Raises:
            SpiritError: the clip has no class.
        """
        del rng
        encoder = self.config.encoder
        size, first = WINDOW * encoder.hop, crop.start // (WINDOW * encoder.hop)
        label_k = np.full(self.config.samples // size, -1, np.int32)
        classes = self.classes(crop.index, first, ceil_div(max(encoder.frames(crop.length), 0), WINDOW))
        label_k[: len(classes)] = classes
        return {"audio_br": crop.audio, "length_b": np.int32(crop.length), "label_bk": label_k}


@dataclasses.dataclass(frozen=True)
class _WindowPart(ConfiguredPart):
    """The properties that both parts share."""

    config: StyleTraining | ClassifierTraining

    @property
    def accumulate(self) -> int:
        """Parts that a step is worked through in."""
        return self.config.accumulate

    def _outline(self, count: int) -> Outline:
        """The step with so many classes."""
        c = self.config
        objective = WindowObjective(self._model(count), dtype=c.matmul_precision)
        rule = UpdateRule(objective, make_optimizer(c.optimizer, c.loop.steps))
        rows = StyleRows(c, lambda index, first, windows: np.zeros(windows, np.int32))
        return Outline(rule, rows(empty_crop(c.samples), np.random.default_rng(0)))

    def _prepared(
        self,
        context: Context,
        classes: tuple[Classes, Classes],
        count: int,
        finish: Callable[[Params], None],
        measure: Callable[[Params], Mapping[str, float]] | None = None,
    ) -> Prepared:
        config = self.config
        initial = None
        if config.init_from is not None:
            shape, initial = read_style_encoder(config.init_from)
            if shape != config.encoder:
                raise SpiritError(
                    f"init_from {config.init_from}: its encoder has another shape than `encoder`: {shape}"
                )
        train, held_out = (StyleRows(config, each) for each in classes)
        data = CropData(
            train=context.train,
            held_out=context.held_out,
            shape=CropShape(config.samples, config.shortest, WINDOW * config.encoder.hop),
            train_row=train,
            held_out_row=held_out,
            rows=config.rows,
            seed=context.seed,
        )
        objective = WindowObjective(self._model(count), initial, config.matmul_precision)
        return Prepared(
            rule=UpdateRule(objective, make_optimizer(config.optimizer, config.loop.steps), context.spike_sigmas),
            summary=RatioSummary(RATIOS),
            batches=data.batches,
            held_out=data.held_out_batches,
            finish=finish,
            measure=None if measure is None else lambda params, step: measure(params),
        )

    def _model(self, count: int) -> WindowClassifier:
        """The network with so many classes."""
        return WindowClassifier(self.config.encoder, self.config.projection_size, count, window=WINDOW)

    def _trained(self, params: Params, count: int, labels: Sequence[str] = ()) -> Wav2Vec2Style:
        config = {
            "kind": Wav2Vec2Style.kind,
            "encoder": dataclasses.asdict(self.config.encoder),
            "projection_size": self.config.projection_size,
            "num_labels": count,
            **({"labels": list(labels)} if labels else {}),
        }
        return Wav2Vec2Style(config, jax.device_get(params))


@dataclasses.dataclass(frozen=True)
class StylePart(_WindowPart):
    """The style encoder of a run."""

    config: StyleTraining

    @property
    def name(self) -> str:
        """`style`."""
        return "style"

    def outline(self) -> Outline:
        """The step with as many styles as the config asks for."""
        return self._outline(self.config.targets.clusters)

    def prepare(self, context: Context) -> Prepared:
        """Cluster the seconds of the clips, and put the pieces together.

        Raises:
            SpiritError: too little speech, or no encoder of the shape that the config names.
        """
        train, held_out = style_labels(context, self.config.targets)
        clusters = self.config.targets.clusters
        if len(speakers := {*_names(context.train, "speaker")}) == 1:
            report(f"style: one speaker only ({speakers.pop() or 'without a name'}): styles are those of one voice")

        def finish(params: Params) -> None:
            save_trained_part(context.run / SPEECH_TOKENIZER, self.name, self._trained(params, clusters))

        def classes(labels: Labels) -> Classes:
            return lambda index, first, count: labels.of(index)[first : first + count].astype(np.int32)

        return self._prepared(context, (classes(train), classes(held_out)), clusters, finish)


@dataclasses.dataclass(frozen=True)
class ClassifierPart(_WindowPart):
    """A classifier of clips, which goes to `RUN/classifier/hugging_face` for the evaluation."""

    config: ClassifierTraining

    @property
    def name(self) -> str:
        """`classifier`."""
        return "classifier"

    def outline(self) -> Outline:
        """The step with two labels; a few more change nothing."""
        return self._outline(2)

    def prepare(self, context: Context) -> Prepared:
        """Read the labels of the clips, and put the pieces together.

        Raises:
            LabelError: there are fewer than two labels, or the table does not fit the corpus.
        """
        source, splits = self.config.labels, (context.train, context.held_out)
        ids = [_names(clips, "id") for clips in splits]
        if source == "speaker":
            tables = [
                dict(zip(each, _names(clips, "speaker"), strict=True)) for each, clips in zip(ids, splits, strict=True)
            ]
            labels = {name: label for table in tables[::-1] for name, label in table.items() if name and label}
            known = {label for name, label in tables[0].items() if name and label}
        else:
            labels = read_labels(source)
            known = {labels[name] for name in ids[0] if name in labels}
        names = sorted(known)
        if len(names) < 2:
            raise LabelError(
                f"classifier.labels {source}: {len(names)} label(s) among the clips: two or more are needed"
            )
        skip = self.config.on_bad_label == "skip" or source == "speaker"
        train, missing = match(ids[0], labels, names, source=source, skip=skip)
        if missing:
            report(f"classifier: {len(missing)} training clips have no label: skipped")
        held_out = [names.index(label) if (label := labels.get(name, "")) in known else -1 for name in ids[1]]
        if strangers := sum(number < 0 for number, name in zip(held_out, ids[1], strict=True) if name):
            report(f"classifier: {strangers} validation clips have no label of those to learn: they are not measured")

        def classes(numbers: Sequence[int]) -> Classes:
            def of(index: int, first: int, count: int) -> np.ndarray:
                del first  # a label is that of a whole clip
                if numbers[index] < 0:
                    raise SpiritError(f"clip {index} has no label")
                return np.full(count, numbers[index], np.int32)

            return of

        def finish(params: Params) -> None:
            trained = self._trained(params, len(names), names)
            write_classifier(trained.config(), trained.arrays(), context.directory / "hugging_face")

        model = self._model(len(names))
        predict = jit_float32(lambda tree, audio_br, lengths_b: model.apply({"params": tree}, audio_br, lengths_b))

        def measure(params: Params) -> Mapping[str, float]:
            # Each host computes alone, so it needs the parameters on its own devices only.
            run = functools.partial(predict, replicate(jax.device_get(params)))
            return clip_accuracy(run, context.held_out, held_out, self.config.encoder.receptive_field)

        return self._prepared(context, (classes(train), classes(held_out)), len(names), finish, measure)


def _names(clips: Clips, field: str) -> list[str]:
    """The id or the speaker of each clip, without decoding it; "" for clips that cannot be read."""
    names = []
    for index in range(len(clips)):
        try:
            names.append(getattr(clips.utterance(index), field))
        except SpiritError:
            names.append("")
    return names


def clip_accuracy(run: BatchFunction, clips: Clips, numbers: Sequence[int], minimum: int) -> dict[str, float]:
    """Share of the clips whose likeliest label, by the mean over their windows, is their own, and the mean recall.

    Args:
        run: gives the logits of each window.
        clips: the clips to measure on; at most their first 100 s count.
        numbers: label of each clip; -1 for clips that do not count.
        minimum: samples that a clip needs.
    """
    wanted, found = [], []
    used = ((index, audio) for index, audio in clips.usable() if numbers[index] >= 0 and audio.size >= minimum)

    def logits(batch: Sequence[np.ndarray]) -> list[np.ndarray]:
        return [each for (each,) in encode_clips(run, [clip[:MAX_SAMPLES] for clip in batch], minimum, "labels")]

    for index, logits_kl in compute_clips(used, logits):
        wanted.append(numbers[index])
        found.append(int(np.argmax(logits_kl.mean(0))))
    if not wanted:
        return {}
    is_right, labels = np.equal(found, wanted), np.array(wanted)
    recalls = [float(is_right[labels == label].mean()) for label in np.unique(labels)]
    return {"clip_accuracy": float(is_right.mean()), "mean_recall": float(np.mean(recalls))}


def read_style_encoder(checkpoint: str) -> tuple[Wav2Vec2Config, Params]:
    """The encoder of the style part of a checkpoint directory.

    Raises:
        CheckpointError: there is none, or it is no wav2vec 2.0.
    """
    directory = find(checkpoint, f"{SPEECH_TOKENIZER}/style")
    config = read_part_config(directory, (Wav2Vec2Style.kind,))
    try:
        return Wav2Vec2Config.from_dict(config["encoder"]), load_arrays(directory)["encoder"]
    except KeyError as error:
        raise CheckpointError(f"{directory}: has no {error}") from error
