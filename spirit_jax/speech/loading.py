"""Loads the parts of a speech tokenizer from a checkpoint directory, and identifies encoders by their files.

The "kind" in a part's config.json chooses its class. The tables below hold the classes of each role.
"""

import contextlib
import functools
import hashlib
import itertools
import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, get_args

from spirit_jax.checkpoint import SPEECH_TOKENIZER, CheckpointError, find, load_arrays
from spirit_jax.core.checksums import is_checksums
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import shown
from spirit_jax.speech.protocols import F0Extractor, PhoneticEncoder, PitchEncoder, StyleEncoder, Vocoder
from spirit_jax.speech.released.phonetic import HubertEncoder
from spirit_jax.speech.released.pitch import VQVAEPitch
from spirit_jax.speech.released.style import Wav2Vec2Style
from spirit_jax.speech.released.vocoder import HifiGanVocoder
from spirit_jax.speech.scratch.griffin_lim import GriffinLim
from spirit_jax.speech.scratch.kmeans import KMeansEncoder
from spirit_jax.speech.scratch.prosody import F0Quantiles, VoiceStatistics
from spirit_jax.speech.storage import read_part_config
from spirit_jax.units import HUBERT_RATE
from spirit_jax.vocabulary import Variant

_Role = TypeVar("_Role")
_Loader = Callable[[Mapping[str, Any], dict[str, Any]], _Role]

PHONETIC_ENCODERS: Mapping[str, _Loader[PhoneticEncoder]] = {
    HubertEncoder.kind: HubertEncoder.load,
    KMeansEncoder.kind: KMeansEncoder.load,
}
PITCH_ENCODERS: Mapping[str, _Loader[PitchEncoder]] = {
    VQVAEPitch.kind: VQVAEPitch.load,
    F0Quantiles.kind: F0Quantiles.load,
}
STYLE_ENCODERS: Mapping[str, _Loader[StyleEncoder]] = {
    Wav2Vec2Style.kind: Wav2Vec2Style.load,
    VoiceStatistics.kind: VoiceStatistics.load,
}
VOCODERS: Mapping[str, _Loader[Vocoder]] = {
    HifiGanVocoder.kind: HifiGanVocoder.load,
    GriffinLim.kind: GriffinLim.load,
}

ENCODER_PARTS: Mapping[Variant, tuple[str, ...]] = {
    "base": ("phonetic",),
    "expressive": ("phonetic", "pitch", "style"),
}
"""The directories under `speech_tokenizer/` that hold the encoders of each variant."""


def load_phonetic_encoder(directory: str | os.PathLike) -> PhoneticEncoder:
    """Load `speech_tokenizer/phonetic` of a checkpoint directory.

    Raises:
        CheckpointError: the part is missing, damaged or of an unknown kind, or does not give 25 units a second.
    """
    encoder = _load(directory, "phonetic", PHONETIC_ENCODERS)
    if isinstance(encoder, HubertEncoder) and encoder.encoder.hop * HUBERT_RATE != SAMPLE_RATE:
        raise CheckpointError(
            f"{directory}: its HuBERT gives {SAMPLE_RATE / encoder.encoder.hop:g} units a second; Spirit LM, its "
            f"records and vocoders have {HUBERT_RATE:g}; use a 25 Hz HuBERT"
        )
    return encoder


def load_pitch_encoder(directory: str | os.PathLike, f0: F0Extractor = "fcpe") -> PitchEncoder:
    """Load `speech_tokenizer/pitch` of a checkpoint directory.

    Args:
        directory: a checkpoint directory.
        f0: the F0 extractor of a released part. A part trained from scratch always uses its own.

    Raises:
        CheckpointError: the part is missing, damaged or of an unknown kind, or lacks the weights of the extractor.
        ValueError: an unknown extractor.
    """
    released = functools.partial(VQVAEPitch.load, f0=f0)
    return _load(directory, "pitch", {**PITCH_ENCODERS, VQVAEPitch.kind: released})


def load_style_encoder(directory: str | os.PathLike) -> StyleEncoder:
    """Load `speech_tokenizer/style` of a checkpoint directory.

    Raises:
        CheckpointError: the part is missing, damaged or of an unknown kind.
    """
    return _load(directory, "style", STYLE_ENCODERS)


def load_vocoder(directory: str | os.PathLike, variant: Variant) -> Vocoder:
    """Load `speech_tokenizer/vocoder_{variant}` of a checkpoint directory.

    Raises:
        CheckpointError: the part is missing, damaged or of an unknown kind.
    """
    return _load(directory, f"vocoder_{variant}", VOCODERS)


def has_vocoder(directory: str | os.PathLike, variant: Variant) -> bool:
    """Whether a checkpoint directory has `speech_tokenizer/vocoder_{variant}`."""
    try:
        find(directory, f"{SPEECH_TOKENIZER}/vocoder_{variant}")
    except CheckpointError:
        return False
    return True


def variant_of(directory: str | os.PathLike) -> Variant:
    """The variant of a checkpoint's encoders: "base" if it has a phonetic encoder and neither of the two others.

    Raises:
        CheckpointError: no such directory, or no `speech_tokenizer/` in it.
    """
    find(directory, SPEECH_TOKENIZER)

    def has(part: str) -> bool:
        try:
            find(directory, f"{SPEECH_TOKENIZER}/{part}")
        except CheckpointError:
            return False
        return True

    return "base" if has("phonetic") and not (has("pitch") or has("style")) else "expressive"


def check_f0(directory: str | os.PathLike, variant: Variant, f0: F0Extractor) -> None:
    """Check that an F0 extractor that the user names is used.

    Raises:
        CheckpointError: the variant has no pitch units, or the pitch encoder is missing or finds F0 in its own way.
        ValueError: an unknown extractor.
    """
    if f0 not in get_args(F0Extractor):
        raise ValueError(f"f0 must be one of {', '.join(get_args(F0Extractor))}, found {f0!r}")
    if "pitch" not in ENCODER_PARTS[variant]:
        raise CheckpointError(f"f0 {f0}: the {variant} variant has no pitch units; leave f0 out")
    path = find(directory, f"{SPEECH_TOKENIZER}/pitch")
    config = read_part_config(path, PITCH_ENCODERS.keys())
    if config["kind"] != VQVAEPitch.kind or "f0" in config:
        raise CheckpointError(
            f"f0 {f0}: {path} is of kind {config['kind']!r}, which finds F0 in its own way; leave f0 out"
        )


def _load(directory: str | os.PathLike, name: str, loaders: Mapping[str, _Loader[_Role]]) -> _Role:
    path = find(directory, f"{SPEECH_TOKENIZER}/{name}")
    config = read_part_config(path, loaders.keys())
    arrays = load_arrays(path)
    try:
        return loaders[config["kind"]](config, arrays)
    except (LookupError, TypeError, AttributeError, ArithmeticError) as error:
        raise CheckpointError(f"{path}: incomplete {config['kind']!r} part ({shown(error)})") from error


def fingerprint(directory: str | os.PathLike, variant: Variant, f0: F0Extractor) -> str:
    """The sha256 (hex) of everything that decides the units of `variant`: the encoders' files and the F0 extractor.

    The extractor counts only if the pitch encoder is a released one.

    Raises:
        CheckpointError: an encoder is missing or of an unknown kind.
    """
    digest = hashlib.sha256()
    for name in ENCODER_PARTS[variant]:
        path = find(directory, f"{SPEECH_TOKENIZER}/{name}")
        digest.update(name.encode())
        for file in sorted(file for file in path.iterdir() if file.is_file() and not is_checksums(file.name)):
            digest.update(file.name.encode() + file.read_bytes())
        if name == "pitch" and read_part_config(path, PITCH_ENCODERS.keys())["kind"] == VQVAEPitch.kind:
            digest.update(f0.encode())
    return digest.hexdigest()


def speech_fingerprints(directory: str | os.PathLike) -> set[str]:
    """Every `SpeechTokenizer.fingerprint` that the encoders of a checkpoint directory can have.

    Fingerprints differ by variant and by F0 extractor. The set is empty if the checkpoint has no encoders.
    """
    found = set()
    for variant, f0 in itertools.product(ENCODER_PARTS, get_args(F0Extractor)):
        with contextlib.suppress(CheckpointError):
            found.add(fingerprint(directory, variant, f0))
    return found
