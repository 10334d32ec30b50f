"""Trains an aligner on the corpus that it is to align: any language, nothing to download.

The network learns from transcripts alone which characters each frame may belong to, by the sum over all alignments
(`models.ctc.ctc_loss`). Four choices make it learn fast and align sharply:

- At first, Gaussians that have learned the same transcripts lead the network (`flat_start`), because all paths look
  alike to a network that knows nothing. Without this it may learn the frequencies of the characters and little else.
- Characters follow each other without blanks. The blank is silence and may stand only between words.
- Scaled logarithms of label priors are subtracted (Huang et al. 2024, arXiv 2406.02560), so that no symbol, and above
  all not silence, takes the frames of others.
- Each output sees a fraction of a second, so that symbols stay where their sounds are.
"""

import collections
import dataclasses
import functools
import hashlib
import json
import math
import os
import pathlib
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple, cast

import flax.serialization
import jax
import jax.numpy as jnp
import numpy as np
import optax
import tqdm
from jaxtyping import Float

from spirit_jax import checkpoint
from spirit_jax.audio import AudioError
from spirit_jax.checkpoint import CONFIG, CheckpointError, load_arrays
from spirit_jax.core.arithmetic import round_up
from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.core.files import read_bytes, read_json, remove_file, write_file
from spirit_jax.core.leases import hold_anywhere
from spirit_jax.core.paths import as_path
from spirit_jax.core.working_copy import output_directory
from spirit_jax.corpora.alignment.aligner import SILENT, AlignmentError, WordTime
from spirit_jax.corpora.alignment.alphabet import Alphabet, LabelSequence
from spirit_jax.corpora.alignment.ctc_aligner import CTCAligner
from spirit_jax.corpora.alignment.flat_start import LIKELIHOOD_SCALE, Gaussians, cepstra, flat_start
from spirit_jax.corpora.alignment.mel_network import MelNetwork, mel_features
from spirit_jax.corpora.alignment.padding import padded_size
from spirit_jax.corpora.alignment.spelling import SpelledWord, spell
from spirit_jax.corpora.inputs import Input
from spirit_jax.corpora.utterance import CorpusError
from spirit_jax.models.ctc import ctc_loss
from spirit_jax.models.mel_ctc import MelCTC, MelCTCConfig
from spirit_jax.speech.asr import Recognizer
from spirit_jax.speech.storage import read_part_config, save_part

_FORMAT = 2  # changes when the same corpus gives another network
_PRIOR_DECAY = 0.98  # of the running label prior, in a step
_GUIDED = 0.3  # the part of the training in which the Gaussians lead, less and less
_FLAT_START_FRAMES = 180_000  # half an hour is enough for the Gaussians

_FLAT_START_BATCH = 4  # batches of the training in a batch of the flat start

LONGEST_CLIP_S = 30
"""Longer clips are aligned, but not learned from."""

MIN_MINUTES = 2.0
"""Least speech to learn from."""

RARE = 3
"""A character in fewer clips is not learned; words that hold it are aligned by their other characters."""


@dataclasses.dataclass(frozen=True)
class AlignerTraining:
    """Settings for training an aligner. Equal settings, corpus and machine give an equal network.

    Raises:
        ValueError: a number that is not positive.
    """

    seed: int = 0
    """Seed of the initial weights and of the order of the clips."""
    max_hours: float = 4.0
    """Most speech to learn from, in clips drawn at random; it bounds the time of the training."""
    passes: int = 12
    """Passes over the speech, at least."""
    min_hours_seen: float = 4.0
    """Little speech is passed over more often, until this much was seen."""
    prior_scale: float = 0.4
    """Scale of the label priors, 0 to 1."""
    learning_rate: float = 3e-3
    """Peak of the schedule, a cycle of one cosine up and down."""
    batch_frames: int = 3000
    """Frames of 10 ms in a batch, padding included."""
    width: int = 128
    """Channels of the network."""

    def __post_init__(self) -> None:
        for name in ("max_hours", "passes", "min_hours_seen", "learning_rate", "batch_frames", "width"):
            if not getattr(self, name) > 0:
                raise ValueError(f"{name} must be positive, found {getattr(self, name)}")


class _Clip(NamedTuple):
    mel_tc: Float[np.ndarray, "T bands"]
    labels: LabelSequence


class _State(NamedTuple):
    params: Any
    optimizer: Any
    prior_v: jax.Array
    gaussians: Gaussians


def trained_network(
    corpus: Input,
    directory: str | os.PathLike,
    language: str = "en",
    training: AlignerTraining = AlignerTraining(),
    *,
    recognizer: Recognizer | None = None,
    progress: bool = True,
    stale_after: float = 120,
) -> MelNetwork:
    """The network trained on a split; it is trained now unless `directory` holds it.

    A training that was killed resumes at its last pass. If several processes share `directory`, one of them trains, and
    the others wait for it.

    Args:
        corpus: a split with speech and transcripts.
        directory: where the network is stored, also in a bucket.
        language: of the transcripts, as for `spell`.
        training: how it is trained.
        recognizer: writes transcripts for clips without one.
        progress: whether to show a progress bar.
        stale_after: seconds without a sign of life from another host after which its training is taken over.

    Raises:
        AlignmentError: too little speech with transcripts; says how much there is.
        BucketError, BucketJobError: the directory is in a bucket that cannot be used.
    """
    place = as_path(directory)
    name = _network_name(corpus, language, training, recognizer)
    if (network := _stored_network(place, name)) is not None:
        return network
    lock, what = f".{place.name}.lock", "training of an aligner"
    with hold_anywhere(place.parent, lock, what, wait=math.inf, stale_after=stale_after):
        if (network := _stored_network(place, name)) is not None:
            return network
        clips, alphabet = _load_clips(corpus, language, training, recognizer, progress)
        network = _train(clips, alphabet, name, training, place.parent / f".{place.name}.training", progress)
        with output_directory(os.fspath(place), "--output", lambda name: False) as local:
            save_part(local, network)
    return network


def _stored_network(directory: Any, name: str) -> MelNetwork | None:
    """The network of a name in a directory, None if there is none or another one."""
    if not (directory / CONFIG).is_file():
        return None
    config = read_json(directory / CONFIG, CheckpointError)
    if not isinstance(config, dict) or config.get("name") != name:
        return None
    return load_network(checkpoint.local_directory(directory, "--output"))


class TrainedAligner:
    """The `Aligner` of a corpus. It is trained, or read from its directory, when it aligns its first clips.

    So a job that is finished, or refused, trains nothing.
    """

    def __init__(
        self,
        corpus: Input,
        directory: str | os.PathLike,
        language: str = "en",
        training: AlignerTraining = AlignerTraining(),
        *,
        recognizer: Recognizer | None = None,
        stale_after: float = 120,
    ) -> None:
        """As `trained_network`."""
        self.name = _network_name(corpus, language, training, recognizer)
        self._network = functools.partial(
            trained_network, corpus, directory, language, training, recognizer=recognizer, stale_after=stale_after
        )

    @functools.cached_property
    def _aligner(self) -> CTCAligner:
        return CTCAligner(self._network())

    def align(
        self, clips: Sequence[Float[np.ndarray, " R"]], transcripts: Sequence[Sequence[SpelledWord]]
    ) -> list[list[WordTime] | AlignmentError]:
        """As `Aligner.align`.

        Raises:
            AlignmentError, CheckpointError: the aligner cannot be trained or read.
        """
        return self._aligner.align(clips, transcripts)


def load_network(directory: str | os.PathLike) -> MelNetwork:
    """Read a network that `trained_network` stored.

    Raises:
        CheckpointError: a file that is missing, damaged or of another kind; names it.
    """
    directory = pathlib.Path(directory)
    config = read_part_config(directory, (MelNetwork.kind,))
    try:
        return MelNetwork.load(config, load_arrays(directory))
    except (KeyError, TypeError) as error:
        raise CheckpointError(f"{directory / CONFIG}: not the config of a trained aligner ({error})") from error


def _network_name(corpus: Input, language: str, training: AlignerTraining, recognizer: Recognizer | None) -> str:
    """Names the corpus, and by a hash everything else that the network depends on."""
    job = {
        "format": _FORMAT,
        "corpus": corpus.fingerprint,
        "language": language,
        "recognizer": recognizer.name if recognizer else "",
        **dataclasses.asdict(training),
    }
    digest = hashlib.sha256(json.dumps(job, sort_keys=True).encode()).hexdigest()[:12]
    return f"trained on {corpus.name} {corpus.split}, {digest}"


def _load_clips(
    corpus: Input, language: str, training: AlignerTraining, recognizer: Recognizer | None, progress: bool
) -> tuple[list[_Clip], Alphabet]:
    """Features and labels of the clips to learn from, drawn at random until there are enough, and their characters."""
    loaded: list[tuple[np.ndarray, list[SpelledWord]]] = []
    seconds, limit = 0.0, training.max_hours * 3600
    order = np.random.default_rng(training.seed).permutation(len(corpus)).tolist()
    with tqdm.tqdm(order, desc=f"reading {corpus.name}", unit="clip", disable=not progress) as bar:
        for index in bar:
            try:
                utterance = corpus[index]
                audio = utterance.load()
            except (CorpusError, AudioError):
                continue  # the alignment names it
            if audio.size > LONGEST_CLIP_S * SAMPLE_RATE or np.abs(audio).max() < SILENT:
                continue
            text = utterance.text
            if recognizer is not None and not text.strip():
                (text,) = recognizer.transcribe([audio])
            words = spell(text, language)
            if any(word.spoken for word in words):
                loaded.append((mel_features(audio), words))
                seconds += audio.size / SAMPLE_RATE
                if seconds > limit:
                    break
    counts = collections.Counter(
        c for _, words in loaded for c in {c for w in words for part in w.spoken for c in part}
    )
    alphabet = Alphabet(("", *sorted(c for c, count in counts.items() if count >= RARE)))
    clips = []
    for mel_tc, words in loaded:
        labels = alphabet.label(words)
        if alphabet.star not in labels.symbols and 0 < len(labels.symbols) <= len(mel_tc):
            clips.append(_Clip(mel_tc, labels))
    minutes = sum(len(clip.mel_tc) for clip in clips) / 6000
    if minutes < MIN_MINUTES:
        raise AlignmentError(
            f"{corpus.location}: split {corpus.split!r} has {len(clips)} clips of at most {LONGEST_CLIP_S} s with a "
            f"transcript, {minutes:.1f} minutes; an aligner learns from {MIN_MINUTES:g} minutes or more. "
            "Use --aligner pocketsphinx (English) or --aligner DIR"
        )
    return clips, alphabet


def _batches(clips: Sequence[_Clip], batch_frames: int, rng: np.random.Generator) -> Iterator[dict[str, np.ndarray]]:
    """One pass over the clips, in batches of one padded length each; both are in random order."""
    groups: dict[int, list[int]] = {}
    for index, clip in enumerate(clips):
        groups.setdefault(padded_size(len(clip.mel_tc), 384, sizes_an_octave=2), []).append(index)
    batches = []
    for frames, group in sorted(groups.items()):
        rows = max(1, batch_frames // frames)
        symbols = padded_size(max(len(clips[i].labels.symbols) for i in group), 16)
        shuffled = rng.permutation(group)
        # The last batch is filled up, so that every batch of a group has one shape.
        filled = np.resize(shuffled, round_up(len(group), rows))
        batches += [(frames, symbols, part) for part in filled.reshape(-1, rows)]
    for position in rng.permutation(len(batches)):
        frames, symbols, part = batches[position]
        yield _batch([clips[i] for i in part], frames, symbols)


def _batch(clips: Sequence[_Clip], frames: int, symbols: int) -> dict[str, np.ndarray]:
    rows = len(clips)
    batch = {
        "mel_btc": np.zeros((rows, frames, clips[0].mel_tc.shape[1]), np.float32),
        "frames_b": np.zeros(rows, np.int32),
        "labels_bn": np.zeros((rows, symbols), np.int32),
        "lengths_b": np.zeros(rows, np.int32),
        "pauses_bm": np.zeros((rows, symbols + 1), bool),
    }
    for row, (mel_tc, labels) in enumerate(clips):
        count = len(labels.symbols)
        batch["mel_btc"][row, : len(mel_tc)] = mel_tc
        batch["frames_b"][row], batch["lengths_b"][row] = len(mel_tc), count
        batch["labels_bn"][row, :count], batch["pauses_bm"][row, : count + 1] = labels.symbols, labels.pauses
    return batch


def _train(
    clips: Sequence[_Clip],
    alphabet: Alphabet,
    name: str,
    training: AlignerTraining,
    unfinished: Any,
    progress: bool,
) -> MelNetwork:
    """Train a network; `unfinished` keeps the state between passes and is removed at the end."""
    hours = sum(len(clip.mel_tc) for clip in clips) / 360_000
    passes = max(training.passes, round(training.min_hours_seen / hours))
    config = MelCTCConfig(symbols=len(alphabet.symbols), bands=clips[0].mel_tc.shape[1], width=training.width)
    model = MelCTC(config)
    per_pass = sum(1 for _ in _batches(clips, training.batch_frames, np.random.default_rng(0)))
    schedule = optax.cosine_onecycle_schedule(passes * per_pass, training.learning_rate, pct_start=0.2)
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule))
    params = model.init(jax.random.key(training.seed), *_example(config))["params"]
    prior_v = jnp.full(config.symbols, 1 / config.symbols)
    new = _State(params, optimizer.init(params), prior_v, Gaussians.initial(config.symbols, config.bands))
    state, first = _resume(unfinished, name, new)
    if not first:
        state = state._replace(gaussians=_gaussians(clips, config, training, progress))
    step = jax.jit(functools.partial(_step, model, optimizer, training.prior_scale), donate_argnums=0)
    with tqdm.tqdm(total=passes * per_pass, desc="training the aligner", unit="step", disable=not progress) as bar:
        bar.update(first * per_pass)
        for number in range(first, passes):
            losses = []
            rng = np.random.default_rng((training.seed, number))
            for place, batch in enumerate(_batches(clips, training.batch_frames, rng)):
                guidance = max(0.0, 1 - (number + place / per_pass) / (_GUIDED * passes))
                state, loss = step(state, batch, guidance)
                losses.append(loss)
                bar.update()
            bar.set_postfix_str(f"loss {np.mean(losses):.3f}", refresh=False)
            content = {"name": name, "passes": number + 1, "state": flax.serialization.to_state_dict(state)}
            write_file(unfinished, flax.serialization.msgpack_serialize(jax.device_get(content)))
    bias_v = -training.prior_scale * np.log(np.asarray(state.prior_v))
    remove_file(unfinished)
    return MelNetwork(name, alphabet, config, jax.device_get(state.params), bias_v.astype(np.float32))


def _gaussians(clips: Sequence[_Clip], config: MelCTCConfig, training: AlignerTraining, progress: bool) -> Gaussians:
    """The Gaussians that lead the network at first, learned from the first half hour of the clips."""
    ends = np.cumsum([len(clip.mel_tc) for clip in clips])
    chosen = clips[: int(np.searchsorted(ends, _FLAT_START_FRAMES)) + 1]

    def batches() -> Iterator[dict[str, np.ndarray]]:
        return _batches(chosen, _FLAT_START_BATCH * training.batch_frames, np.random.default_rng(training.seed))

    return flat_start(batches, config.symbols, config.bands, progress=progress)


def _example(config: MelCTCConfig) -> tuple[jax.Array, jax.Array]:
    """The smallest input, for the shapes of the weights."""
    return jnp.zeros((1, config.stride, config.bands)), jnp.full(1, config.stride)


def _step(
    model: MelCTC,
    optimizer: optax.GradientTransformation,
    prior_scale: float,
    state: _State,
    batch: dict[str, jax.Array],
    guidance: float,
) -> tuple[_State, jax.Array]:
    """One update; the loss is a mean over frames. The label prior is a running mean of the network's own outputs.

    Args:
        guidance: weight of the Gaussians.
    """
    frames_b = batch["frames_b"]
    likelihoods_btv = LIKELIHOOD_SCALE * state.gaussians.log_likelihoods(cepstra(batch["mel_btc"]))
    valid_bt1 = (jnp.arange(batch["mel_btc"].shape[1]) < frames_b[:, None])[:, :, None]

    def loss_and_prior(params):
        logits_btv = jnp.asarray(model.apply({"params": params}, batch["mel_btc"], frames_b))
        log_probs_btv = jax.nn.log_softmax(logits_btv)
        losses_b = ctc_loss(
            log_probs_btv - prior_scale * jnp.log(state.prior_v) + guidance * likelihoods_btv,
            frames_b,
            batch["labels_bn"],
            batch["lengths_b"],
            pauses_bm=batch["pauses_bm"],
        )
        return losses_b.sum() / frames_b.sum(), jnp.mean(jnp.exp(log_probs_btv), (0, 1), where=valid_bt1)

    (loss, prior_v), gradient = jax.value_and_grad(loss_and_prior, has_aux=True)(state.params)
    updates, optimizer_state = optimizer.update(gradient, state.optimizer, state.params)
    params = optax.apply_updates(state.params, updates)
    prior_v = _PRIOR_DECAY * state.prior_v + (1 - _PRIOR_DECAY) * prior_v
    return _State(params, optimizer_state, prior_v, state.gaussians), loss


def _resume(unfinished: Any, name: str, state: _State) -> tuple[_State, int]:
    """The state that a killed training of this name left, and its finished passes; else the state given, and 0."""
    if not unfinished.exists():
        return state, 0
    stored = read_bytes(unfinished)
    try:
        content = cast(dict[str, Any], flax.serialization.msgpack_restore(stored))
        if content["name"] == name:
            return cast(_State, flax.serialization.from_state_dict(state, content["state"])), int(content["passes"])
    except (ValueError, KeyError, TypeError):
        pass  # damaged: trained from the start
    return state, 0
