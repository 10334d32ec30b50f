"""Preparation of corpora as TFDS directories of ArrayRecord files, without TensorFlow."""

import contextlib
import io
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from spirit_jax.core.files import atomic_directory
from spirit_jax.corpora.utterance import CorpusError, Utterance

_VERSION = "1.0.0"


def write_corpus(
    directory: str | os.PathLike, name: str, splits: Mapping[str, Iterable[Utterance]], description: str
) -> pathlib.Path:
    """Prepare `directory/name/1.0.0`, a TFDS directory that `open_corpus` and `tfds.builder_from_directory` read.

    Utterances keep their order. The write is atomic: a corpus of that name is replaced when the new one is complete.

    Example::

        write_corpus("data", "my_corpus", {"train": utterances}, "Sentences read by me.")

    Args:
        directory: the TFDS data directory.
        name: of the dataset, lower case with underscores.
        splits: utterances of each split, all with audio or all without.
        description: a sentence for `dataset_info.json`.

    Returns:
        The directory that holds the records.

    Raises:
        CorpusError: there are no utterances, some have audio and some have not, or an audio file cannot be read.
    """
    import tensorflow_datasets as tfds

    splits = {split: list(utterances) for split, utterances in splits.items()}
    with_audio = {utterance.audio is not None for utterances in splits.values() for utterance in utterances}
    if len(with_audio) != 1:
        raise CorpusError(f"corpus {name!r} needs utterances that all have audio or that all have none")
    features: dict[str, Any] = {"id": tfds.features.Text(), "text": tfds.features.Text()}
    if with_audio == {True}:
        features["speaker"] = tfds.features.Text()
        features["audio"] = tfds.features.Scalar(np.object_)
        features["words"] = tfds.features.Sequence(
            {
                "word": tfds.features.Text(),
                "start_ms": tfds.features.Scalar(np.int32),
                "end_ms": tfds.features.Scalar(np.int32),
            }
        )

    class Builder(tfds.core.GeneratorBasedBuilder, skip_registration=True):
        VERSION = tfds.core.Version(_VERSION)
        code_path = None  # TFDS would look for files beside the code, with a package that it does not require

        def _info(self):
            return tfds.core.DatasetInfo(
                builder=self,
                description=description,
                features=tfds.features.FeaturesDict(features),
                disable_shuffling=True,
            )

        def _split_generators(self, dl_manager):
            return {split: self._generate_examples(utterances) for split, utterances in splits.items()}

        def _generate_examples(self, utterances):
            for index, utterance in enumerate(utterances):
                yield index, {key: _FEATURES[key](utterance) for key in features}

    Builder.name = name
    target = pathlib.Path(directory) / name
    with atomic_directory(target, overwrite=True) as staging, tempfile.TemporaryDirectory() as scratch:
        silence = io.StringIO()  # TFDS announces a download, which does not take place
        with contextlib.redirect_stdout(silence), contextlib.redirect_stderr(silence):
            Builder(data_dir=scratch, file_format="array_record").download_and_prepare()
        shutil.copytree(pathlib.Path(scratch) / name, staging, dirs_exist_ok=True)
    return target / _VERSION


_FEATURES = {
    "id": lambda utterance: utterance.id,
    "text": lambda utterance: utterance.text,
    "speaker": lambda utterance: utterance.speaker,
    "audio": lambda utterance: utterance.audio_bytes(),
    "words": lambda utterance: [
        {"word": word, "start_ms": int(start), "end_ms": int(end)}
        for word, (start, end) in zip(utterance.words, utterance.spans_ms.tolist(), strict=True)
    ],
}
"""Functions that take each feature from an utterance."""
