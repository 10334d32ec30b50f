"""Quantizers of HuBERT's features as parts of a run: k-means, and the augmentation-invariant linear quantizer."""

import dataclasses
import functools
import math
import pathlib
import tempfile
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from spirit_jax.checkpoint import SPEECH_TOKENIZER, load_arrays
from spirit_jax.convert import released_folder
from spirit_jax.convert.formats.arrays import ReadableArray
from spirit_jax.convert.parts import HUBERT_FILE
from spirit_jax.convert.released_folder import ReleasedFolder
from spirit_jax.convert.trained import hubert_folder
from spirit_jax.core.checksums import read_checksums
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.models.ctc import ctc_loss
from spirit_jax.models.wav2vec2 import Wav2Vec2Model, truncate
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.models.wav2vec2_heads import LinearQuantizer
from spirit_jax.parallel.processes import is_primary, report
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.storage import read_part_config, save_part
from spirit_jax.speech_training import kmeans
from spirit_jax.speech_training.augment import change
from spirit_jax.speech_training.crops import Clips, Crop, CropData, CropShape
from spirit_jax.speech_training.hubert import ENCODER, layer_features, read_phonetic_encoder, read_pretraining
from spirit_jax.speech_training.labels import Labels, cached, in_chunks, sampled_features, split_arrays, split_labels
from spirit_jax.speech_training.part import ConfiguredPart, Context, Prepared, RatioSummary
from spirit_jax.speech_training.purity import unit_quality
from spirit_jax.speech_training.quantizer_config import QuantizerTraining, UnitsConfig
from spirit_jax.training.config import LoopConfig
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.state import DeviceBatch, Metrics, Params
from spirit_jax.training.step import Frozen, UpdateRule

PHONETIC = "phonetic"
"""The part of a speech tokenizer that quantizers belong to."""

_RARE = 10.0  # nats by which a blank is less likely than the least likely unit when a student begins as its teacher
_MEASURED_CLIPS = 24  # held-out clips whose unit edit distance is measured


@dataclasses.dataclass(frozen=True)
class Units:
    """k-means on a layer of a HuBERT: the phonetic part, and the first teacher of a linear quantizer.

    `before` is the name of the last HuBERT of this run.
    """

    config: UnitsConfig
    before: str | None
    name: str = "units"
    rows: int = 1
    accumulate: int = 1
    loop: LoopConfig = LoopConfig(steps=1)

    def outline(self) -> None:
        """Nothing is trained by gradients."""

    def prepare(self, context: Context) -> Prepared | None:
        """Learn the clusters and write the phonetic part, in the primary process."""
        if not is_primary():
            return None
        if self.config.encoder is not None:
            encoder, params = read_phonetic_encoder(self.config.encoder)
            unused = {}
        elif self.before is not None:
            encoder, trained = read_pretraining(context.run / self.before / ENCODER)
            params, unused = trained["encoder"], fairseq_heads(trained)
        else:
            raise SpiritError("units: name an encoder, or train a HuBERT in this run")
        extract = layer_features(encoder, params, self.config.layer)
        features = sampled_features(context.train, extract, self.config.hours, context.seed)
        centroids, distance = kmeans.fit(features, self.config.units, context.seed, restarts=self.config.restarts)
        part = HubertEncoder(
            {
                "encoder": dataclasses.asdict(encoder),
                "layer": self.config.layer,
                "quantizer": {"kind": "kmeans", "dim": encoder.hidden_size, "units": len(centroids)},
            },
            {"encoder": params, "quantizer": {"centroids": centroids}},
        )
        values = {"inertia": distance} | unit_quality(context.held_out, part.encode_batch, encoder)
        report(f"{self.name}: {', '.join(f'{name} {value:.4g}' for name, value in values.items())}")
        for place in (context.directory, context.run / SPEECH_TOKENIZER):
            save_phonetic(place / PHONETIC, part, unused)
        return None


@dataclasses.dataclass(frozen=True)
class QuantizerObjective:
    """CTC between the student on changed audio and the teacher's units (a `training.step.Objective`)."""

    model: Wav2Vec2Model
    encoder: Params
    """Frozen, up to the layer whose output is quantized."""
    quantizer: LinearQuantizer
    dtype: str = "float32"
    teacher: Params | None = None
    """The teacher's quantizer, if the student begins as its teacher."""

    def init(self, key: Array) -> Params:
        """The weights that the student begins with."""
        variables: Any = self.quantizer.init(key, jnp.zeros((1, self.quantizer.dim)))
        if self.teacher is None:
            return variables["params"]
        if "centroids" in self.teacher:
            return imitate_centroids(variables["params"], self.teacher["centroids"])
        return self.teacher

    def logical_axes(self) -> Any:
        """Every device holds all parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda shape: (None,) * len(shape.shape), shapes)

    def loss_scale(self, batch: DeviceBatch) -> Float[Array, ""]:
        """The reciprocal of the number of rows that count."""
        return 1 / jnp.maximum(batch["weight_b"].sum(), 1)

    def loss(self, params: Params, batch: DeviceBatch, scale: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Mean over rows of the loss a unit of the teacher's."""
        metrics = self.evaluate(params, batch)
        loss = scale * metrics["loss_sum"]
        return loss, metrics | {"loss": loss}

    def evaluate(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Sums over rows. Rows that are too short for their units do not count."""
        encoded: Any = self.model.apply({"params": self.encoder}, batch["audio_br"], batch["length_b"])
        x_btd, frames_b = encoded
        logits_btk = jnp.asarray(self.quantizer.apply({"params": params}, jax.lax.stop_gradient(x_btd)))
        count_b = batch["count_b"]
        loss_b = ctc_loss(
            jax.nn.log_softmax(logits_btk), frames_b, batch["unit_bn"], count_b, blank=self.quantizer.units
        )
        weight_b = batch["weight_b"] * (loss_b < 1e9)
        mean_b = jnp.where(weight_b > 0, loss_b, 0) / jnp.maximum(count_b, 1)
        return {
            "loss_sum": mean_b.sum(),
            "rows": weight_b.sum(),
            "seconds": (batch["length_b"] * weight_b).sum() / SAMPLE_RATE,
        }


@dataclasses.dataclass(frozen=True)
class QuantizerRows:
    """Makes the arrays of a row: changed audio, and the teacher's units of the audio before, without repetitions."""

    config: QuantizerTraining
    clips: Clips
    units: Labels
    encoder: Wav2Vec2Config
    """Its frames are those of the units."""

    @property
    def longest(self) -> int:
        """Samples of a row after its audio is changed; only the lowest speed makes it longer."""
        return int(self.config.samples / min(1, self.config.augment.stretch[0])) + 1

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Mapping[str, Any]:
        """Audio [R], units [N] and their numbers."""
        first, total = crop.start // self.encoder.hop, self.encoder.frames(self.config.samples)
        units = collapsed(self.units.of(crop.index)[first : first + self.encoder.frames(crop.length)])

        def another() -> np.ndarray:
            return self.clips.audio(int(rng.integers(len(self.clips))))

        changed = change(crop.audio[: crop.length], self.config.augment, rng, another)[: self.longest]
        return {
            "audio_br": np.pad(changed, (0, self.longest - changed.size)),
            "length_b": np.int32(changed.size),
            "unit_bn": np.pad(units.astype(np.int32), (0, total - len(units))),
            "count_b": np.int32(len(units)),
        }


@dataclasses.dataclass(frozen=True)
class Quantizer(ConfiguredPart):
    """One round of the linear quantizer; `before` is the part whose phonetic units teach it."""

    name: str
    config: QuantizerTraining
    before: str

    @property
    def accumulate(self) -> int:
        """Parts of a step."""
        return self.config.accumulate

    def outline(self) -> None:
        """The teacher decides the sizes."""

    def prepare(self, context: Context) -> Prepared:
        """Compute the teacher's units of all clips, and put the pieces together.

        Raises:
            SpiritError: the shortest clip at the highest speed has no frame.
        """
        source = context.run / self.before / PHONETIC
        teacher = read_phonetic(source)
        frame, speed = teacher.encoder.receptive_field, max(1, self.config.augment.stretch[1])
        if self.config.shortest < frame * speed:
            raise SpiritError(
                f"quantizer.shortest {self.config.shortest} must be at least {math.ceil(frame * speed)}: a frame of "
                f"the encoder has {frame} samples, and quantizer.augment.stretch makes a clip {speed:g} times as fast"
            )
        config, stored = teacher.config(), teacher.arrays()
        layer, units = config["layer"], teacher.unit_count
        model, params = truncate(teacher.encoder, stored["encoder"], layer)
        quantizer = LinearQuantizer(teacher.encoder.hidden_size, teacher.encoder.hidden_size, units)
        made_from = {"teacher": read_checksums(source), "data": context.data}

        def make() -> dict[str, np.ndarray]:
            return split_arrays(context.train, context.held_out, in_chunks(teacher.encode_batch, teacher.encoder))

        train, held_out = split_labels(cached(context.directory / "units", made_from, make))
        data = CropData(
            train=context.train,
            held_out=context.held_out,
            shape=CropShape(self.config.samples, self.config.shortest, teacher.encoder.hop),
            train_row=QuantizerRows(self.config, context.train, train, teacher.encoder),
            held_out_row=QuantizerRows(self.config, context.held_out, held_out, teacher.encoder),
            rows=self.rows,
            seed=context.seed,
        )

        initial = stored["quantizer"] if self.config.start == "teacher" else None

        def part(trained: Params) -> HubertEncoder:
            sizes = {"kind": "linear", "dim": quantizer.dim, "upstream_dim": quantizer.upstream_dim, "units": units}
            return HubertEncoder(
                {"encoder": config["encoder"], "layer": layer, "quantizer": sizes},
                {"encoder": stored["encoder"], "quantizer": jax.device_get(trained)},
            )

        @functools.cache
        def teachers_distance() -> float | None:
            return unit_edit_distance(teacher, context.held_out, self.config, context.seed)

        def measure(trained: Params, step: int) -> Mapping[str, float]:
            """The unit edit distance of student and teacher, and how well the student's units tell the words."""
            del step
            student = part(trained)
            distances = {
                "ued_student": unit_edit_distance(student, context.held_out, self.config, context.seed),
                "ued_teacher": teachers_distance(),
            }
            values = {name: distance for name, distance in distances.items() if distance is not None}
            return values | unit_quality(context.held_out, student.encode_batch, teacher.encoder)

        def finish(trained: Params) -> None:
            released = ReleasedFolder.load(context.run / self.before / PHONETIC / released_folder.FOLDER)
            for place in (context.directory, context.run / SPEECH_TOKENIZER):
                save_phonetic(place / PHONETIC, part(trained), released.unused[HUBERT_FILE])

        optimizer = make_optimizer(self.config.optimizer, self.config.loop.steps)

        def rule(encoder: Params) -> UpdateRule:
            objective = QuantizerObjective(model, encoder, quantizer, self.config.matmul_precision, initial)
            return UpdateRule(objective, optimizer, context.spike_sigmas)

        frozen = Frozen(params, rule)
        return Prepared(
            rule=rule(params),
            frozen=frozen,
            summary=RatioSummary({"loss": ("loss_sum", "rows")}),
            batches=data.batches,
            held_out=data.held_out_batches,
            finish=finish,
            measure=measure if len(context.held_out) else None,
        )


def imitate_centroids(fresh: Params, centroids: Float[np.ndarray, "K D"]) -> Params:
    """Weights of a linear quantizer that gives the nearest centroid and never the blank.

    Up to a term that all units share, minus the squared distance of x to a centroid c is `2 c.x - c.c`, which is linear
    in x. The first two layers pass on the coordinates of x in the span of the centroids, raised so far that leaky ReLU
    leaves them as they are. Their other outputs keep fresh weights, which the last layer does not use yet.

    Args:
        fresh: random weights of the three layers.
        centroids: float32 [K, D].
    """
    middle = centroids.mean(0)
    centered = centroids - middle
    basis_dr = np.linalg.svd(centered, full_matrices=False)[2].T
    coordinates_kr = centered @ basis_dr
    rank, raised = basis_dr.shape[1], 4 * np.abs(coordinates_kr).max()
    squared_k = np.sum(coordinates_kr**2, 1)
    apart_kk = squared_k[:, None] + squared_k - 2 * coordinates_kr @ coordinates_kr.T
    np.fill_diagonal(apart_kk, np.inf)
    scale = np.median(apart_kk.min(1))  # so that the logits of neighboring units differ by about one
    first, second, last = (fresh[f"dense_{number}"] for number in range(3))
    kernel_rk, logits_k = 2 * coordinates_kr.T / scale, -squared_k / scale
    # Some centroid is always likelier than the blank. Units without repetitions do not need it, so it begins rare.
    bias_k = np.append(logits_k - raised * kernel_rk.sum(0), logits_k.min() - _RARE)
    return {
        "dense_0": {
            "kernel": jnp.asarray(first["kernel"]).at[:, :rank].set(basis_dr),
            "bias": jnp.asarray(first["bias"]).at[:rank].set(raised - middle @ basis_dr),
        },
        "dense_1": {
            "kernel": jnp.asarray(second["kernel"]).at[:, :rank].set(np.eye(len(second["kernel"]), rank)),
            "bias": jnp.asarray(second["bias"]).at[:rank].set(0),
        },
        "dense_2": {
            "kernel": jnp.zeros_like(last["kernel"]).at[:rank, :-1].set(kernel_rk),
            "bias": jnp.asarray(bias_k, last["bias"].dtype),
        },
    }


def collapsed(units: Int[np.ndarray, " T"]) -> Int[np.ndarray, " N"]:
    """Units without immediate repetitions."""
    return units[np.concatenate([[True], units[1:] != units[:-1]])] if len(units) else units


def edit_distance(a: Sequence[int], b: Sequence[int]) -> int:
    """Levenshtein's: the fewest insertions, deletions and substitutions that turn one sequence into the other."""
    row = np.arange(len(b) + 1)
    other = np.asarray(b)
    for number, value in enumerate(a, 1):
        best = np.minimum(row[:-1] + (other != value), row[1:] + 1)
        # Insertions within the row: the running minimum of (cost - place) plus the place.
        whole = np.concatenate([[number], best]) - np.arange(len(b) + 1)
        row = np.minimum.accumulate(whole) + np.arange(len(b) + 1)
    return int(row[-1])


def unit_edit_distance(encoder: HubertEncoder, clips: Clips, config: QuantizerTraining, seed: int) -> float | None:
    """Edits between the units of clips and those of the same clips after a change, in percent of the former's number.

    Both are without repetitions (Gat et al. 2022, section 3.1). Lower is better; the changes are always the same ones.
    None if the clips are all too short or cannot be used.
    """
    rng = np.random.default_rng((seed, 5))
    before: list[np.ndarray] = []
    for _, audio in clips.usable():
        if audio.size >= config.shortest:
            before.append(audio[: config.samples])
        if len(before) == _MEASURED_CLIPS:
            break
    after = [change(audio, config.augment, rng, lambda: before[int(rng.integers(len(before)))]) for audio in before]
    edits = total = 0
    for units, changed in zip(encoder.encode_batch(before), encoder.encode_batch(after), strict=True):
        reference = collapsed(units).tolist()
        edits += edit_distance(reference, collapsed(changed).tolist())
        total += len(reference)
    return 100 * edits / total if total else None


def fairseq_heads(params: Params) -> dict[str, np.ndarray]:
    """What pre-training adds to an encoder, by fairseq's names."""
    return {
        "mask_emb": np.asarray(params["mask_embedding"]),
        "final_proj.weight": np.ascontiguousarray(np.asarray(params["projection"]["kernel"]).T),
        "final_proj.bias": np.asarray(params["projection"]["bias"]),
        "label_embs_concat": np.asarray(params["class_embeddings"]),
    }


def save_phonetic(directory: pathlib.Path, part: HubertEncoder, unused: Mapping[str, ReadableArray]) -> None:
    """Write a phonetic part, with the description of the released files that `convert export` writes.

    Args:
        directory: the part's own directory.
        part: the encoder and its quantizer.
        unused: tensors that the part does not read, by fairseq's names.
    """
    config = part.config()

    def describe(scratch: pathlib.Path) -> None:
        if config["quantizer"]["kind"] == "linear":
            hubert_folder(config, unused, None).save(scratch)
            return
        with tempfile.TemporaryDirectory() as temporary:
            file = pathlib.Path(temporary, f"L{config['layer']}_km{part.unit_count}.npy")
            np.save(file, part.arrays()["quantizer"]["centroids"])
            hubert_folder(config, unused, file).save(scratch)

    save_part(directory, part, describe)


def read_phonetic(directory: pathlib.Path) -> HubertEncoder:
    """A phonetic part that `save_part` wrote.

    Raises:
        CheckpointError: it is missing or damaged.
    """
    config = read_part_config(directory, (HubertEncoder.kind,))
    return HubertEncoder(config, load_arrays(directory))
