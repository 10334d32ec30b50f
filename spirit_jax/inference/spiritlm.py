"""SpiritLM: a checkpoint that continues text and speech with text and speech."""

import dataclasses
import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spirit_jax import checkpoint
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.inference import network, scoring
from spirit_jax.inference.engine import Engine, Request, Tables
from spirit_jax.inference.grammar import Grammar
from spirit_jax.inference.loading import load_params
from spirit_jax.inference.prompts import (
    MODALITIES,
    PromptError,
    Segment,
    build_prompt,
    check_modality,
    check_tokens,
    forbidden_ids,
    split_output,
    unit_tokens,
    units_string,
)
from spirit_jax.inference.sampling import Sampling
from spirit_jax.inference.streaming import NEUTRAL_PITCH, NEUTRAL_STYLE, pieces_of
from spirit_jax.models.llama import DTYPES, LlamaConfig, Params, RopeScaling
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

Prompt = str | Segment | Sequence[Segment]
"""A token string, `[Text]the cat[Speech][Hu3]`, or segments of text and speech in any order."""

_MAX_NEW_TOKENS = 200
_STOP_STEPS = 16  # tokens between two looks for a stop string


class SpiritLM:
    """A language model with its vocabulary, and the speech tokenizer where the checkpoint has one.

    Attributes:
        params, config: the Llama and its parameters, sharded over `mesh` and arranged as generation reads them
            (`inference.network.arrange`).
        vocabulary: its tokens; base or expressive.
        speech_tokenizer: hears prompts and speaks answers; None: prompts hold units, and answers are units.
        sampling, max_new_tokens: what `generate` does when it is not told otherwise: the checkpoint's recommendation
            (`generation` in its config.json, Hugging Face's names), else greedy and 200 tokens.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        vocabulary: Vocabulary,
        speech_tokenizer: SpeechTokenizer | None = None,
        mesh: Mesh | None = None,
        generation: dict[str, Any] | None = None,
    ):
        """
        Args:
            params: sharded over `mesh` by the table of rules (`inference.network.param_shardings`), int8 or not.
            mesh: None for the first local device.
            generation: the defaults of `generate`, as Hugging Face's generation_config.json names them.

        Raises:
            ValueError: the model is too small for the vocabulary, or a default makes no sense.
        """
        if config.vocab_size < vocabulary.size:
            raise ValueError(
                f"the model has {config.vocab_size} rows, the vocabulary {vocabulary.size} tokens: "
                "they belong to different checkpoints"
            )
        self.config, self.vocabulary, self.speech_tokenizer = config, vocabulary, speech_tokenizer
        self.sampling = Sampling.of_checkpoint(generation or {})
        self.max_new_tokens = (generation or {}).get("max_new_tokens") or _MAX_NEW_TOKENS
        self.mesh = _one_device() if mesh is None else mesh
        self.params = network.arrange(config, params, self.mesh)
        self._grammar = Grammar.of(vocabulary, config.vocab_size)
        tables = Tables(forbidden_ids(vocabulary, config.vocab_size), self._grammar)
        self._engine = Engine(self.params, config, self.mesh, tables, vocabulary.eos_id)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, dtype: str | None = None, mesh: Mesh | None = None, int8: bool = False
    ) -> "SpiritLM":
        """Load a converted checkpoint, or any step of a training run.

        Args:
            dtype: "float32" or "bfloat16", of weights and computation; None: what the checkpoint's config says.
            mesh: devices to spread the model over, weights go straight into their shards; None for one device.
            int8: keep matrices in 8 bits, half of bfloat16's memory; they are quantised as they are read.

        Raises:
            CheckpointError: a part is missing or does not fit; names it.
        """
        settings = checkpoint.read_config(directory)
        config = _model_config(settings, directory, dtype)
        vocabulary = Vocabulary.load(checkpoint.find(directory, checkpoint.TOKENIZER), settings.get("variant"))
        mesh = _one_device() if mesh is None else mesh
        params = load_params(directory, config, mesh, int8)
        try:
            checkpoint.find(directory, checkpoint.SPEECH_TOKENIZER)
        except CheckpointError:
            speech_tokenizer = None
        else:
            speech_tokenizer = SpeechTokenizer.from_pretrained(directory, variant=vocabulary.variant)
        return cls(params, config, vocabulary, speech_tokenizer, mesh, settings.get("generation"))

    def prompt_string(self, prompt: Prompt, output_modality: str = "any") -> str:
        """The string form of a prompt; a string is taken as it is.

        Raises:
            PromptError: nothing in it, a token that the checkpoint does not have, or speech that it cannot hear.
        """
        check_modality(output_modality)
        if not isinstance(prompt, str):
            segments = _segments(prompt)
            if not segments:
                raise PromptError("the prompt is empty: give at least one segment, or a string")
            prompt = build_prompt(segments, output_modality, self._unit_string)
        check_tokens(prompt, self.vocabulary)
        return prompt

    def _unit_string(self, segment: Segment) -> str:
        if segment.tokens is not None:
            return segment.tokens
        units = segment.content
        if not isinstance(units, SpeechUnits):
            if self.speech_tokenizer is None:
                raise CheckpointError("this checkpoint has no speech_tokenizer/ to hear audio with: give units instead")
            units = self.speech_tokenizer.encode(units)
        return units_string(units)

    def generate(
        self,
        prompt: Prompt,
        output_modality: str = "any",
        max_new_tokens: int | None = None,
        temperature: float | None = None,
        top_k: int | None = None,
        top_p: float | None = None,
        min_p: float | None = None,
        repetition_penalty: float | None = None,
        seed: int = 0,
        stop: str | Sequence[str] = (),
        grammar: bool = False,
        speaker: int | str = 2,
        return_prompt: bool = False,
    ) -> list[Segment] | tuple[list[Segment], str]:
        """Continue a prompt of text and speech.

        What is None is the checkpoint's recommendation (`self.sampling`, `self.max_new_tokens`).

        Args:
            prompt: segments in any order, or a token string, which is taken as it is.
            output_modality: "text", "speech", or "any": whatever comes, in any order.
            max_new_tokens: stops there, at the end of the document, or at the end of the context.
            temperature: 0 takes the most likely token each time; above, tokens are drawn.
            top_k: draw from this many tokens, 0 for all; where the checkpoint says nothing 50, as the released code does.
            top_p: draw from the fewest tokens that have this probability together.
            min_p: draw from tokens with at least this fraction of the most likely one's probability.
            repetition_penalty: above 1, tokens that have occurred become less likely.
            seed: the same seed gives the same tokens, whatever else is in the batch.
            stop: strings at whose first occurrence the answer ends; they are not part of it.
            grammar: keep speech well formed (`spirit_jax.inference.grammar`), which a poorly trained model may need.
            speaker: voice of the vocoder, by number or name.
            return_prompt: return also the string form of the prompt.

        Returns:
            The new segments (see `split_output`), with `return_prompt` together with the prompt's string.

        Raises:
            PromptError: a prompt that cannot be used: empty, longer than the context, with unknown tokens.
            CheckpointError: speech in the prompt and no speech tokenizer in the checkpoint.
            AudioError: speech that is too short or cannot be read.
            ValueError: a setting that makes no sense, or a speaker that the vocoder does not have.
        """
        options = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "min_p": min_p, "seed": seed}
        options |= {"repetition_penalty": repetition_penalty, "stop": stop, "grammar": grammar, "speaker": speaker}
        string = self.prompt_string(prompt, output_modality)
        (segments,) = self.generate_batch([string], output_modality, max_new_tokens, **options)
        return (segments, string) if return_prompt else segments

    def generate_batch(
        self, prompts: Sequence[Prompt], output_modality: str = "any", max_new_tokens: int | None = None, **options
    ) -> list[list[Segment]]:
        """`generate` for many prompts at once: the same answers, in the order of the prompts. Arguments as there, and
        `slots` as in `as_completed`."""
        answers = dict(self.as_completed(prompts, output_modality, max_new_tokens, **options))
        return [answers[index] for index in range(len(prompts))]

    def as_completed(
        self,
        prompts: Sequence[Prompt],
        output_modality: str = "any",
        max_new_tokens: int | None = None,
        *,
        slots: int = 16,
        stop: str | Sequence[str] = (),
        grammar: bool = False,
        speaker: int | str = 2,
        **sampling,
    ) -> Iterator[tuple[int, list[Segment]]]:
        """Yield (index of a prompt, its answer) as they finish. Arguments as in `generate`.

        Args:
            slots: prompts that are worked on at a time. Where one finishes the next one starts.
        """
        stops = (stop,) if isinstance(stop, str) else tuple(stop)
        if "" in stops:
            raise PromptError("a stop string needs at least one character")
        if slots < 1:
            raise PromptError(f"slots must be 1 or more, found {slots}")
        self._check_speaker(speaker, output_modality)
        encoded = [self.vocabulary.encode(self.prompt_string(prompt, output_modality)) for prompt in prompts]
        method = self._sampling(sampling)
        requests = [self._request(ids, output_modality, max_new_tokens, method, grammar) for ids in encoded]

        def stopped(index: int, new: np.ndarray) -> bool:
            return _find_stop(self._new_text(encoded[index], new), stops) is not None

        steps = {"steps": _STOP_STEPS, "stop": stopped} if stops else {}
        for index, new, finished in self._engine.run(requests, slots, **steps) if requests else ():
            if finished:
                yield index, self._answer(encoded[index], new, output_modality, stops, speaker)

    def _answer(
        self, ids: Sequence[int], new: Sequence[int], modality: str, stops: Sequence[str], speaker: int | str
    ) -> list[Segment]:
        """New ids as segments."""
        prompt, text = self.vocabulary.decode(ids), self._new_text(ids, new)
        decoded = prompt + text[: _find_stop(text, stops)]
        return split_output(prompt, decoded, modality, self._voice(decoded, speaker))

    def _new_text(self, ids: Sequence[int], new: Sequence[int]) -> str:
        """The string form of what comes after a prompt."""
        prompt, decoded = self.vocabulary.decode(ids), self.vocabulary.decode([*ids, *new])
        return decoded[len(prompt) :] if decoded.startswith(prompt) else self.vocabulary.decode(new)

    def generate_ids(
        self,
        ids: Sequence[int],
        output_modality: str = "any",
        max_new_tokens: int | None = None,
        *,
        grammar: bool = False,
        **sampling,
    ) -> Int[np.ndarray, " N"]:
        """The new ids after those of a prompt, int32 [N]; `</s>` is the last where the document ends.

        Args:
            sampling: the fields of `Sampling`, as in `generate`.

        Raises:
            PromptError: no ids, ids outside the vocabulary, or a prompt longer than the context.
        """
        request = self._request(ids, output_modality, max_new_tokens, self._sampling(sampling), grammar)
        ((_, new, _),) = self._engine.run([request], slots=1)
        return new

    def stream(
        self,
        prompt: Prompt,
        output_modality: str = "any",
        max_new_tokens: int | None = None,
        *,
        grammar: bool = False,
        speaker: int | str = 2,
        steps: int = 8,
        **sampling,
    ) -> Iterator[Segment]:
        """Yield text pieces and stretches of audio as they come; arguments as in `generate`.

        The tokens are those of `generate`. All speech is spoken, however short, and speech that goes on from the prompt
        starts anew. Audio comes in chunks where the vocoder can (HiFi-GAN), else a run of units at a time.

        Args:
            steps: tokens that are generated between two looks.
        """
        self._check_speaker(speaker, output_modality)
        ids = self.vocabulary.encode(self.prompt_string(prompt, output_modality))
        request = self._request(ids, output_modality, max_new_tokens, self._sampling(sampling), grammar)

        def arrivals() -> Iterator[list[int]]:
            seen = 0
            for _, new, _ in self._engine.run([request], slots=1, steps=steps):
                yield new[seen:].tolist()
                seen = len(new)

        vocoder = None if self.speech_tokenizer is None else self.speech_tokenizer.vocoder
        speak = None if vocoder is None or vocoder.latency() is None else vocoder.stream
        yield from pieces_of(
            arrivals(),
            self.vocabulary,
            None if speak is None else lambda pieces: speak(pieces, speaker=speaker),
            self._voice(self.vocabulary.decode(ids), speaker),
        )

    def log_likelihood(self, prompt: Prompt, continuation: Prompt) -> tuple[float, int]:
        """Log-probability in nats of a continuation after a prompt, and its number of tokens; see `log_likelihood_batch`."""
        return self.log_likelihood_batch([(prompt, continuation)])[0]

    def log_likelihood_batch(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[tuple[float, int]]:
        """Sum of log-probabilities in nats, and number of tokens, of each continuation given its prompt.

        Prompt and continuation are strings, or both segments; a modality token between them belongs to the prompt. They
        are encoded together, as one document without its end, and what differs from the prompt's own ids counts. An
        empty prompt ("") is `<s>` alone.

        Raises:
            PromptError: an empty continuation, a string beside segments, or more tokens than the context has.
        """
        documents = [self._document(prompt, continuation) for prompt, continuation in pairs]
        sums = scoring.log_likelihoods(self.config, self.mesh, self.params, documents)
        return [(float(total), len(ids) - start) for total, (ids, start) in zip(sums, documents, strict=True)]

    def _document(self, prompt: Prompt, continuation: Prompt) -> tuple[list[int], int]:
        """Ids of a prompt with its continuation, and where the continuation starts."""
        if isinstance(prompt, str) != isinstance(continuation, str):
            raise PromptError("prompt and continuation must both be strings, or both segments")
        if isinstance(prompt, str):
            before, whole = prompt, prompt + continuation
        else:
            first, second = _segments(prompt), _segments(continuation)
            before = build_prompt(first, second[0].kind if second else "any", self._unit_string)
            whole = build_prompt([*first, *second], "any", self._unit_string)
        check_tokens(whole, self.vocabulary)
        head, ids = self.vocabulary.encode(before), self.vocabulary.encode(whole)
        start = next((i for i, (a, b) in enumerate(zip(head, ids, strict=False)) if a != b), min(len(head), len(ids)))
        if start == len(ids):
            raise PromptError("the continuation is empty: there is nothing to score")
        self._check_length(len(ids) - 1)
        return ids, start

    def logits(self, ids: Int[np.ndarray, "B T"] | Sequence[int]) -> Float[Array, "B T V"]:
        """Scores of the token after each id, float32; a single row of ids gives a batch of one."""
        ids = np.atleast_2d(np.asarray(ids, np.int32))
        self._check_ids(ids)
        return scoring.logits(self.config, self.mesh, self.params, ids)

    def _request(
        self, ids: Sequence[int], modality: str, max_new_tokens: int | None, sampling: Sampling, grammar: bool
    ) -> Request:
        check_modality(modality)
        ids = np.asarray(ids, np.int32)
        if ids.ndim != 1 or not ids.size:
            raise PromptError(f"a prompt is one or more ids, found shape {ids.shape}")
        self._check_ids(ids)
        if max_new_tokens is None:
            max_new_tokens = self.max_new_tokens
        if not isinstance(max_new_tokens, int | np.integer) or max_new_tokens < 1:
            raise PromptError(f"max_new_tokens must be an integer of 1 or more, found {max_new_tokens}")
        state = self._grammar.start(ids, modality == "speech") if grammar else None
        most = min(max_new_tokens, self.config.max_position_embeddings - ids.size)
        return Request(ids, most, MODALITIES.index(modality), sampling, state)

    def _sampling(self, given: dict[str, Any]) -> Sampling:
        """The checkpoint's way of choosing tokens, but for what is given."""
        return dataclasses.replace(self.sampling, **{name: value for name, value in given.items() if value is not None})

    def _check_ids(self, ids: np.ndarray) -> None:
        if ids.size and (ids.min() < 0 or ids.max() >= self.vocabulary.size):
            raise PromptError(f"ids go from 0 to {self.vocabulary.size - 1}, found {ids.min()}..{ids.max()}")
        self._check_length(ids.shape[-1])

    def _check_length(self, tokens: int) -> None:
        if tokens >= self.config.max_position_embeddings:
            raise PromptError(
                f"the prompt has {tokens} tokens, the model's context is {self.config.max_position_embeddings}: "
                "shorten it (a second of speech is about 20 to 40 tokens)"
            )

    def _check_speaker(self, speaker: int | str, modality: str) -> None:
        """Refuse, before anything is generated, a voice that the vocoder does not have."""
        if self.speech_tokenizer is not None and self.speech_tokenizer.vocoder is not None and modality != "text":
            self.speech_tokenizer.vocoder.speaker_index(speaker)

    def _voice(self, context: str, speaker: int | str):
        """What speaks a run of unit tokens: no sound where there is no phonetic unit, units where there is no vocoder.

        An expressive vocoder needs pitch and style: a run without any is spoken in the first pitch of the context, or a
        neutral one, and in the first of the styles that the reference draws from.
        """
        vocoder = None if self.speech_tokenizer is None else self.speech_tokenizer.vocoder

        def voice(string: str) -> np.ndarray | SpeechUnits:
            units = SpeechUnits.from_string(unit_tokens(string))
            if vocoder is None:
                return units
            if not units.hubert.size:
                return np.zeros(0, np.float32)
            if self.vocabulary.variant == "expressive":
                known = SpeechUnits.from_string(unit_tokens(context) + "[Hu0]").pitch  # a phonetic unit to hold it
                pitch = NEUTRAL_PITCH if known is None else known[0]
                units = SpeechUnits(
                    units.hubert,
                    np.full_like(units.hubert, pitch) if units.pitch is None else units.pitch,
                    np.full_like(units.hubert, NEUTRAL_STYLE) if units.style is None else units.style,
                )
            return self.speech_tokenizer.decode(units, speaker=speaker)

        return voice


def _segments(prompt: Prompt) -> list[Segment]:
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


def _find_stop(text: str, stops: Sequence[str]) -> int | None:
    """Where the first stop string begins, None where there is none."""
    return min((place for place in map(text.find, stops) if place >= 0), default=None)


def _one_device() -> Mesh:
    return make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1])


def _model_config(settings: dict, directory: str | os.PathLike, dtype: str | None) -> LlamaConfig:
    """The Llama's config out of a checkpoint's, set up for inference."""
    fields = dict(settings.get("model") or {})
    if fields.get("rope_scaling"):
        fields["rope_scaling"] = RopeScaling(**fields["rope_scaling"])
    if dtype is not None:
        if dtype not in DTYPES:
            raise ValueError(f"dtype must be one of {', '.join(DTYPES)}, found {dtype!r}")
        fields |= {"dtype": dtype, "param_dtype": dtype}
    try:
        return LlamaConfig(**(fields | {"remat": "none"}))
    except TypeError as error:
        raise CheckpointError(
            f"{directory}/{checkpoint.CONFIG}: 'model' does not describe a Llama ({error})"
        ) from error
