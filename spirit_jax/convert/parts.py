"""The parts of the released speech tokenizer, and CTC networks for alignment: folders, files, tables and configs.

An imported part, `speech_tokenizer/<name>/`, holds `config.json` (`kind` and the sizes of the network),
`params.safetensors` (arrays by JAX path) and `released/` (`released_folder.py`).
"""

import pathlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from spirit_jax import checkpoint
from spirit_jax.convert.components import ctc, fcpe, hifigan, hubert, style, vqvae
from spirit_jax.convert.errors import ConversionError
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.released_folder import SPEECH_FOLDER
from spirit_jax.convert.table import Shapes
from spirit_jax.convert.weight_files import FCPE_FILE, WeightFile
from spirit_jax.core.files import shown

HUBERT_FILE, QUANTIZER_FILE = "mhubert_base_25hz.pt", "L11_quantizer_500.pt"
VQVAE_FILE, GENERATOR_FILE = "model.pt", "generator.pt"

# Names under which TWIST, GSLM and textless-lib publish quantizers and encoders, such as
# mhubert_base_25hz_cp_mls_cv_sp_fisher_L11_km500.bin and km.bin.
_KMEANS = r"(.*[-_.])?(km\d*|kmeans|quantizer|centroids|centers)([-_.].*)?\.(bin|pt|pkl|joblib|npy)"
_ENCODER = rf"(?!{_KMEANS}$)(?!.*(hifigan|generator)).*\.pt"

_LAYER_COUNTS = ("num_layers", "stages", "depth")
_MAX_LAYERS = 200

Contents = Mapping[str, Any]
"""The content of each file of a released folder, by its released name."""


@dataclass(frozen=True)
class ReleasedPart:
    """A part of the released speech tokenizer, or the network of an aligner."""

    name: str
    """Name of the part in a checkpoint directory."""
    folder: str
    """Released folder."""
    files: tuple[WeightFile, ...]
    config: Callable[[Contents], dict[str, Any]]
    """The part's config.json, from the contents of the released files."""
    extra_file: Callable[[Contents], str | None] = lambda _: None
    """Name of a further file that a released config refers to; its content joins the others if the file is there."""
    in_speech_tokenizer: bool = True
    """Whether it is a part of the speech tokenizer, on both sides."""

    @property
    def place(self) -> str:
        """Path of the part in a checkpoint directory."""
        return f"{checkpoint.SPEECH_TOKENIZER}/{self.name}" if self.in_speech_tokenizer else self.name

    @property
    def released_parent(self) -> str:
        """Folder of a released tree that holds the released folder."""
        return SPEECH_FOLDER if self.in_speech_tokenizer else "."


def _with_prefix(prefix: str, shapes: Shapes) -> Shapes:
    return {f"{prefix}{path}": shape for path, shape in shapes.items()}


def _starting_with(prefix: str, shapes: Shapes) -> Shapes:
    return {path: shape for path, shape in shapes.items() if path.startswith(prefix)}


def _hubert_config(contents: Contents) -> dict[str, Any]:
    encoder, quantizer = contents[HUBERT_FILE], contents[QUANTIZER_FILE]
    configs = encoder["model_cfg"], encoder["task_cfg"]
    if CENTERS not in quantizer:
        return hubert.part_config(*configs, quantizer["model_cfg"])
    return hubert.part_config(*configs, None, centers=quantizer[CENTERS].shape, layer=quantizer["layer"])


def _pitch_config(contents: Contents) -> dict[str, Any]:
    config = vqvae.part_config(contents["config.yaml"], contents.get(_speaker_stats(contents) or ""))
    if FCPE_FILE in contents:
        config["fcpe"] = fcpe.part_config(contents[FCPE_FILE]["config_dict"])
    return config


def _speaker_stats(contents: Contents) -> str | None:
    """Name of the file of the speakers' statistics, whose path in the config is the one at training time."""
    found = contents["config.yaml"].get("speaker_stats")
    return pathlib.PurePosixPath(found).name or None if isinstance(found, str) else None


def check_sizes(config: Mapping[str, Any]) -> None:
    """Check that a network has no more layers than can be handled before they are found missing in the weights.

    Raises:
        ConversionError: names the field of the part's config.
    """
    for network in (value for value in config.values() if isinstance(value, dict)):
        for name, value in network.items():
            layers = len(value) if isinstance(value, list | tuple) else value if name in _LAYER_COUNTS else 0
            if not isinstance(layers, int) or not 0 <= layers <= _MAX_LAYERS:
                raise ConversionError(f"{name} is {shown(value)}: at most {_MAX_LAYERS} layers expected")


def _vocoder(name: str, folder: str) -> ReleasedPart:
    generator = WeightFile(GENERATOR_FILE, lambda c: (hifigan.rows(c), hifigan.shapes(c)), ("generator",))

    def config(contents: Contents) -> dict[str, Any]:
        voices = contents.get("speakers.txt", ()), contents.get("styles.txt", ())
        return hifigan.part_config(contents["config.json"], *voices)

    return ReleasedPart(name, folder, (generator,), config)


RELEASED_PARTS = (
    ReleasedPart(
        "phonetic",
        "hubert_25hz",
        (
            WeightFile(
                HUBERT_FILE,
                lambda c: (hubert.rows(c), _starting_with("encoder/", hubert.shapes(c))),
                ("model_weight",),
                pattern=_ENCODER,
            ),
            WeightFile(
                QUANTIZER_FILE,
                lambda c: (hubert.quantizer_rows(c), _starting_with("quantizer/", hubert.shapes(c))),
                ("model_weight",),
                pattern=_KMEANS,
            ),
        ),
        _hubert_config,
    ),
    ReleasedPart(
        "pitch",
        "vqvae_f0_quantizer",
        (
            WeightFile(
                VQVAE_FILE,
                lambda c: (vqvae.rows(c["vqvae"], "vqvae/"), _with_prefix("vqvae/", vqvae.shapes(c["vqvae"]))),
                ("model",),
            ),
            WeightFile(
                FCPE_FILE,
                lambda c: (fcpe.rows(c["fcpe"], "fcpe/"), _with_prefix("fcpe/", fcpe.shapes(c["fcpe"]))),
                ("model",),
                folder="fcpe",
                config_key="fcpe",
            ),
        ),
        _pitch_config,
        _speaker_stats,
    ),
    ReleasedPart(
        "style",
        "style_encoder_w2v2",
        (WeightFile(None, lambda c: (style.rows(c), style.shapes(c))),),
        lambda contents: style.part_config(contents["config.json"]),
    ),
    _vocoder("vocoder_base", "hifigan_spiritlm_base"),
    _vocoder("vocoder_expressive", "hifigan_spiritlm_expressive_w2v2"),
)
"""Every part of the speech tokenizer, in the order in which jobs are listed."""


def _aligner_config(contents: Contents) -> dict[str, Any]:
    if "config.json" not in contents:
        (tensors,) = contents.values()
        return ctc.torchaudio_part_config(tensors)
    if "vocab.json" not in contents:
        raise ConversionError("vocab.json is missing: it gives the character of each output")
    others = (contents.get(name, {}) for name in ("tokenizer_config.json", "preprocessor_config.json"))
    return ctc.hf_part_config(contents["config.json"], contents["vocab.json"], *others)


ALIGNER_PART = ReleasedPart(
    "aligner",
    "aligner",
    (WeightFile(None, lambda c: (ctc.rows(c), ctc.shapes(c))),),
    _aligner_config,
    in_speech_tokenizer=False,
)
"""A network with a CTC head: the directory of a Hugging Face `Wav2Vec2ForCTC` or `HubertForCTC`, or MMS_FA's file."""

PARTS = (*RELEASED_PARTS, ALIGNER_PART)
"""Every part that can be converted, besides the language model."""
