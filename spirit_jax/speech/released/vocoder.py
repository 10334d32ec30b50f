"""Units to audio with the released vocoders: rules of FORMATS.md sections 5 and 6, batches, windows, streaming.

However long a clip is, it runs in windows of a few fixed lengths (nothing is compiled anew for a clip), those of a long clip
with the frames around them that their audio depends on (`HifiGanConfig.context`). So the audio of a window is that of the whole clip, and
windows of many clips share a batch.
"""

import dataclasses
import functools
import operator
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Int

from spirit_jax.checkpoint import CheckpointError, flatten
from spirit_jax.core.errors import SpiritError
from spirit_jax.kernels.platform import platform
from spirit_jax.models.hifigan import HifiGan, HifiGanConfig, durations, fold_weight_norm, prepare_for_cpu
from spirit_jax.speech.released.batches import exact
from spirit_jax.units import SpeechUnits, UnitError

DEFAULT_SPEAKER = 2
DEFAULT_STYLE = 8
"""The released defaults: `ex03` and, for Base, `conv-default`."""

WINDOWS = (32, 64, 128, 256)
"""Frames of audio that a compiled window makes; a clip takes as many of the largest as fit, and one for the rest."""

MAX_BATCH = 8
"""Windows that run at once; batches are padded to a power of two. Accelerators, which compile for long and compute fast, know only
the largest window and the largest batch."""

DURATION_CONTEXT = 2
"""Units on either side that a predicted duration depends on."""

UnitsLike = SpeechUnits | str | Mapping[str, Sequence[int]]


class VocoderError(UnitError):
    """Units that this vocoder cannot speak; the message says which, and what it can."""


class VoiceError(SpiritError):
    """A speaker or a style that this vocoder does not have; the message lists those that it has."""


class Utterance(NamedTuple):
    """Codes of each frame, int32 [N] (zeros for what the vocoder does not read), and rows of the constant tables."""

    units: np.ndarray
    f0: np.ndarray
    styles: np.ndarray
    speaker: int
    style: int


class HifiGanVocoder:
    """Part kind "hifigan": a unit HiFi-GAN, Base or Expressive.

    Args:
        network: its shape.
        params: its parameters as in a checkpoint; weight norm, where it is kept in two factors, is folded here, once.
        speakers, styles: names of the first rows of the speaker and global style tables.

    Raises:
        CheckpointError: the parameters are not those of the network; names the first array.
    """

    kind: ClassVar[str] = "hifigan"

    def __init__(self, network: HifiGanConfig, params: dict, speakers: Sequence[str] = (), styles: Sequence[str] = ()):
        self.network, self.speakers, self.styles = network, tuple(speakers), tuple(styles)
        self._model = HifiGan(network)
        self._stored = params
        params = fold_weight_norm(params)
        wanted, found = _shapes(self._model), {path: leaf.shape for path, leaf in flatten(params).items()}
        for path in sorted(wanted.keys() | found.keys()):
            if found.get(path) != wanted.get(path):
                what = f"array {path} has shape {found.get(path)}, its config asks for {wanted.get(path)}"
                raise CheckpointError(f"vocoder: {what}")
        if platform() == "cpu":
            params = prepare_for_cpu(params, network)
        self._params = {"params": jax.tree.map(jnp.asarray, params)}

    @classmethod
    def load(cls, config: Mapping[str, Any], arrays: dict[str, Any]) -> "HifiGanVocoder":
        """Out of a part's config.json and arrays."""
        network = HifiGanConfig.from_dict(config["hifigan"])
        return cls(network, arrays, config.get("speakers", ()), config.get("styles", ()))

    def config(self) -> dict[str, Any]:
        """What the part's config.json holds beside its kind."""
        fields = dataclasses.asdict(self.network)
        return {"hifigan": fields, "speakers": list(self.speakers), "styles": list(self.styles)}

    def arrays(self) -> dict[str, Any]:
        """The parameters as they were given, weight norm in its two factors."""
        return self._stored

    @property
    def sample_rate(self) -> int:
        return self.network.sampling_rate

    @property
    def is_expressive(self) -> bool:
        """Whether pitch and style units are read."""
        return self.network.num_f0_tokens > 0

    def speaker_index(self, speaker: int | str) -> int:
        """The row of the speaker table that a number or a name means, 0 where there is one voice.

        Raises:
            VoiceError: no such speaker; lists those that there are.
        """
        return _row("speaker", speaker, self.speakers, self.network.num_speakers)

    def latency(self, predict_durations: bool = True) -> tuple[int, int]:
        """`(units, frames)` that must have arrived beyond a frame before `stream` can speak it: the receptive field.

        A frame is `code_hop_size` samples (40 ms); the released vocoders look 20 frames (0.8 s) ahead, and 2 units more
        where durations are predicted.
        """
        return DURATION_CONTEXT if predict_durations else 0, self.network.context[1]

    def decode(
        self,
        units: UnitsLike,
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
        deduplicate: bool = False,
    ) -> Float[np.ndarray, " R"]:
        """The audio of one stretch of units; arguments and errors as in `decode_batch`."""
        return self.decode_batch([units], speaker, style, predict_durations, deduplicate)[0]

    def decode_batch(
        self,
        batch: Sequence[UnitsLike],
        speaker: int | str | Sequence[int | str] = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
        deduplicate: bool = False,
    ) -> list[Float[np.ndarray, " R"]]:
        """The audio of each stretch of units, float32 in [-1, 1] at `sample_rate`; batching does not change it.

        Args:
            batch: units, their string form, or a mapping with `hubert` and, for an expressive vocoder, `pitch` and
                `style` as integers. Negative phonetic units of a mapping are padding and dropped.
            speaker: a row of the speaker table or a name of `speakers.txt`; one for all or one for each.
            style: Base: a row of the global style table or a name of `styles.txt`. Expressive: a style unit to speak
                everything in, instead of those among the units.
            predict_durations: let the duration predictor say how many frames each unit lasts, as deduplicated units
                need. Otherwise a unit is a frame. As in the reference, pitch of another length than the phonetic units
                (frame-rate units) turns prediction off, and Base units are predicted whether deduplicated or not.
            deduplicate: first collapse runs of equal units; only together with predicted durations.

        Raises:
            VocoderError: nothing to speak, a unit out of range, pitch or style missing or of a length that does not
                fit, or durations asked of a vocoder that has no predictor. Says which item of a batch of several.
            VoiceError: an unknown speaker or style.
        """
        speakers = [speaker] * len(batch) if isinstance(speaker, int | str | np.integer) else list(speaker)
        if len(speakers) != len(batch):
            raise VoiceError(f"{len(batch)} items to speak and {len(speakers)} speakers: expected one for all or each")
        style_row, style_unit = self._style(style)
        prepared, predicted = [], []
        for i, (units, who) in enumerate(zip(batch, speakers, strict=True)):
            try:
                row = self.speaker_index(who)
                codes, predict = self._codes(units, style_unit, predict_durations, deduplicate)
            except UnitError as error:
                raise VocoderError(f"item {i}: {error}" if len(batch) > 1 else str(error)) from error
            prepared.append(Utterance(*codes, row, style_row))
            predicted.append(predict)
        chosen = [i for i, predict in enumerate(predicted) if predict]
        jobs = [(prepared[i].units, 0, len(prepared[i].units)) for i in chosen]
        for i, counts in zip(chosen, self._durations(jobs), strict=True):
            prepared[i] = _repeat(prepared[i], counts)
        # A clip that fits a window needs no context: what is around it is silence.
        fits = [len(utterance.units) <= WINDOWS[-1] for utterance in prepared]
        audio: dict[int, np.ndarray] = {}
        for context, fit in (((0, 0), True), (self.network.context, False)):
            chosen = [i for i in range(len(prepared)) if fits[i] is fit]
            jobs = [(prepared[i], 0, len(prepared[i].units)) for i in chosen]
            audio |= dict(zip(chosen, self._audio(jobs, WINDOWS, context), strict=True))
        return [audio[i] for i in range(len(prepared))]

    def stream(
        self,
        pieces: Iterable[UnitsLike],
        speaker: int | str = DEFAULT_SPEAKER,
        style: int | str | None = None,
        predict_durations: bool = True,
        chunk_frames: int = 16,
    ) -> Iterator[Float[np.ndarray, " R"]]:
        """Audio in chunks while units arrive; together they are the audio of `decode` on all units at once.

        A chunk comes as soon as `chunk_frames` frames can be spoken, that is with `latency` units and frames beyond them
        at hand; what is left follows when the pieces end. Small chunks come sooner and cost more, because each window
        is computed with its context.

        Args:
            pieces: stretches of units, in the forms that `decode` takes. With an expressive vocoder, pitch and style
                need an entry for each phonetic unit, as `SpeechUnits.from_string` gives them.
            speaker, style, predict_durations: as in `decode_batch`.
            chunk_frames: at least 1.
        """
        row = self.speaker_index(speaker)
        style_row, style_unit = self._style(style)
        if chunk_frames < 1:
            raise ValueError(f"chunk_frames must be at least 1, found {chunk_frames}")
        units_ahead, frames_ahead = self.latency(predict_durations)
        empty = np.zeros(0, np.int32)
        waiting = Utterance(empty, empty, empty, row, style_row)  # units, of which the first `timed` are in `ready`
        ready = waiting  # frames, of which the first `spoken` are out
        timed = spoken = 0

        def advance(ended: bool) -> Iterator[np.ndarray]:
            nonlocal waiting, ready, timed, spoken
            stop = len(waiting.units) - (0 if ended else units_ahead)
            if stop > timed:
                fresh = _slice(waiting, timed, stop)
                if predict_durations:
                    fresh = _repeat(fresh, self._durations([(waiting.units, timed, stop)])[0])
                ready = _join(ready, fresh)
                drop = max(stop - DURATION_CONTEXT, 0)
                waiting, timed = _slice(waiting, drop, None), stop - drop
            while True:
                count = len(ready.units) - spoken - (0 if ended else frames_ahead)
                if count < (1 if ended else chunk_frames):
                    return
                stop = spoken + min(count, chunk_frames)
                yield self._audio([(ready, spoken, stop)], (chunk_frames,), self.network.context)[0]
                drop = max(stop - self.network.context[0], 0)
                ready, spoken = _slice(ready, drop, None), stop - drop

        for piece in pieces:
            codes, predict = self._codes(piece, style_unit, predict_durations, aligned=True)
            if predict != predict_durations:
                raise VocoderError("streaming needs one pitch and one style unit for each phonetic unit")
            waiting = _join(waiting, Utterance(*codes, row, style_row))
            yield from advance(ended=False)
        if not len(waiting.units):
            raise VocoderError("no phonetic units to speak")
        yield from advance(ended=True)

    def _style(self, style: int | str | None) -> tuple[int, int | None]:
        """The row of the global style table, and the style unit that replaces those of the units, if any."""
        cfg = self.network
        if cfg.num_styles:
            return _row("style", DEFAULT_STYLE if style is None else style, self.styles, cfg.num_styles), None
        if style is None:
            return 0, None
        if not cfg.num_style_tokens:
            raise VoiceError(f"this vocoder has no styles; asked for {style!r}")
        return 0, _row("style", style, (), cfg.num_style_tokens)

    def _codes(
        self,
        units: UnitsLike,
        style: int | None,
        predict: bool,
        deduplicate: bool = False,
        aligned: bool = False,
    ) -> tuple[tuple[np.ndarray, ...], bool]:
        """Checked (unit, pitch, style) codes, one each per unit, and whether durations are to be predicted."""
        cfg = self.network
        streams = _streams(units)
        codes, pitch = streams["hubert"], streams["pitch"]
        predict = predict and (pitch is None or len(pitch) == len(codes))
        codes = codes[codes >= 0]
        if deduplicate and predict:
            codes = codes[np.flatnonzero(np.diff(codes, prepend=-1))]
        if not codes.size:
            raise VocoderError("no phonetic units to speak")
        _check_range("phonetic", codes, cfg.num_embeddings)
        if style is not None:
            streams["style"] = np.full(len(codes), style, np.int32)
        if predict and not cfg.duration_hidden_dim:
            raise VocoderError(
                "this vocoder has no duration predictor: give a unit a frame and predict_durations=False"
            )
        found = [codes]
        for name, size, hop in (
            ("pitch", cfg.num_f0_tokens, cfg.f0_hop_size),
            ("style", cfg.num_style_tokens, cfg.style_hop_size),
        ):
            if not size:
                found.append(np.zeros_like(codes))
                continue
            if streams[name] is None:
                raise VocoderError(f"this vocoder is expressive: it needs {name} units, and there are none")
            _check_range(name, streams[name], size)
            repeats = 1 if predict or aligned else round(hop / cfg.code_hop_size)
            found.append(_at_unit_rate(name, streams[name], len(codes), repeats))
        return tuple(found), predict

    def _durations(self, jobs: Sequence[tuple[np.ndarray, int, int]]) -> list[Int[np.ndarray, " U"]]:
        """Frames of units `start..stop-1` of each `(units, start, stop)`."""

        def run(rows, first, last, window):
            units = np.stack([_take(units, indices) for (units,), indices in rows])
            counts = _predict(self._model, self._params, units, first, last)
            return np.asarray(counts)[:, DURATION_CONTEXT : DURATION_CONTEXT + window]

        jobs = [((units,), start, stop) for units, start, stop in jobs]
        return _in_windows(jobs, WINDOWS, (DURATION_CONTEXT, DURATION_CONTEXT), 1, run)

    def _audio(
        self, jobs: Sequence[tuple[Utterance, int, int]], windows: Sequence[int], context: tuple[int, int]
    ) -> list[np.ndarray]:
        """Audio of frames `start..stop-1` of each `(utterance, start, stop)`."""

        def run(rows, first, last, window):
            streams = [np.stack([_take(utterance[k], indices) for utterance, indices in rows]) for k in range(3)]
            constants = [np.array([utterance[k] for utterance, _ in rows], np.int32) for k in (3, 4)]
            return np.asarray(_generate(self._model, self._params, *streams, *constants, first, last, context))

        return _in_windows(jobs, windows, context, self.network.code_hop_size, run)


@functools.cache
def _shapes(model: HifiGan) -> dict[str, tuple[int, ...]]:
    units = jax.ShapeDtypeStruct((1, 1), jnp.int32)
    params = jax.eval_shape(model.init, jax.random.key(0), units)["params"]
    return {path: leaf.shape for path, leaf in flatten(params).items()}


@functools.partial(exact, static_argnums=0)
def _predict(model, params, units_bt, first_b, last_b):
    return durations(model.apply(params, units_bt, first_b, last_b, method="log_durations"))


@functools.partial(jax.jit, static_argnums=(0, 9))
def _generate(model, params, units_bt, f0_bt, styles_bt, speaker_b, style_b, first_b, last_b, context):
    arguments = (units_bt, f0_bt, styles_bt, speaker_b, style_b, first_b, last_b)
    # On TPU three products of bfloat16 for one of float32, where units, which must not differ, take six: compiled in a third of the time.
    with jax.default_matmul_precision("high" if platform() == "tpu" else "float32"):
        return model.apply(params, *arguments, context=context, method="generate")


def _in_windows(jobs, windows, context, hop, run) -> list[np.ndarray]:
    """Run `[start, stop)` of each `(source, start, stop)` in windows with context, in batches, and join what comes out.

    `run(rows, first_b, last_b, window)` gets rows of `(source, indices [window + context])` and returns `[B, window * hop]`.
    """
    on_cpu = platform() == "cpu"
    if not on_cpu:
        windows = windows[-1:]
    planned: dict[int, list[tuple[int, int, int]]] = {}  # window -> (job, first position, positions wanted)
    for job, (_, start, stop) in enumerate(jobs):
        while start < stop:
            window = next((size for size in windows if size >= stop - start), windows[-1])
            planned.setdefault(window, []).append((job, start, min(window, stop - start)))
            start += window
    pieces: dict[tuple[int, int], np.ndarray] = {}
    for window, places in planned.items():
        for at in range(0, len(places), MAX_BATCH):
            batch = places[at : at + MAX_BATCH]
            size = 1 << (len(batch) - 1).bit_length() if on_cpu else MAX_BATCH
            starts = np.array([start for _, start, _ in batch], np.int32)
            lengths = np.array([len(jobs[job][0][0]) for job, _, _ in batch], np.int32)
            rows = [
                (jobs[job][0], np.arange(start - context[0], start + window + context[1])) for job, start, _ in batch
            ]
            rows += rows[:1] * (size - len(batch))
            first, last = (np.resize(bound, size) for bound in (context[0] - starts, context[0] - starts + lengths))
            for (job, start, count), output in zip(batch, run(rows, first, last, window), strict=False):
                pieces[job, start] = output[: count * hop]
    joined: list[list[np.ndarray]] = [[] for _ in jobs]
    for job, start in sorted(pieces):
        joined[job].append(pieces[job, start])
    return [np.concatenate(parts) for parts in joined]


def _streams(units: UnitsLike) -> dict[str, np.ndarray | None]:
    if isinstance(units, str):
        units = SpeechUnits.from_string(units)
    names = ("hubert", "pitch", "style")
    found = units.streams if isinstance(units, SpeechUnits) else [units.get(name) for name in names]
    streams = {name: None if values is None else np.asarray(values) for name, values in zip(names, found, strict=True)}
    for name, values in streams.items():
        if values is None and name != "hubert":
            continue
        if values is None or values.ndim != 1 or (values.size and not np.issubdtype(values.dtype, np.integer)):
            raise VocoderError(
                f"{name} units must be a 1-D array of integers, found {'none' if values is None else values.dtype}"
            )
        streams[name] = values.astype(np.int32)
    return streams


def _take(codes: np.ndarray, indices: np.ndarray) -> np.ndarray:
    return codes[np.clip(indices, 0, len(codes) - 1)]


def _repeat(utterance: Utterance, counts: np.ndarray) -> Utterance:
    return Utterance(*(np.repeat(stream, counts) for stream in utterance[:3]), *utterance[3:])


def _slice(utterance: Utterance, start: int, stop: int | None) -> Utterance:
    return Utterance(*(stream[start:stop] for stream in utterance[:3]), *utterance[3:])


def _join(left: Utterance, right: Utterance) -> Utterance:
    pairs = zip(left[:3], right[:3], strict=True)
    return Utterance(*(np.concatenate(pair) for pair in pairs), *left[3:])


def _at_unit_rate(name: str, values: np.ndarray, count: int, repeats: int) -> np.ndarray:
    """Codes repeated to `count` units, cut or padded with the last; those that have `count` already pass."""
    reach = len(values) * repeats
    if abs(reach - count) <= repeats and len(values) and (repeats > 1 or reach == count):
        values = np.repeat(values, repeats)
        return np.concatenate([values, np.full(max(count - reach, 0), values[-1])])[:count].astype(np.int32)
    if len(values) == count:
        return values
    rate = f"{repeats} phonetic units each" if repeats > 1 else "one phonetic unit each"
    raise VocoderError(f"{len(values)} {name} units at {rate} do not go with {count} phonetic units")


def _check_range(name: str, codes: np.ndarray, size: int) -> None:
    (outside,) = np.nonzero((codes < 0) | (codes >= size))
    if outside.size:
        at = int(outside[0])
        raise VocoderError(
            f"{name} unit {int(codes[at])} at position {at} is out of range: this vocoder knows 0..{size - 1}"
        )


def _row(kind: str, wanted: int | str, names: Sequence[str], rows: int) -> int:
    """The row of a table that an id or a name means; 0 where there is no such table."""
    if not rows:
        return 0
    if isinstance(wanted, str):
        if wanted in names:
            return names.index(wanted)
    elif 0 <= operator.index(wanted) < rows:
        return operator.index(wanted)
    known = ", ".join(f"{i} {name}" for i, name in enumerate(names))
    raise VoiceError(f"unknown {kind} {wanted!r}; known are {known + ', ' if known else ''}ids 0..{rows - 1}")
