"""The released files of a part that was trained here: descriptions with which `export` writes them."""

import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

from spirit_jax.convert.components import hubert
from spirit_jax.convert.formats.arrays import ReadableArray
from spirit_jax.convert.formats.numpy_pickle import CENTERS
from spirit_jax.convert.parts import HUBERT_FILE, QUANTIZER_FILE, RELEASED_PARTS
from spirit_jax.convert.released_folder import ReleasedFolder, describe_verbatim
from spirit_jax.convert.table import tensor_mappings
from spirit_jax.convert.weight_files import WeightFile

_STATE = "$state"


def describe_file(
    file: WeightFile, config: Mapping[str, Any], content: Mapping[str, Any], unused: Sequence[str] = ()
) -> dict[str, Any]:
    """The description of a weight file (`released_folder.describe`) whose tensors are those of a part.

    Args:
        file: which file.
        config: the part's config.json.
        content: what the file holds beside the tensors.
        unused: names of further tensors.
    """
    rows, shapes = file.table(config)
    names = [mapping.names[0] for mapping in tensor_mappings(rows, shapes)]
    description: Any = {_STATE: "dict", "keys": [*names, *unused]}
    for key in reversed(file.state_keys[1:]):
        description = {key: description}
    return {**content, file.state_keys[0]: description}


def hubert_folder(
    config: Mapping[str, Any], unused: Mapping[str, ReadableArray], centroids: pathlib.Path | None
) -> ReleasedFolder:
    """The released files of a HuBERT with its quantizer: `mhubert_base_25hz.pt`, and a linear quantizer or centroids.

    Args:
        config: the part's config.json.
        unused: tensors of the encoder's file that the part does not read, such as the mask vector of pre-training.
        centroids: a `.npy` file of the centroids; None for a linear quantizer.
    """
    (part,) = (part for part in RELEASED_PARTS if part.name == "phonetic")
    encoder, quantizer = part.files
    content = {
        "task_cfg": {"sample_rate": 16_000, "normalize": False},
        "model_cfg": hubert.model_config(config["encoder"]),
        "dictionaries_symbols": [],
    }
    descriptions: dict[str, Any] = {HUBERT_FILE: describe_file(encoder, config, content, list(unused))}
    if centroids is not None:
        descriptions[centroids.name] = describe_verbatim([CENTERS])
        return ReleasedFolder([centroids], descriptions, {HUBERT_FILE: unused})
    sizes = config["quantizer"]
    content = {"model_cfg": {"vocab_size": sizes["units"], "dim": sizes["dim"], "upstream_dim": sizes["upstream_dim"]}}
    descriptions[QUANTIZER_FILE] = describe_file(quantizer, config, content)
    return ReleasedFolder([], descriptions, {HUBERT_FILE: unused})
