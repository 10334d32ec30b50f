"""Bodies of requests of the server's own API, checked by pydantic."""

import re
from typing import Annotated, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, model_validator

from spirit_jax.core.files import is_encodable
from spirit_jax.inference.prompts import Segment
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.serving.limits import Limits
from spirit_jax.serving.service import Generation
from spirit_jax.serving.uploads import Recordings
from spirit_jax.speech.protocols import DEFAULT_SPEAKER
from spirit_jax.units import SpeechUnits

_UNITS = re.compile(r"(?:\[(?:Hu|Pi|St)[0-9]{1,3}\])+")


def _encodable(text: str) -> str:
    if not is_encodable(text):
        raise ValueError("holds half a character (a lone surrogate), which UTF-8 cannot hold")
    return text


def _units(text: str) -> str:
    if not _UNITS.fullmatch(text):
        raise ValueError("is not a unit string such as [St71][Pi39][Hu99][Hu49]")
    return text


Text = Annotated[str, AfterValidator(_encodable)]
"""A string that UTF-8 can hold."""
Units = Annotated[str, AfterValidator(_units)]
"""A unit string."""
Stop = Annotated[list[Text], Field(max_length=16)]
"""Strings that end an answer."""


def units_segment(units: str) -> Segment:
    """Return the segment of a string of `Units`. `Segment.speech` would open the file that a string may name.

    Raises:
        UnitError: a unit is out of range.
    """
    return Segment("speech", SpeechUnits.from_string(units), units)


class Body(BaseModel):
    """A body whose fields are all known and whose numbers are finite."""

    model_config = ConfigDict(extra="forbid", allow_inf_nan=False, use_attribute_docstrings=True)


class SamplingBody(Body):
    """Decoding options. A field that is left out keeps the checkpoint's value."""

    temperature: float | None = None
    """0 takes the most likely token; the paper uses 0.8 for open-ended answers."""
    top_k: int | None = Field(None, ge=0, le=10**6)
    """Draw from this many of the most likely tokens; 0 for all, if the server was started with `--any-top-k`."""
    top_p: float | None = None
    """Draw from the fewest most likely tokens that together have this probability; the paper uses 0.95."""
    min_p: float | None = None
    """Draw from tokens of at least this fraction of the highest probability."""
    repetition_penalty: float | None = None
    """Above 1, tokens that have occurred become less likely."""
    seed: int | None = Field(None, ge=-(2**63), le=2**63 - 1)
    """The same seed gives the same answer."""
    max_new_tokens: int | None = Field(None, ge=1, le=10**6)
    """Longest answer in tokens; a second of speech takes 20 to 40."""
    stop: Stop | None = None
    """Strings that end an answer."""
    grammar: bool | None = None
    """Keep generated speech well formed, whatever the model predicts."""

    def sampling(self, defaults: SamplingParams) -> SamplingParams:
        """Return the decoding options: those given here, else the defaults.

        Raises:
            SamplingError: a value is out of range.
        """
        given = {name: getattr(self, name) for name in SamplingBody.model_fields}
        return defaults.override(**given | {"stop": None if self.stop is None else tuple(self.stop)})


class SegmentBody(Body):
    """A stretch of text or of speech: one of the three fields."""

    text: Text | None = None
    audio: str | None = None
    """A sound file in base64."""
    units: Units | None = None
    """A unit string such as `[St71][Pi39][Hu99]`."""

    @model_validator(mode="after")
    def _one(self) -> Self:
        if sum(value is not None for value in (self.text, self.audio, self.units)) != 1:
            raise ValueError("give one of text, audio and units")
        return self

    def segment(self, recordings: Recordings) -> Segment:
        """Return the segment.

        Raises:
            AudioError: the audio cannot be read or is too long.
            UnitError: a unit is out of range.
        """
        if self.text is not None:
            return Segment.text(self.text)
        if self.units is not None:
            return units_segment(self.units)
        assert self.audio is not None
        return recordings.decode_base64(self.audio)


class GenerateBody(SamplingBody):
    """Body of `/v1/generate`: a prompt, as segments or as a token string, and how to continue it."""

    model: Text | None = None
    """Name of the model; it may be left out."""
    segments: Annotated[list[SegmentBody], Field(min_length=1, max_length=1000)] | None = None
    """The prompt as stretches of text and speech in any order."""
    prompt: Text | None = None
    """The prompt as a token string such as `[Text]the cat[Speech][Hu3]`, in place of segments."""
    output_modality: Literal["text", "speech", "any"] = "any"
    """Modalities that the answer may hold."""
    voice: int | Text = DEFAULT_SPEAKER
    """Voice of the vocoder, by number or name."""
    stream: bool = False
    """Send pieces of text and audio as server-sent events while they are generated."""

    @model_validator(mode="after")
    def _one_prompt(self) -> Self:
        if (self.segments is None) == (self.prompt is None):
            raise ValueError("give either segments or prompt")
        return self

    def generation(self, defaults: SamplingParams, limits: Limits, adapter: str) -> Generation:
        """Return what is asked for; recordings are decoded here.

        Raises:
            AudioError, UnitError, SamplingError: a field cannot be used.
        """
        recordings = Recordings(limits)
        prompt = self.prompt if self.prompt is not None else [part.segment(recordings) for part in self.segments or []]
        return Generation(prompt, self.output_modality, self.sampling(defaults), self.voice, self.stream, adapter)
