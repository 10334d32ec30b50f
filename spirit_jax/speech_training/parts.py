"""The parts that a config trains, in the order in which they are trained."""

import dataclasses

from spirit_jax.checkpoint import SPEECH_TOKENIZER
from spirit_jax.core.errors import SpiritError
from spirit_jax.models.wav2vec2_config import Wav2Vec2Config
from spirit_jax.parallel.processes import is_primary, report
from spirit_jax.speech.config import SpeechTokenizerConfig
from spirit_jax.speech.loading import load_phonetic_encoder, load_pitch_encoder, load_style_encoder
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.scratch.trainer import TrainedEncoders, complete_speech_tokenizer, train_speech_tokenizer
from spirit_jax.speech.storage import has_kind
from spirit_jax.speech_training.config import TrainSpeechConfig
from spirit_jax.speech_training.hubert import Hubert
from spirit_jax.speech_training.part import Context, Part
from spirit_jax.speech_training.pitch import PitchPart
from spirit_jax.speech_training.purity import unit_quality
from spirit_jax.speech_training.quantizers import PHONETIC, Quantizer, Units
from spirit_jax.speech_training.style import ClassifierPart, StylePart
from spirit_jax.speech_training.vocoder import VocoderPart
from spirit_jax.training.config import LoopConfig


def parts(settings: TrainSpeechConfig) -> list[Part]:
    """The parts of the sections that are not null.

    Raises:
        SpiritError: a quantizer without the units that teach it.
    """
    found: list[Part] = []
    before: str | None = None
    for name in ("hubert_1", "hubert_2", "hubert_3"):
        section = getattr(settings, name)
        if section is not None:
            found.append(Hubert(name, section, before))
            before = name
    if settings.units is not None:
        found.append(Units(settings.units, before))
    if settings.quantizer is not None:
        if settings.units is None:
            raise SpiritError("quantizer: needs the section units, whose clusters are its first teacher")
        teacher = "units"
        for number in range(1, settings.quantizer.rounds + 1):
            found.append(Quantizer(f"quantizer_{number}", settings.quantizer, teacher))
            teacher = f"quantizer_{number}"
    if settings.pitch is not None:
        found.append(PitchPart(settings.pitch))
    if settings.style is not None:
        found.append(StylePart(settings.style))
    if settings.classifier is not None:
        found.append(ClassifierPart(settings.classifier))
    if settings.vocoder_base is not None:
        found.append(VocoderPart("base", settings.vocoder_base))
    if settings.vocoder_expressive is not None:
        found.append(VocoderPart("expressive", settings.vocoder_expressive))
    if settings.scratch is not None:
        found.append(Scratch(settings.scratch))
    return found


@dataclasses.dataclass(frozen=True)
class Scratch:
    """The parts that no section trains, learned from scratch in seconds."""

    config: SpeechTokenizerConfig
    name: str = "scratch"
    rows: int = 1
    accumulate: int = 1
    loop: LoopConfig = LoopConfig(steps=1)

    def outline(self) -> None:
        """Nothing is trained by gradients."""

    def prepare(self, context: Context) -> None:
        """Learn and write them, in the primary process. Parts that were learned from scratch before are replaced."""
        if not is_primary():
            return
        utterances = context.train.utterances
        if has_kind(context.run / SPEECH_TOKENIZER / PHONETIC, HubertEncoder.kind):
            place = context.run / SPEECH_TOKENIZER
            trained = TrainedEncoders(
                phonetic=load_phonetic_encoder(context.run),
                pitch=load_pitch_encoder(context.run) if has_kind(place / "pitch", VQVAEPitch.kind) else None,
                style=load_style_encoder(context.run) if has_kind(place / "style", Wav2Vec2Style.kind) else None,
            )
            names = complete_speech_tokenizer(utterances, self.config, context.run, trained, context.seed)
            report(f"{self.name}: learned {', '.join(names) or 'nothing'}")
        else:
            train_speech_tokenizer(utterances, self.config, context.run, context.seed)
            encoder = load_phonetic_encoder(context.run)
            values = unit_quality(context.held_out, encoder.encode_batch, Wav2Vec2Config())
            measures = "".join(f", {name} {value:.4g}" for name, value in values.items())
            report(f"{self.name}: learned all parts{measures}")
