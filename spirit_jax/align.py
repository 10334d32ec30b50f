"""Find the times of words in recordings, so that training can interleave text and speech at word boundaries.

    python -m spirit_jax.align --input clips/ --output aligned
    python -m spirit_jax.align --input clips/ --output aligned --aligner train --language de
    python -m spirit_jax.align --input clips/ --output aligned --aligner wav2vec2-base-960h/
    python -m spirit_jax.align --input manifest.jsonl --output aligned --min-score 0.3 --write textgrid
    python -m spirit_jax.align --input clips/ --output aligned --transcribe moonshine
    python -m spirit_jax.align --input chapters/ --output aligned --max-seconds 20
    python -m spirit_jax.encode --checkpoint CHECKPOINT --input aligned/train.jsonl --output records/mine

The input is anything with speech that `encode` takes: a folder of recordings with a `.txt` file beside each, a
manifest, a prepared TFDS directory, a published corpus (`librispeech:DIR`) or a bundled one. The result is a manifest
with word times, a list of the clips that were left out and why, and a summary with a histogram of the word scores. The
same command resumes a job that was killed. Input, output and networks may also be in a bucket (gs://BUCKET/NAME). Start
it on any number of hosts that share the output, and they divide the work.
"""

import dataclasses
import logging
import os
import pathlib
from collections.abc import Sequence
from typing import TYPE_CHECKING

from spirit_jax import config
from spirit_jax.core.buckets import is_bucket
from spirit_jax.core.checks import check_seed
from spirit_jax.core.errors import exit_codes
from spirit_jax.core.files import read_json
from spirit_jax.core.paths import as_path, disk_path, local_path, output_path
from spirit_jax.corpora.alignment.aligner import Aligner, AlignmentError
from spirit_jax.corpora.alignment.attach import attach_alignments
from spirit_jax.corpora.alignment.job import AlignmentSettings, align_corpus, plot_scores
from spirit_jax.corpora.alignment.sphinx import SphinxAligner
from spirit_jax.corpora.alignment.voice_activity import VoiceDetector, open_voice_activity
from spirit_jax.corpora.alignment.writers import WRITERS
from spirit_jax.corpora.inputs import Input, open_input
from spirit_jax.corpora.shared_work import Sharing
from spirit_jax.speech.asr import Recognizer, open_recognizer

if TYPE_CHECKING:
    from spirit_jax.corpora.alignment.ctc_aligner import CTCNetwork

# Aligners are imported when they are opened: the networks of those with CTC need JAX.

PROG = "python -m spirit_jax.align"

SPHINX, TRAIN = "pocketsphinx", "train"
"""Values of `--aligner` besides the directory of a network."""


@dataclasses.dataclass(frozen=True)
class AlignConfig:
    """The input to align, the aligner, and the output.

    Raises:
        ValueError: an unknown aligner or kind of file, a score outside 0 to 1, or an invalid split, seed or time.
    """

    input: str
    """Folder or glob of audio files, manifest (.jsonl, .tsv), prepared TFDS directory, published corpus (NAME:DIR), or
    name of a bundled corpus."""
    output: str
    """Directory of the manifest, SPLIT.jsonl, and of what goes with it; may be in a bucket."""
    split: str = "train"
    """Split of the corpus to align; also the name of the manifest."""
    aligner: str = "pocketsphinx"
    """pocketsphinx (English, no download); train (any language: learns from this input first); or the directory of a
    network with a CTC head: one that `train` left, a Hugging Face Wav2Vec2ForCTC or HubertForCTC, MMS_FA's file, or a
    converted one."""
    transcribe: str | None = None
    """Recognizer that transcribes clips without a transcript: moonshine (English, no download) or whisper:DIR. Their
    words are flagged in the manifest."""
    write: tuple[str, ...] = ()
    """Further files to write: textgrid, ctm, librispeech."""
    language: str = "en"
    """Language of the transcripts, for numbers and abbreviations: a code that num2words knows."""
    min_score: float = 0.0
    """Clips whose words have a lower mean score are left out and counted; scores of different aligners differ."""
    max_seconds: float | None = None
    """Cut longer recordings at pauses and sentence ends into utterances of at most this many seconds; 20 suits
    training. Without it nothing is cut."""
    voice_activity: VoiceDetector | None = None
    """Detector of voice in recordings without a transcript, before they are cut: energy, or silero (extra vad). By
    default silero where it is installed."""
    alignments: str | None = None
    """File or folder with word times of other tools (.TextGrid, .ctm, .lab, .alignment.txt, .json); clips that have
    them there keep them, as with `keep_times`."""
    keep_times: bool = False
    """Clips whose words have times in the input keep them; only the others are aligned."""
    seed: int = 0
    """Seed of the training of an aligner."""
    lease_seconds: float = 120
    """Seconds without a sign of life from another host after which this one takes its work over."""
    overwrite: bool = False
    """Replace a finished alignment of another input, aligner or setting."""

    def __post_init__(self) -> None:
        from spirit_jax.data.records import check_split_name

        self.alignment()
        check_seed(self.seed)
        check_split_name(self.split)
        if not self.lease_seconds > 0:
            raise ValueError(f"lease_seconds must be positive, found {self.lease_seconds}")
        named = self.aligner in (SPHINX, TRAIN) or is_bucket(self.aligner)
        if not named and not os.path.isdir(disk_path(self.aligner, "--aligner")):
            raise ValueError(
                f"aligner {self.aligner!r} is unknown; choose among {SPHINX}, {TRAIN} and the directory of a network"
            )
        unknown = [name for name in self.write if name not in WRITERS]
        if unknown:
            raise ValueError(f"write: {unknown[0]!r} is unknown; choose among {', '.join(WRITERS)}")

    def alignment(self) -> AlignmentSettings:
        """The options that decide words and times."""
        keep_times = self.keep_times or self.alignments is not None
        return AlignmentSettings(self.language, self.min_score, self.max_seconds, keep_times)


def open_aligner(settings: AlignConfig, corpus: Input, output: str, recognizer: Recognizer | None) -> Aligner:
    """The aligner that `--aligner` names.

    Args:
        settings: name the aligner.
        corpus: what an aligner learns from that is trained here.
        output: directory that such an aligner is stored in.
        recognizer: writes the transcripts that are missing.

    Raises:
        AlignmentError, CheckpointError: it cannot be read.
        BucketError, BucketJobError: it is in a bucket that cannot be read.
    """
    if settings.aligner == SPHINX:
        return SphinxAligner()
    if settings.aligner == TRAIN:
        from spirit_jax.corpora.alignment.training import AlignerTraining, TrainedAligner

        directory, training = f"{output}/{settings.split}.aligner", AlignerTraining(seed=settings.seed)
        return TrainedAligner(
            corpus, directory, settings.language, training, recognizer=recognizer, stale_after=settings.lease_seconds
        )
    from spirit_jax.corpora.alignment.ctc_aligner import CTCAligner

    return CTCAligner(_open_network(pathlib.Path(local_path(settings.aligner, "--aligner"))))


def _open_network(directory: pathlib.Path) -> "CTCNetwork":
    """A network with a CTC head: trained here, converted, or as released."""
    import numpy as np

    from spirit_jax import checkpoint
    from spirit_jax.convert.errors import ConversionError
    from spirit_jax.convert.part_import import import_part
    from spirit_jax.convert.parts import ALIGNER_PART
    from spirit_jax.corpora.alignment.mel_network import MelNetwork
    from spirit_jax.corpora.alignment.training import load_network
    from spirit_jax.corpora.alignment.wav2vec2_network import Wav2Vec2Network

    converted = directory / ALIGNER_PART.place
    path = (converted if converted.is_dir() else directory) / checkpoint.CONFIG
    stored = read_json(path, AlignmentError) if path.is_file() else {}
    kind = stored.get("kind") if isinstance(stored, dict) else None
    if kind == MelNetwork.kind:
        return load_network(path.parent)
    if kind == Wav2Vec2Network.kind:
        found, arrays = stored, checkpoint.load_arrays(path.parent)
    else:
        try:
            imported = import_part(ALIGNER_PART, directory)
        except ConversionError as error:
            raise AlignmentError(f"--aligner {directory}: {error}") from error
        found = imported.config
        arrays = checkpoint.unflatten({path: np.asarray(array) for path, array in imported.arrays.items()})
    try:
        return Wav2Vec2Network(directory.resolve().name, found, arrays)
    except (KeyError, TypeError) as error:
        raise AlignmentError(f"{path}: not the config of a network with a CTC head ({error})") from error


def align(settings: AlignConfig) -> None:
    """Run the job, print its summary and draw its histogram.

    Raises:
        PathError: not a path.
        BucketError, BucketJobError: a path is in a bucket that cannot be used.
        CorpusError, AlignmentError, CheckpointError, RecognizerError, VoiceActivityError: input, aligner, recognizer or
            detector of voice cannot be used.
        JobError: no clip could be aligned.
    """
    from spirit_jax.parallel.processes import place_in_job

    output = output_path(settings.output, "--output")
    corpus = open_input(settings.input, settings.split)
    if settings.alignments is not None:
        corpus = attach_alignments(corpus, settings.alignments)
    recognizer = open_recognizer(settings.transcribe) if settings.transcribe else None
    summary = align_corpus(
        corpus,
        open_aligner(settings, corpus, output, recognizer),
        output,
        settings.alignment(),
        recognizer=recognizer,
        activity=open_voice_activity(settings.voice_activity),
        write=settings.write,
        overwrite=settings.overwrite,
        sharing=Sharing(settings.lease_seconds, *place_in_job()),
    )
    print(summary)
    try:
        plot_scores(summary, as_path(output) / f"{settings.split}.scores.png")
    except ImportError:
        print("no histogram of the scores: install matplotlib, pip install 'spirit_jax[plots]'")
    manifest = as_path(output) / f"{settings.split}.jsonl"
    print(f"next: python -m spirit_jax.encode --input {manifest} --checkpoint CHECKPOINT --output DIR")


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line."""
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    settings = config.parse(AlignConfig, arguments, PROG, __doc__)
    with exit_codes(PROG, interrupted="interrupted; the same command resumes the job"):
        align(settings)


if __name__ == "__main__":
    main()
