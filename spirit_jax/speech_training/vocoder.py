"""The training of a unit HiFi-GAN as a part of a run: units of the clips, crops, voices, measures and samples."""

import dataclasses
import logging
from collections.abc import Sequence

import jax
import numpy as np

from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, find, load_arrays
from spirit_jax.core.errors import SpiritError
from spirit_jax.models.hifigan import fold_weight_norm, initialize, split_weight_norm
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.parallel.processes import report
from spirit_jax.speech import SpeechTokenizer
from spirit_jax.speech.released.vocoder import DEFAULT_STYLE, HifiGanVocoder
from spirit_jax.speech.storage import read_part_config
from spirit_jax.speech_training.clip_labels import match, read_labels
from spirit_jax.speech_training.clip_units import ClipUnits, clip_units
from spirit_jax.speech_training.crops import CropData, CropShape, empty_crop
from spirit_jax.speech_training.labels import Labels
from spirit_jax.speech_training.part import ConfiguredPart, Context, Outline, Prepared, RatioSummary
from spirit_jax.speech_training.release import save_trained_part
from spirit_jax.speech_training.vocoder_config import VocoderTraining
from spirit_jax.speech_training.vocoder_measures import VocoderMeasures, VocoderSamples
from spirit_jax.speech_training.vocoder_rows import VocoderRows, Voices
from spirit_jax.speech_training.vocoder_rule import GENERATOR, RATIOS, VocoderRule, gan_optimizer
from spirit_jax.training.state import Params
from spirit_jax.vocabulary import Variant

_LOG = logging.getLogger(__name__)


@dataclasses.dataclass(frozen=True)
class VocoderPart(ConfiguredPart):
    """A vocoder of a run: Base reads phonetic units, Expressive also pitch and style units."""

    variant: Variant
    config: VocoderTraining

    @property
    def name(self) -> str:
        """`vocoder_base` or `vocoder_expressive`."""
        return f"vocoder_{self.variant}"

    def outline(self) -> Outline:
        """The step with the tables of units and speakers that the config names; clips and encoders decide them."""
        c = self.config
        unit = Labels(np.zeros(1, np.int32), np.array([0, 1]))
        units = ClipUnits(unit, unit, unit, peaks=np.ones(1, np.float32), ids=[""], speakers=[""])
        rows = VocoderRows(c, c.network, units, speakers=[0], styles=[0])
        rule = VocoderRule(c, c.network, gan_optimizer(c.optimizer, epoch_steps=1000))
        return Outline(rule, rows(empty_crop(c.samples), np.random.default_rng(0)))

    def prepare(self, context: Context) -> Prepared:
        """Encode the clips, name the voices, and put the pieces together.

        Raises:
            SpiritError: no clip can be used, or an encoder, the initial vocoder or the table of styles does not fit.
        """
        config = self.config
        encoders = config.encoders or str(context.run)
        train, held_out = clip_units(context, encoders, self.variant)
        tokenizer = SpeechTokenizer.from_pretrained(encoders, variant=self.variant)
        network, before, initial = config.network, Voices((), ()), None
        if config.init_from is not None:
            network, before, initial = read_vocoder(config.init_from, self.name)
        voices, numbers = self._voices(train, held_out, before)
        network = self._sized(network, tokenizer, voices, initial is not None)
        if initial is not None:
            initial = with_rows(initial, network, context.seed)
        rows = [
            VocoderRows(config, network, units, voices.rows(units.speakers), styles)
            for units, styles in zip((train, held_out), numbers, strict=True)
        ]
        data = CropData(
            train=context.train,
            held_out=context.held_out,
            shape=CropShape(config.samples, config.samples, network.code_hop_size),
            train_row=rows[0],
            held_out_row=rows[1],
            rows=config.rows,
            seed=context.seed,
        )
        epoch = config.optimizer.decay_steps or max(len(context.train) // config.rows, 1)

        def trained(params: Params) -> HifiGanVocoder:
            generator = jax.device_get(params[GENERATOR])
            return HifiGanVocoder(network, generator, voices.speakers, voices.styles)

        measures = VocoderMeasures(context.held_out, rows[1], config.measured_clips)
        samples = VocoderSamples(context.held_out, rows[1], config.sampled_clips, context.directory, config.mel)
        return Prepared(
            rule=VocoderRule(config, network, gan_optimizer(config.optimizer, epoch), context.spike_sigmas, initial),
            summary=RatioSummary(RATIOS),
            batches=data.batches,
            held_out=data.held_out_batches,
            finish=lambda params: save_trained_part(context.run / SPEECH_TOKENIZER, self.name, trained(params)),
            sample=lambda params, step: samples(trained(params), step),
            measure=lambda params, step: measures(trained(params)),
        )

    def _voices(
        self, train: ClipUnits, held_out: ClipUnits, before: Voices
    ) -> tuple[Voices, tuple[Sequence[int], Sequence[int]]]:
        """The names of the tables, and the style of each clip: -1 for a clip that is not used.

        Raises:
            SpiritError: a chosen speaker has no clips, or the table of styles does not fit.
        """
        found = sorted({name for name, clip in zip(train.speakers, train.ids, strict=True) if clip})
        if self.config.speakers is not None:
            if missing := sorted({*self.config.speakers} - {*found}):
                raise SpiritError(
                    f"{self.name}.speakers: the training clips have no speaker {', '.join(map(repr, missing))}; they "
                    f"have {', '.join(map(repr, found))}"
                )
            found = sorted({*self.config.speakers})
        names = (*before.speakers, *(name for name in found if name not in before.speakers))
        if len(names) == 1 and not before.speakers:
            report(f"{self.name}: one speaker only ({names[0] or 'without a name'}): there is no table of speakers")
            names = ()
        elif self.config.speakers is None and (strangers := {*held_out.speakers} - {*names, ""}):
            _LOG.warning(
                "%s: %d held-out speakers are not among those to learn from (%s): their clips are measured in the "
                "voice %r",
                *(self.name, len(strangers), ", ".join(sorted(strangers)[:3]), names[0]),
            )
        if self.config.styles is None:
            usual = min(DEFAULT_STYLE, max(len(before.styles) - 1, 0))
            usual_styles = ([usual] * len(train.ids), [usual] * len(held_out.ids))
            return Voices(names, before.styles), self._of_speakers(usual_styles, train, held_out)
        if self.variant != "base":
            raise SpiritError(f"{self.name}.styles: an Expressive vocoder takes its styles from the units")
        labels = read_labels(self.config.styles)
        styles = (*before.styles, *sorted({*labels.values()} - {*before.styles}))
        numbers = []
        for ids, split in ((train.ids, "training"), (held_out.ids, "validation")):
            each, missing = match(
                ids, labels, styles, source=self.config.styles, skip=self.config.on_bad_label == "skip"
            )
            if missing:
                report(f"{self.name}: {len(missing)} {split} clips have no style in {self.config.styles}: skipped")
            numbers.append(each)
        return Voices(names, styles), self._of_speakers((numbers[0], numbers[1]), train, held_out)

    def _of_speakers(
        self, styles: tuple[Sequence[int], Sequence[int]], train: ClipUnits, held_out: ClipUnits
    ) -> tuple[Sequence[int], Sequence[int]]:
        """The styles of both splits, with -1 for the clips of speakers that are not among `config.speakers`."""
        chosen = self.config.speakers
        if chosen is None:
            return styles
        of_train, of_held_out = (
            [style if speaker in chosen else -1 for style, speaker in zip(each, units.speakers, strict=True)]
            for each, units in zip(styles, (train, held_out), strict=True)
        )
        return of_train, of_held_out

    def _sized(
        self, network: HifiGanConfig, tokenizer: SpeechTokenizer, voices: Voices, is_fixed: bool
    ) -> HifiGanConfig:
        """The network with tables for all units and voices.

        Raises:
            SpiritError: the tables of units of a vocoder that training begins with have other sizes.
        """
        expressive = self.variant == "expressive"
        units = {
            "num_embeddings": tokenizer.phonetic.unit_count,
            "num_f0_tokens": tokenizer.pitch.unit_count if expressive and tokenizer.pitch is not None else 0,
            "num_style_tokens": tokenizer.style.unit_count if expressive and tokenizer.style is not None else 0,
        }
        if is_fixed:
            for name, size in units.items():
                if getattr(network, name) != size:
                    raise SpiritError(
                        f"{self.name}.init_from: {name} is {getattr(network, name)} there, and the encoders give {size}"
                    )
        return dataclasses.replace(
            network,
            **units,
            num_speakers=max(network.num_speakers if is_fixed else 0, len(voices.speakers)),
            num_styles=max(network.num_styles if is_fixed else 0, len(voices.styles)),
        )


def read_vocoder(checkpoint: str, name: str) -> tuple[HifiGanConfig, Voices, Params]:
    """The network, the voices and the parameters of a vocoder in a checkpoint directory, weight norm in two factors.

    Raises:
        CheckpointError: there is none, or it is no HiFi-GAN.
    """
    directory = find(checkpoint, f"{SPEECH_TOKENIZER}/{name}")
    config = read_part_config(directory, (HifiGanVocoder.kind,))
    try:
        network = HifiGanConfig.from_dict(config["hifigan"])
    except (KeyError, ValueError) as error:
        raise CheckpointError(f"{directory}: not the config of a vocoder ({error})") from error
    voices = Voices(tuple(config.get("speakers", ())), tuple(config.get("styles", ())))
    params = load_arrays(directory)
    return network, voices, split_weight_norm(fold_weight_norm(params))


def with_rows(params: Params, network: HifiGanConfig, seed: int) -> Params:
    """The parameters with fresh rows at the end of each table that `network` has larger, or has alone."""
    fresh = jax.device_get(initialize(network, jax.random.key(seed)))
    result = dict(params)
    for name, tree in fresh.items():
        if not name.endswith("embedding"):
            continue
        rows = np.array(tree["embedding"])
        if name in params:
            known = np.asarray(params[name]["embedding"])
            rows[: len(known)] = known
        result[name] = {"embedding": rows}
    return result
