"""Bodies of OpenAI's API, as far as a base model of text and speech can serve them.

Fields beyond OpenAI's, such as `output_modality` and `top_k`, are those of `/v1/generate`; the Python client sends them
as `extra_body`. Fields that cannot be served are refused unless they ask for nothing.
"""

import re
from typing import Annotated, Any, Literal, Self

from pydantic import Field, model_validator

from spirit_jax.inference.prompts import Modality, Prompt, Segment
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.serving.limits import Limits
from spirit_jax.serving.schemas import Body, Stop, Text, Units, units_segment
from spirit_jax.serving.service import Generation
from spirit_jax.serving.uploads import Recordings
from spirit_jax.speech.protocols import DEFAULT_SPEAKER

STOCK_VOICES = "alloy ash ballad cedar coral echo fable marin nova onyx sage shimmer verse".split()
"""Voices of OpenAI's own service; clients that name one get the default voice."""

_UNIT_NAME = re.compile(r"(?:Hu|Pi|St)[0-9]{1,3}")
_AUDIO_ID = "audio_"


def audio_id(units: str) -> str:
    """Return the id of an answer in speech. It holds the units, so that a later request can refer to it."""
    return _AUDIO_ID + units.replace("][", ".").strip("[]")


def units_of_audio_id(text: str) -> str:
    """Return the units that an id of `audio_id` holds.

    Raises:
        ValueError: it is no such id.
    """
    names = text.removeprefix(_AUDIO_ID).split(".")
    if not text.startswith(_AUDIO_ID) or not all(map(_UNIT_NAME.fullmatch, names)):
        raise ValueError("audio.id is not one that this server gave")
    return "".join(f"[{name}]" for name in names)


class CommonBody(Body):
    """Fields that completions and chat completions share."""

    model: Text
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = Field(None, ge=0, le=10**6)
    min_p: float | None = None
    repetition_penalty: float | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    max_tokens: int | None = Field(None, ge=1, le=10**6)
    stop: Text | Stop | None = None
    grammar: bool | None = None
    n: int | None = Field(None, ge=1, le=8)
    stream: bool | None = None

    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    logit_bias: dict[str, float] | None = None
    logprobs: bool | int | None = None

    stream_options: dict[str, Any] | None = None
    user: Any = None
    store: Any = None
    metadata: Any = None
    service_tier: Any = None
    safety_identifier: Any = None
    prompt_cache_key: Any = None

    @model_validator(mode="after")
    def _servable(self) -> Self:
        for name in ("frequency_penalty", "presence_penalty", "logit_bias", "logprobs"):
            if getattr(self, name):
                raise ValueError(f"{name} is not supported; leave it out")
        if self.stream and (self.n or 1) > 1:
            raise ValueError("a stream has one answer; n must be 1")
        return self

    @property
    def include_usage(self) -> bool:
        """Whether a stream ends with the numbers of tokens."""
        return bool((self.stream_options or {}).get("include_usage"))

    def sampling(self, defaults: SamplingParams, max_tokens: int | None, number: int) -> SamplingParams:
        """Return the decoding options of answer `number`; every answer has a seed of its own.

        Raises:
            SamplingError: a value is out of range.
        """
        stop = (self.stop,) if isinstance(self.stop, str) else self.stop
        return defaults.override(
            temperature=self.temperature,
            top_p=self.top_p,
            top_k=self.top_k,
            min_p=self.min_p,
            repetition_penalty=self.repetition_penalty,
            seed=(self.seed or 0) + number,
            max_new_tokens=max_tokens,
            stop=None if stop is None else tuple(stop),
            grammar=self.grammar,
        )


class CompletionBody(CommonBody):
    """Body of `/v1/completions`."""

    prompt: Text | Annotated[list[Text], Field(min_length=1, max_length=64)] = "[Text]"
    """A token string such as `[Text]the cat`; a string without a token at its start is text."""
    output_modality: Literal["text", "speech", "any"] = "text"
    echo: bool | None = None
    suffix: Text | None = None
    best_of: int | None = None

    @model_validator(mode="after")
    def _no_edits(self) -> Self:
        if self.suffix:
            raise ValueError("suffix is not supported; leave it out")
        if (self.best_of or 1) > (self.n or 1):
            raise ValueError("best_of is not supported; leave it out")
        if self.stream and isinstance(self.prompt, list) and len(self.prompt) > 1:
            raise ValueError("a stream has one prompt")
        return self

    def prompts(self) -> list[str]:
        """Return the prompts as token strings."""
        given = [self.prompt] if isinstance(self.prompt, str) else self.prompt
        return [text if text.startswith("[") else f"[Text]{text}" for text in given]

    def generation(self, prompt: str, number: int, defaults: SamplingParams, adapter: str) -> Generation:
        """Return what is asked for: answer `number` to a prompt."""
        sampling = self.sampling(defaults, self.max_tokens, number)
        return Generation(prompt, self.output_modality, sampling, stream=bool(self.stream), adapter=adapter)


class TextPart(Body):
    """Text in a message."""

    type: Literal["text"]
    text: Text


class InputAudio(Body):
    """A recording in base64."""

    data: str
    format: str | None = None


class AudioPart(Body):
    """A recording in a message."""

    type: Literal["input_audio"]
    input_audio: InputAudio


class UnitsPart(Body):
    """Speech units in a message; OpenAI has no such part."""

    type: Literal["units"]
    units: Units


class AnsweredAudio(Body):
    """A reference to the speech of an earlier answer."""

    id: str


class Message(Body):
    """One message of a chat."""

    role: Literal["system", "developer", "user", "assistant"]
    content: Text | list[Annotated[TextPart | AudioPart | UnitsPart, Field(discriminator="type")]] | None = None
    audio: AnsweredAudio | None = None
    name: Any = None
    refusal: None = None

    def segments(self, recordings: Recordings) -> list[Segment]:
        """Return the text and speech of the message.

        Raises:
            AudioError, UnitError: a part cannot be read.
        """
        found: list[Segment] = []
        if isinstance(self.content, str):
            found += [Segment.text(self.content)] if self.content else []
        for part in self.content if isinstance(self.content, list) else []:
            if isinstance(part, TextPart):
                found.append(Segment.text(part.text))
            elif isinstance(part, UnitsPart):
                found.append(units_segment(part.units))
            else:
                found.append(recordings.decode_base64(part.input_audio.data))
        if self.audio is not None:
            found.append(units_segment(units_of_audio_id(self.audio.id)))
        return found


class AudioOptions(Body):
    """Form in which speech is sent."""

    voice: int | Text | dict[str, Text] | None = None
    format: Literal["wav", "flac", "mp3", "opus", "pcm16", "aac"] = "wav"


class ChatBody(CommonBody):
    """Body of `/v1/chat/completions`. The model continues the messages as one document; it knows no roles."""

    messages: Annotated[list[Message], Field(min_length=1, max_length=1000)]
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOptions | None = None
    max_completion_tokens: int | None = Field(None, ge=1, le=10**6)
    response_format: dict[str, Any] | None = None
    tools: list[Any] | None = None
    tool_choice: Any = None
    top_logprobs: int | None = None
    parallel_tool_calls: Any = None
    reasoning_effort: Any = None
    verbosity: Any = None

    @model_validator(mode="after")
    def _no_tools(self) -> Self:
        if self.tools:
            raise ValueError("tools are not supported; leave them out")
        if (self.response_format or {}).get("type", "text") != "text":
            raise ValueError("response_format must be text")
        for message in self.messages:
            if message.audio is not None:
                units_of_audio_id(message.audio.id)
        return self

    @property
    def output_modality(self) -> Modality:
        """Modalities that the answer may hold."""
        asked = set(self.modalities or ["text"])
        return "any" if len(asked) == 2 else "speech" if asked == {"audio"} else "text"

    @property
    def speaker(self) -> int | str:
        """The voice of the answer."""
        voice = None if self.audio is None else self.audio.voice
        return speaker_of(voice.get("id") if isinstance(voice, dict) else voice)

    def prompt(self, limits: Limits) -> Prompt:
        """Return the messages as one document. Neighboring texts get a space between them where there is none.

        Raises:
            AudioError, UnitError: a part cannot be read.
        """
        document: list[Segment] = []
        recordings = Recordings(limits)
        for segment in (segment for message in self.messages for segment in message.segments(recordings)):
            last = document[-1].content if document else None
            if isinstance(segment.content, str) and isinstance(last, str) and last and not last[-1].isspace():
                segment = Segment.text(segment.content if segment.content[:1].isspace() else f" {segment.content}")
            document.append(segment)
        return document

    def generation(self, prompt: Prompt, number: int, defaults: SamplingParams, adapter: str) -> Generation:
        """Return what is asked for: answer `number` to the messages."""
        sampling = self.sampling(defaults, self.max_completion_tokens or self.max_tokens, number)
        return Generation(prompt, self.output_modality, sampling, self.speaker, bool(self.stream), adapter)


class SpeechBody(Body):
    """Body of `/v1/audio/speech`: the model reads a text aloud, as far as it has learned to."""

    model: Text
    input: Annotated[Text, Field(min_length=1, max_length=4096)]
    voice: int | Text | dict[str, Text] | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] | None = None
    speed: float | None = None
    instructions: Text | None = None
    stream_format: Literal["audio", "sse"] | None = None
    temperature: float | None = None
    top_p: float | None = None
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    max_tokens: int | None = Field(None, ge=1, le=10**6)

    @model_validator(mode="after")
    def _servable(self) -> Self:
        if self.speed not in (None, 1.0):
            raise ValueError("speed must be 1")
        if self.instructions:
            raise ValueError("instructions are not supported; leave them out")
        return self

    def generation(self, defaults: SamplingParams, adapter: str, *, stream: bool) -> Generation:
        """Return what is asked for: the text, continued in speech."""
        sampling = defaults.override(
            temperature=self.temperature, top_p=self.top_p, seed=self.seed, max_new_tokens=self.max_tokens
        )
        voice = self.voice.get("id") if isinstance(self.voice, dict) else self.voice
        return Generation([Segment.text(self.input)], "speech", sampling, speaker_of(voice), stream, adapter)


def speaker_of(voice: int | str | None) -> int | str:
    """Return the voice that a client names: a number, also as digits, or a name. OpenAI's voices mean the default."""
    if voice is None or voice in STOCK_VOICES:
        return DEFAULT_SPEAKER
    return int(voice) if isinstance(voice, str) and re.fullmatch(r"[0-9]{1,6}", voice) else voice
