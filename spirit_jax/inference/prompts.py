"""Prompts: segments of text and speech become a string, and the string becomes token ids, once.

The string form of a prompt is what the released tokenizer reads: `[Text]the cat[Speech][Hu3][Hu7]`. The rules are
those of the released code (docs/formats.md, "Prompts and generation").
"""

import base64
import dataclasses
import html
import logging
import os
import re
from collections.abc import Callable, Sequence
from typing import Protocol

import numpy as np
from jaxtyping import Float, Int

from spirit_jax import units as speech_units
from spirit_jax.audio import AudioError, encode_wav, load_audio
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.core.constants import MINIMUM_SAMPLES
from spirit_jax.core.errors import SpiritError
from spirit_jax.core.files import is_encodable
from spirit_jax.inference import literals
from spirit_jax.inference.modalities import MODALITIES, Kind, Modality, Task
from spirit_jax.speech.f0 import is_voiced
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import ASR, SPEECH_TOKEN, TEXT_TOKEN, TTS, Vocabulary

_TASK_PARTS: dict[Task, tuple[Kind, str, Modality]] = {"asr": ("speech", ASR, "text"), "tts": ("text", TTS, "speech")}
"""For each task, the modality of the prompt, the separator after it, and the modality of the answer."""

_MODALITY_TOKENS = {"text": TEXT_TOKEN, "speech": SPEECH_TOKEN}
_UNIT = re.compile(r"\[(?:Hu|Pi|St)[0-9]+\]")


class PromptError(SpiritError):
    """A prompt that cannot be used; the message says what is wrong with it and what to do."""


@dataclasses.dataclass(frozen=True, eq=False)
class Segment:
    """One stretch of text or of speech, in a prompt or an answer. Make one with `Segment.text` or `Segment.speech`.

    Attributes:
        kind: "text" or "speech".
        content: the string of a text; the audio of a speech, float32 [R] at 16 kHz, or its `SpeechUnits`. Generated
            speech holds units if the checkpoint has no vocoder.
        tokens: the unit tokens of generated speech (`[St71][Pi39][Hu99]...`), including those of the prompt's speech
            that it continues; None for text and for audio that has not been encoded.
    """

    kind: Kind
    content: str | Float[np.ndarray, " R"] | SpeechUnits
    tokens: str | None = None

    @classmethod
    def text(cls, text: str) -> "Segment":
        """Make a stretch of text. A special token that is spelled out in it, such as `[Hu3]`, stays text.

        Raises:
            PromptError: not a string, or a string with a lone surrogate, which is half of a character.
        """
        if not isinstance(text, str):
            raise PromptError(f"a text segment is a string, found {type(text).__name__}")
        _check_characters(text)
        return cls("text", text)

    @classmethod
    def speech(cls, source: str | os.PathLike | bytes | np.ndarray | SpeechUnits) -> "Segment":
        """Make a stretch of speech.

        Args:
            source: audio float32 [R] at 16 kHz, an audio file (path or bytes), units, or a unit string. Audio without a
                voiced frame is logged as a warning: its pitch units mean nothing.

        Raises:
            AudioError: the file cannot be read, or is shorter than 80 ms.
            UnitError: a string starts with "[", names no file and is not a unit string.
            PromptError: an array is not 1-D audio.
        """
        if isinstance(source, SpeechUnits):
            return cls("speech", source)
        if isinstance(source, str) and source.lstrip().startswith("[") and not os.path.lexists(source):
            return cls("speech", SpeechUnits.from_string(source), unit_tokens(source))
        if isinstance(source, (str, os.PathLike, bytes)):
            audio = load_audio(source)
            if audio.size < MINIMUM_SAMPLES:
                raise AudioError(
                    f"{_name(source)}: {audio.size} samples (16 kHz) are too short for units: at least "
                    f"{MINIMUM_SAMPLES} (80 ms) are needed"
                )
            if not is_voiced(audio):
                logging.warning("%s: no frame of it is voiced; is it speech?", _name(source))
            return cls("speech", audio)
        audio = np.asarray(source)
        if audio.ndim != 1 or not np.issubdtype(audio.dtype, np.floating):
            raise PromptError(
                f"audio is a 1-D array of floats at 16 kHz, found {audio.dtype} {audio.shape}; "
                "read files with load_audio, which mixes channels and resamples"
            )
        return cls("speech", audio.astype(np.float32, copy=False))

    @property
    def audio(self) -> Float[np.ndarray, " R"]:
        """The waveform of a speech segment, float32 [R] at 16 kHz.

        Raises:
            PromptError: the segment is text, or units that no vocoder has spoken.
        """
        if isinstance(self.content, np.ndarray):
            return self.content
        raise PromptError(f"this {self.kind} segment holds {type(self.content).__name__}, not audio")

    def _repr_html_(self) -> str:
        """Return what a notebook shows: the text, an audio player, or the unit tokens."""
        if isinstance(self.content, np.ndarray) and self.content.size:
            wav = base64.b64encode(encode_wav(self.content)).decode()
            return f'<audio controls src="data:audio/wav;base64,{wav}"></audio>'
        units = units_string(self.content) if isinstance(self.content, SpeechUnits) else ""
        text = self.content if isinstance(self.content, str) else self.tokens or units
        return f"<p>{html.escape(text)}</p>"


Prompt = str | Segment | Sequence[Segment]
"""A token string such as `[Text]the cat[Speech][Hu3]`, or segments of text and speech in any order."""


@dataclasses.dataclass(frozen=True, eq=False)
class EncodedPrompt:
    """A checked prompt as the model reads it; `PromptEncoder` makes it."""

    ids: Int[np.ndarray, " N"]
    """Token ids, int32, `<s>` first."""
    output_modality: Modality = "any"
    """Modalities that the answer may hold."""
    string: str = ""
    """The string form; empty for a prompt that was given as ids."""
    task: Task | None = None
    """The task whose recipe the prompt follows, if any."""


class SpeechEncoder(Protocol):
    """Turns audio into units: a `SpeechTokenizer`."""

    def encode(self, audio: Float[np.ndarray, " R"]) -> SpeechUnits:
        """Return the units of mono audio, float32 [R] at 16 kHz."""
        ...


@dataclasses.dataclass(frozen=True)
class PromptEncoder:
    """Turns prompts into ids: the only place where they are checked and encoded."""

    vocabulary: Vocabulary
    context_length: int
    """Tokens that the model can read; a prompt must leave room for one more."""
    speech_encoder: SpeechEncoder | None
    """Encodes the audio of prompts; None allows units only."""

    def encode(
        self, prompt: Prompt, output_modality: Modality = "any", *, few_shot: Sequence[Prompt] = ()
    ) -> EncodedPrompt:
        """Encode a prompt.

        Args:
            few_shot: examples that stand before the prompt, in their order.

        Raises:
            PromptError: an empty prompt, an unknown modality or unit token, a string that is not Unicode, or a prompt
                longer than the context.
            CheckpointError: the prompt holds audio and there is no speech encoder.
            AudioError: audio is too short or not finite.
        """
        check_modality(output_modality)
        return self._encode_marked(self._join([*few_shot, prompt], output_modality), output_modality)

    def encode_task(self, prompt: Prompt, task: Task, output_modality: Modality = "any") -> EncodedPrompt:
        """Encode the first half of a pair as training writes it: `[Speech][Hu3]..[ASR]` or `[Text]the cat[TTS]`.

        The answer is the other half: text for `asr`, speech for `tts`.

        Args:
            prompt: the speech, or the text, as segments.
            output_modality: "any", or what the task answers.

        Raises:
            PromptError: an unknown task, a prompt with anything else in it, or another modality.
            CheckpointError, AudioError: as `encode`.
        """
        if task not in _TASK_PARTS:
            raise PromptError(f"task must be one of {', '.join(_TASK_PARTS)}, found {task!r}")
        kind, separator, answer = _TASK_PARTS[task]
        if output_modality not in ("any", answer):
            raise PromptError(f"task {task} answers in {answer}, asked for was {output_modality}")
        if isinstance(prompt, str):
            raise PromptError(f"task {task} writes the token string itself: give a segment of {kind}")
        segments = segments_of(prompt)
        if not segments or any(segment.kind != kind for segment in segments):
            kinds = ", ".join(segment.kind for segment in segments) or "nothing"
            raise PromptError(f"task {task} takes {kind} alone, found {kinds}")
        string = self._join([segments], "any") + separator
        return dataclasses.replace(self._encode_marked(string, answer), task=task)

    def _encode_marked(self, string: str, output_modality: Modality) -> EncodedPrompt:
        """Check and encode a string form with marked literals."""
        check_unit_tokens(string, self.vocabulary)
        encoded = self.encode_ids(literals.encode(self.vocabulary, string), output_modality)
        return dataclasses.replace(encoded, string=literals.unmark(string))

    def _join(self, prompts: Sequence[Prompt], output_modality: Modality) -> str:
        """Return the string form, with marked literals, of prompts that follow each other.

        Neighboring prompts of segments are joined as one list of segments, unless a prompt is a string.
        """
        without_strings = [prompt for prompt in prompts if not isinstance(prompt, str)]
        if len(without_strings) == len(prompts):
            segments = [segment for prompt in without_strings for segment in segments_of(prompt)]
            return self._marked(segments, output_modality)
        *before, last = prompts
        strings = [self._marked(prompt, "any") for prompt in before]
        return "".join([*strings, self._marked(last, output_modality)])

    def _marked(self, prompt: Prompt, output_modality: Modality) -> str:
        """Return the string form of a prompt with the literals in its text marked; a string is taken as it is."""
        if isinstance(prompt, str):
            _check_characters(prompt)
            return prompt
        segments = segments_of(prompt)
        if not segments:
            raise PromptError("the prompt is empty: give at least one segment, or a string")
        return build_prompt([self._with_marks(segment) for segment in segments], output_modality, self._units)

    def _with_marks(self, segment: Segment) -> Segment:
        if not isinstance(segment.content, str):
            return segment
        _check_characters(segment.content)
        return dataclasses.replace(segment, content=literals.mark(segment.content, self.vocabulary))

    def encode_ids(
        self, ids: Sequence[int] | Int[np.ndarray, " N"], output_modality: Modality = "any"
    ) -> EncodedPrompt:
        """Check a prompt that is given as ids.

        Raises:
            PromptError: no ids, ids outside the vocabulary, an unknown modality, or a prompt longer than the context.
        """
        check_modality(output_modality)
        try:
            array = np.asarray(ids, np.int32)
        except (ValueError, TypeError, OverflowError) as error:
            raise PromptError(f"a prompt is one or more ids, found {error}") from error
        if array.ndim != 1 or not array.size:
            raise PromptError(f"a prompt is one or more ids, found shape {array.shape}")
        self.check_ids(array)
        return EncodedPrompt(array, output_modality)

    def encode_continuation(self, prompt: Prompt, continuation: Prompt) -> tuple[Int[np.ndarray, " N"], int]:
        """Encode a prompt and its continuation as one document without an end.

        Both are strings, or both segments. A modality token between them belongs to the prompt.

        Returns:
            The ids, and the number of them that belong to the prompt: as many as the prompt's own ids share.

        Raises:
            PromptError: an empty continuation, a string beside segments, or a document longer than the context.
        """
        if isinstance(prompt, str) and isinstance(continuation, str):
            before, document = prompt, self._join([prompt, continuation], "any")
        elif isinstance(prompt, str) or isinstance(continuation, str):
            raise PromptError("prompt and continuation must both be strings, or both segments")
        else:
            first, second = (
                [self._with_marks(self.encode_speech(segment)) for segment in segments_of(part)]
                for part in (prompt, continuation)
            )
            before = build_prompt(first, second[0].kind if second else "any", self._units)
            document = build_prompt([*first, *second], "any", self._units)
        check_unit_tokens(document, self.vocabulary)
        head, ids = literals.encode(self.vocabulary, before), literals.encode(self.vocabulary, document)
        pairs = enumerate(zip(head, ids, strict=False))
        start = next((i for i, (a, b) in pairs if a != b), min(len(head), len(ids)))
        if start == len(ids):
            raise PromptError("the continuation is empty: there is nothing to score")
        self._check_length(len(ids) - 1)
        return np.asarray(ids, np.int32), start

    def check_ids(self, ids: Int[np.ndarray, "*B T"]) -> None:
        """Check ids of one or more documents of the same length.

        Raises:
            PromptError: an id is outside the vocabulary, or a document does not fit the context.
        """
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary.size):
            raise PromptError(f"ids go from 0 to {self.vocabulary.size - 1}, found {ids.min()}..{ids.max()}")
        self._check_length(ids.shape[-1])

    def _check_length(self, tokens: int) -> None:
        if tokens >= self.context_length:
            raise PromptError(
                f"the prompt has {tokens} tokens, the model's context is {self.context_length}: "
                "shorten it (a second of speech is about 20 to 40 tokens)"
            )

    def encode_speech(self, segment: Segment) -> Segment:
        """Return the segment with its unit tokens, so that its audio is not encoded again; text stays as it is.

        Raises:
            CheckpointError, AudioError: as `encode`.
        """
        if segment.kind == "text" or segment.tokens is not None:
            return segment
        return dataclasses.replace(segment, tokens=self._units(segment))

    def _units(self, segment: Segment) -> str:
        """Return the unit tokens of a speech segment."""
        if segment.tokens is not None:
            return segment.tokens
        if isinstance(segment.content, SpeechUnits):
            return units_string(segment.content)
        if self.speech_encoder is None:
            raise CheckpointError("this checkpoint has no speech_tokenizer/ to hear audio with: give units instead")
        return units_string(self.speech_encoder.encode(segment.audio))


def segments_of(prompt: Segment | Sequence[Segment]) -> list[Segment]:
    """Return the segments of a prompt that is not a string.

    Raises:
        PromptError: the prompt is of another type.
    """
    if not isinstance(prompt, Segment | Sequence) or isinstance(prompt, bytes):
        raise PromptError(f"a prompt is a string, a segment or a list of segments, found {type(prompt).__name__}")
    segments = [prompt] if isinstance(prompt, Segment) else list(prompt)
    for segment in segments:
        if not isinstance(segment, Segment):
            raise PromptError(
                "a prompt is a string or a list of Segment.text(...) and Segment.speech(...), "
                f"found {type(segment).__name__}"
            )
    return segments


def build_prompt(segments: Sequence[Segment], output_modality: Modality, unit_string: Callable[[Segment], str]) -> str:
    """Return the string form of segments, as the released code builds it.

    A modality token stands only where the modality changes, so neighboring segments of one kind are joined. If the
    answer must be text or speech and the prompt ends in the other, the token of the answer follows. Contents are
    inserted unchanged.

    Args:
        unit_string: returns the unit tokens of a speech segment.
    """
    check_modality(output_modality)
    parts: list[str] = []
    last = None
    for segment in segments:
        if segment.kind != last:
            parts.append(_MODALITY_TOKENS[segment.kind])
        parts.append(segment.content if isinstance(segment.content, str) else unit_string(segment))
        last = segment.kind
    if output_modality not in ("any", last):
        parts.append(_MODALITY_TOKENS[output_modality])
    return "".join(parts)


def unit_tokens(string: str) -> str:
    """Return the unit tokens of a string and drop everything else."""
    return "".join(_UNIT.findall(string))


def units_string(units: SpeechUnits) -> str:
    """Return the string form of units at the frame rate or aligned (see `SpeechUnits`).

    Repeated phonetic units collapse at the frame rate and stay in aligned units.
    """
    expressive = [stream for stream in units.streams[1:] if stream is not None]
    if not expressive or len(units.hubert) < 2 or not units.is_aligned:
        return units.to_string()
    tokens: list[str] = []
    current: list[int | None] = [None, None, None]  # the value of each stream that the tokens so far set
    for index, hubert in enumerate(units.hubert.tolist()):
        for stream in (speech_units.STYLE, speech_units.PITCH):
            values = units.streams[stream]
            if values is not None and values[index] != current[stream]:
                current[stream] = values[index]
                tokens.append(f"[{speech_units.NAMES[stream]}{values[index]}]")
        tokens.append(f"[Hu{hubert}]")
    return "".join(tokens)


def check_modality(modality: str) -> None:
    """Check the name of an output modality.

    Raises:
        PromptError: it is not one of `MODALITIES`.
    """
    if modality not in MODALITIES:
        raise PromptError(f"output modality must be one of {', '.join(MODALITIES)}, found {modality!r}")


def check_unit_tokens(string: str, vocabulary: Vocabulary) -> None:
    """Check that the vocabulary has every unit token of a string. It would read others as text, letter by letter.

    Raises:
        PromptError: names the first unknown token and its position.
    """
    for match in _UNIT.finditer(string):
        stream = speech_units.NAMES.index(match[0][1:3])
        if stream not in vocabulary.streams:
            raise PromptError(
                f"{match[0][:20]} at position {match.start()}: Spirit LM {vocabulary.variant} has no "
                f"{('phonetic', 'pitch', 'style')[stream]} units; use an expressive checkpoint, or give the [Hu...] "
                "alone"
            )
        value, size = match[0][3:-1], speech_units.SIZES[stream]
        if len(value) > len(str(size)) or int(value) >= size or value != str(int(value)):
            raise PromptError(
                f"{match[0][:20]} at position {match.start()} is no token: "
                f"[{speech_units.NAMES[stream]}...] go from 0 to {size - 1}"
            )


def _check_characters(text: str) -> None:
    """Refuse a lone surrogate, which JSON can spell and no tokenizer can read."""
    if not is_encodable(text):
        place = next(place for place, character in enumerate(text) if not is_encodable(character))
        raise PromptError(f"position {place} of the text holds {text[place]!a}, half of a character: remove it")


def _name(source: str | os.PathLike | bytes) -> str:
    """The name of audio in messages."""
    return "audio" if isinstance(source, bytes) else os.fspath(source)
