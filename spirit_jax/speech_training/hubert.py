"""HuBERT's pre-training as a part of a run: labels, masked batches, loss and measures."""

import dataclasses
import functools
import os
import pathlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, find, load_arrays
from spirit_jax.core.checksums import read_checksums
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.errors import SpiritError
from spirit_jax.models.band_filters import mel_band_filters
from spirit_jax.models.hubert import HubertPretraining, feature_penalty, init_pretraining, masked_prediction
from spirit_jax.models.wav2vec2 import truncate
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.parallel.processes import report
from spirit_jax.speech.mfcc import label_features
from spirit_jax.speech.released.batches import encode_clips, jit_float32, replicate
from spirit_jax.speech.released.wav2vec2_cpu import for_inference
from spirit_jax.speech.storage import read_part_config, save_part
from spirit_jax.speech_training import kmeans
from spirit_jax.speech_training.cepstra import cepstra
from spirit_jax.speech_training.crops import Crop, CropData, CropShape, empty_crop
from spirit_jax.speech_training.hubert_config import HubertTraining
from spirit_jax.speech_training.labels import (
    Compute,
    Labels,
    cached,
    in_chunks,
    sampled_features,
    split_arrays,
    split_labels,
)
from spirit_jax.speech_training.masking import draw_mask
from spirit_jax.speech_training.part import ConfiguredPart, Context, Outline, Prepared, RatioSummary
from spirit_jax.speech_training.purity import unit_quality
from spirit_jax.training.optimizer import make_optimizer
from spirit_jax.training.state import DeviceBatch, Metrics, Params
from spirit_jax.training.step import UpdateRule

ENCODER = "encoder"
"""Folder of a finished iteration that holds its encoder, which the parts after it read."""

_FRESH = 0x48554245  # keeps the random numbers of a step apart from those of the initial weights


@dataclasses.dataclass(frozen=True)
class HubertObjective:
    """The loss of masked prediction with its penalty on features (a `training.step.Objective`)."""

    config: HubertTraining
    classes: int
    seed: int
    initial: Params | None = None
    """Weights of the encoder to begin with."""

    @property
    def dtype(self) -> str:
        """The precision of its products; all else is float32."""
        return self.config.matmul_precision

    @property
    def model(self) -> HubertPretraining:
        """The network, without noise."""
        c = self.config
        return HubertPretraining(c.encoder, self.classes, c.projection, c.temperature)

    def init(self, key: Array) -> Params:
        """Fresh parameters; the encoder's are those of `initial` where it is given."""
        params = init_pretraining(self.model, key)
        if self.initial is not None:
            return {**params, "encoder": jax.tree.map(jnp.asarray, self.initial)}
        if self.config.filters == "mel":
            extractor = params["encoder"]["feature_extractor"]
            width, _, channels = extractor["conv_0"].shape
            filters_w1c = jnp.asarray(mel_band_filters(width, channels))[:, None]
            extractor = {**extractor, "conv_0": filters_w1c}
            params = {**params, "encoder": {**params["encoder"], "feature_extractor": extractor}}
        return params

    def logical_axes(self) -> Any:
        """Every device holds all parameters."""
        shapes = jax.eval_shape(self.init, jax.random.key(0))
        return jax.tree.map(lambda shape: (None,) * len(shape.shape), shapes)

    def loss_scale(self, batch: DeviceBatch) -> Float[Array, ""]:
        """The reciprocal of the number of frames that have a loss: all frames, or the masked ones alone.

        As in fairseq, frames that are not masked count if `unmasked_weight` is positive, whatever its value.
        """
        count = batch["masked_bt"].sum()
        if self.config.unmasked_weight > 0:
            count = self.config.encoder.frames(batch["length_b"]).sum()
        return 1 / jnp.maximum(count, 1).astype(jnp.float32)

    def loss(self, params: Params, batch: DeviceBatch, scale: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """Mean cross entropy of the frames that have a loss, and the penalty; parts of a batch count by such frames."""
        key = jax.random.fold_in(jax.random.key(self.seed ^ _FRESH), batch["step"][0])
        key = jax.random.fold_in(key, batch["row_b"][0])
        model = self.model.clone(noise=self.config.noise)
        metrics = self._metrics(model, params, batch, {"noise": key})
        c = self.config
        loss = metrics["loss_masked"] + c.unmasked_weight * metrics["loss_unmasked"]
        loss = scale * (loss + c.feature_penalty * metrics["penalty"])
        return loss, metrics | {"loss": loss}

    def evaluate(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Sums over the frames of held-out rows."""
        return self._metrics(self.model, params, batch, {})

    def _metrics(
        self, model: HubertPretraining, params: Params, batch: DeviceBatch, rngs: Mapping[str, Array]
    ) -> Metrics:
        (logits_btk, frames_b), state = model.apply(
            {"params": params},
            batch["audio_br"],
            batch["length_b"],
            batch["masked_bt"],
            rngs=dict(rngs),
            mutable=["features"],
        )
        weight_b = batch["weight_b"]
        sums = masked_prediction(logits_btk, batch["label_bt"], batch["masked_bt"], frames_b, weight_b)
        features_btc: Any = state["features"]["encoder"]["conv"][0]
        penalty = feature_penalty(features_btc, frames_b, weight_b)
        counted = sums.masked + (sums.unmasked if self.config.unmasked_weight > 0 else 0)
        seconds = (batch["length_b"] * weight_b).sum() / SAMPLE_RATE
        return {**sums._asdict(), "counted": counted, "penalty": penalty * counted, "seconds": seconds}


@dataclasses.dataclass(frozen=True)
class HubertRows:
    """Makes the arrays of a row from a crop."""

    config: HubertTraining
    labels: Labels

    def __call__(self, crop: Crop, rng: np.random.Generator) -> Mapping[str, Any]:
        """Audio [R], classes and masked frames [T]; frames outside the clip have class 0 and are not masked."""
        encoder, hop = self.config.encoder, self.config.label_hop
        total, frames = encoder.frames(self.config.samples), encoder.frames(crop.length)
        label_t, masked_t = np.zeros(total, np.int32), np.zeros(total, bool)
        label_t[:frames] = self.labels.of(crop.index)[crop.start // hop :: encoder.hop // hop][:frames]
        masked_t[:frames] = draw_mask(frames, self.config.masking, rng)
        return {
            "audio_br": crop.audio,
            "length_b": np.int32(crop.length),
            "label_bt": label_t,
            "masked_bt": masked_t,
            "row_b": np.int32(rng.integers(2**31)),
        }


@dataclasses.dataclass(frozen=True)
class Hubert(ConfiguredPart):
    """One iteration; `before` is the name of the one before it in this run."""

    name: str
    config: HubertTraining
    before: str | None = None

    @property
    def accumulate(self) -> int:
        """Parts of a step."""
        return self.config.accumulate

    def outline(self) -> Outline:
        """The step with as many classes as the config asks for."""
        c = self.config
        labels = c.samples // c.label_hop
        rows = HubertRows(c, Labels(np.zeros(labels, np.int32), np.array([0, labels])))
        objective = HubertObjective(c, c.labels.clusters, seed=0)
        rule = UpdateRule(objective, make_optimizer(c.optimizer, c.loop.steps))
        return Outline(rule, rows(empty_crop(c.samples), np.random.default_rng(0)))

    def prepare(self, context: Context) -> Prepared:
        """Label the clips, and put the pieces together."""
        config, encoder = self.config, self.config.encoder
        extract, teacher = self._teacher(context)
        made_from = {
            "labels": dataclasses.asdict(config.labels),
            "encoder": [config.label_hop, encoder.receptive_field],
            "teacher": teacher,
            "data": context.data,
        }

        def make() -> dict[str, np.ndarray]:
            features = sampled_features(context.train, extract, config.labels.hours, context.seed)
            centroids, _ = kmeans.fit(features, config.labels.clusters, context.seed, restarts=config.labels.restarts)

            def classify(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
                return [kmeans.assign(x, centroids) for x in extract(clips)]

            def of_frames(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
                return [found[:: encoder.hop // config.label_hop] for found in classify(clips)]

            values = unit_quality(context.held_out, of_frames, encoder)
            if values:
                report(f"{self.name}: labels with {', '.join(f'{name} {value:.4g}' for name, value in values.items())}")
            return {"centroids": centroids, **split_arrays(context.train, context.held_out, classify)}

        train, held_out = split_labels(cached(context.directory / "labels", made_from, make))
        initial = None
        if config.start == "previous":
            if self.before is None:
                raise SpiritError(f"{self.name}.start: there is no iteration before to take weights from")
            before, found = read_pretraining(context.run / self.before / ENCODER)
            initial = found["encoder"]
            if before != encoder:
                raise SpiritError(f"{self.name}.start: the encoder of {self.before} has another shape")
        objective = HubertObjective(config, config.labels.clusters, context.seed, initial)
        data = CropData(
            train=context.train,
            held_out=context.held_out,
            shape=CropShape(config.samples, config.shortest, config.label_hop, encoder.hop - config.label_hop),
            train_row=HubertRows(config, train),
            held_out_row=HubertRows(config, held_out),
            rows=config.rows,
            seed=context.seed,
        )
        predict = self._prediction(objective)

        def measure(params: Params, step: int) -> Mapping[str, float]:
            """The quality of the classes that the network predicts without masks; nothing without aligned words."""
            del step
            # Each host computes alone, so it needs the parameters on its own devices only.
            run = functools.partial(predict, replicate(jax.device_get(params)))

            def classes(batch: Sequence[np.ndarray]) -> list[np.ndarray]:
                return [found for (found,) in encode_clips(run, batch, encoder.receptive_field, "classes")]

            return unit_quality(context.held_out, classes, encoder)

        return Prepared(
            rule=UpdateRule(objective, make_optimizer(config.optimizer, config.loop.steps), context.spike_sigmas),
            summary=RatioSummary(
                {
                    "loss": ("loss_masked", "masked"),
                    "masked_accuracy": ("correct_masked", "masked"),
                    "unmasked_accuracy": ("correct_unmasked", "unmasked"),
                    "feature_penalty": ("penalty", "counted"),
                }
            ),
            batches=data.batches,
            held_out=data.held_out_batches,
            finish=lambda params: save_pretraining(context.directory / ENCODER, encoder, params),
            measure=measure if len(context.held_out) else None,
        )

    def _prediction(self, objective: HubertObjective) -> Callable[..., tuple[Array, Array]]:
        """The class with the highest logit at each frame, from parameters, audio and lengths; compiled once a shape."""
        encoder = self.config.encoder

        def run(params: Params, audio_br: Array, lengths_b: Array) -> tuple[Array, Array]:
            masked_bt = jnp.zeros((len(audio_br), encoder.frames(audio_br.shape[1])), bool)
            outputs: Any = objective.model.apply({"params": params}, audio_br, lengths_b, masked_bt)
            logits_btk, frames_b = outputs
            return jnp.argmax(logits_btk, -1), frames_b

        return jit_float32(run)

    def _teacher(self, context: Context) -> tuple[Compute, Any]:
        """The function that computes the features to cluster, and what its results depend on, as JSON."""
        config, encoder = self.config, self.config.encoder
        if config.labels.source == "mfcc":

            def mfcc(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
                hop, field = config.label_hop, encoder.receptive_field
                return [label_features(clip, (clip.size - field) // hop + 1, hop, field) for clip in clips]

            return mfcc, "mfcc"
        if config.labels.source == "cepstra":
            return lambda clips: [cepstra(clip) for clip in clips], "cepstra"
        if config.labels.teacher is not None:
            directory = find(config.labels.teacher, f"{SPEECH_TOKENIZER}/phonetic")
            shape, params = read_phonetic_encoder(config.labels.teacher)
        elif self.before is not None:
            directory = context.run / self.before / ENCODER
            shape, found = read_pretraining(directory)
            params = found["encoder"]
        else:
            raise SpiritError(f"{self.name}.labels: source layer needs a teacher, or an iteration before this one")
        if (shape.hop, shape.receptive_field) != (encoder.hop, encoder.receptive_field):
            raise SpiritError(
                f"{self.name}.labels: the teacher has a frame of {shape.receptive_field} samples each {shape.hop}, "
                f"this encoder one of {encoder.receptive_field} each {encoder.hop}; they must be equal"
            )
        return layer_features(shape, params, config.labels.layer), read_checksums(directory)


def layer_features(config: Wav2Vec2Config, params: Params, layer: int) -> Compute:
    """The output of a layer (from 1) for each clip, float32 [T, D].

    Raises:
        ValueError: the encoder has no such layer.
    """
    model, params = truncate(config, params, layer)
    parts, params = for_inference(params)
    model, params = model.clone(parts=parts), replicate(params)
    apply = jit_float32(lambda params, audio_br, lengths_b: model.apply({"params": params}, audio_br, lengths_b))
    run = functools.partial(apply, params)

    def extract(clips: Sequence[np.ndarray]) -> list[np.ndarray]:
        found = encode_clips(run, clips, config.receptive_field, "frames")
        return [features for (features,) in found]

    return in_chunks(extract, config)


@dataclasses.dataclass(frozen=True)
class _Pretraining:
    """The parameters of a finished iteration, as `save_part` stores them."""

    kind: ClassVar[str] = "hubert_pretraining"

    encoder: Wav2Vec2Config
    params: Params

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "_Pretraining":
        """The parameters from the content of config.json and the arrays."""
        return cls(Wav2Vec2Config.from_dict(config["encoder"]), arrays)

    def config(self) -> dict[str, Any]:
        """The content of config.json, without the kind."""
        return {"encoder": dataclasses.asdict(self.encoder)}

    def arrays(self) -> dict[str, Any]:
        """The arrays, as stored."""
        return self.params


def save_pretraining(directory: str | os.PathLike, config: Wav2Vec2Config, params: Params) -> None:
    """Store the parameters of a finished iteration, those of `models.hubert.HubertPretraining`."""
    save_part(directory, _Pretraining(config, params))


def read_pretraining(directory: str | os.PathLike) -> tuple[Wav2Vec2Config, Params]:
    """The parameters of a finished iteration.

    Raises:
        CheckpointError: they are missing or damaged.
    """
    directory = pathlib.Path(directory)
    stored = _Pretraining.load(read_part_config(directory, (_Pretraining.kind,)), load_arrays(directory))
    return stored.encoder, stored.params


def read_phonetic_encoder(checkpoint: str) -> tuple[Wav2Vec2Config, Params]:
    """The encoder of the phonetic part of a checkpoint directory.

    Raises:
        CheckpointError: there is none, or it is no HuBERT.
    """
    directory = find(checkpoint, f"{SPEECH_TOKENIZER}/phonetic")
    config = read_part_config(directory, ("hubert",))
    try:
        return Wav2Vec2Config.from_dict(config["encoder"]), load_arrays(directory)["encoder"]
    except KeyError as error:
        raise CheckpointError(f"{directory}: has no {error}") from error
