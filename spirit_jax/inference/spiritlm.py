"""SpiritLM: a checkpoint that continues text and speech with text and speech."""

import os
from collections.abc import Iterable, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from spirit_jax import checkpoint
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.inference import network
from spirit_jax.inference.engine import Engine, Request
from spirit_jax.inference.prompts import (
    _UNIT,
    MODALITIES,
    PromptError,
    Segment,
    build_prompt,
    check_modality,
    check_tokens,
    forbidden_ids,
    split_output,
    units_string,
)
from spirit_jax.inference.sampling import Sampling
from spirit_jax.models.llama import DTYPES, LlamaConfig, Params, RopeScaling
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.units import SpeechUnits
from spirit_jax.vocabulary import Vocabulary

Prompt = str | Segment | Sequence[Segment]
"""A token string, `[Text]the cat[Speech][Hu3]`, or segments of text and speech in any order."""


class SpiritLM:
    """A language model with its vocabulary, and the speech tokenizer where the checkpoint has one.

    Attributes:
        params, config: the Llama and its parameters, sharded over `mesh`.
        vocabulary: its tokens; base or expressive.
        speech_tokenizer: hears prompts and speaks answers; None: prompts hold units, and answers are units.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        vocabulary: Vocabulary,
        speech_tokenizer: SpeechTokenizer | None = None,
        mesh: Mesh | None = None,
    ):
        """
        Args:
            params: sharded over `mesh` by the table of rules (`inference.network.sharded_abstract_params`).
            mesh: None for the first local device.
        """
        if config.vocab_size < vocabulary.size:
            raise ValueError(
                f"the model has {config.vocab_size} rows, the vocabulary {vocabulary.size} tokens: "
                "they belong to different checkpoints"
            )
        self.params, self.config, self.vocabulary = params, config, vocabulary
        self.speech_tokenizer = speech_tokenizer
        self.mesh = _one_device() if mesh is None else mesh
        forbidden = forbidden_ids(vocabulary, config.vocab_size)
        self._engine = Engine(params, config, self.mesh, forbidden, vocabulary.eos_id)

    @classmethod
    def from_pretrained(
        cls, directory: str | os.PathLike, dtype: str | None = None, mesh: Mesh | None = None
    ) -> "SpiritLM":
        """Load a converted checkpoint, or any step of a training run.

        Args:
            dtype: "float32" or "bfloat16", of weights and computation; None: what the checkpoint's config says.
            mesh: devices to spread the model over, weights go straight into their shards; None for one device.

        Raises:
            CheckpointError: a part is missing or does not fit; names it.
        """
        settings = checkpoint.read_config(directory)
        config = _model_config(settings, directory, dtype)
        vocabulary = Vocabulary.load(checkpoint.find(directory, checkpoint.TOKENIZER), settings.get("variant"))
        mesh = _one_device() if mesh is None else mesh
        params = checkpoint.load_llm(directory, network.sharded_abstract_params(config, mesh))
        try:
            checkpoint.find(directory, checkpoint.SPEECH_TOKENIZER)
        except CheckpointError:
            speech_tokenizer = None
        else:
            speech_tokenizer = SpeechTokenizer.from_pretrained(directory, variant=vocabulary.variant)
        return cls(params, config, vocabulary, speech_tokenizer, mesh)

    def prompt_string(self, prompt: Prompt, output_modality: str = "any") -> str:
        """The string form of a prompt; a string is taken as it is.

        Raises:
            PromptError: nothing in it, a token that the checkpoint does not have, or speech that it cannot hear.
        """
        check_modality(output_modality)
        if isinstance(prompt, Segment):
            prompt = [prompt]
        if not isinstance(prompt, str):
            prompt = list(prompt)
            for segment in prompt:
                if not isinstance(segment, Segment):
                    raise PromptError(
                        f"a prompt is a string or a list of Segment.text(...) and Segment.speech(...), found {type(segment).__name__}"
                    )
            if not prompt:
                raise PromptError("the prompt is empty: give at least one segment, or a string")
            prompt = build_prompt(prompt, output_modality, self._unit_string)
        check_tokens(prompt, self.vocabulary)
        return prompt

    def _unit_string(self, segment: Segment) -> str:
        if segment.tokens is not None:
            return segment.tokens
        units = segment.content
        if not isinstance(units, SpeechUnits):
            if self.speech_tokenizer is None:
                raise CheckpointError(
                    "this checkpoint has no speech_tokenizer/ to hear audio with: give speech as units"
                )
            units = self.speech_tokenizer.encode(units)
        return units_string(units)

    def generate(
        self,
        prompt: Prompt,
        output_modality: str = "any",
        max_new_tokens: int = 200,
        temperature: float = 0.0,
        top_k: int | None = None,
        top_p: float = 1.0,
        seed: int = 0,
        speaker: int | str = 2,
        return_prompt: bool = False,
    ) -> list[Segment] | tuple[list[Segment], str]:
        """Continue a prompt of text and speech.

        Args:
            prompt: segments in any order, or a token string, which is taken as it is.
            output_modality: "text", "speech", or "any": whatever comes, in any order.
            max_new_tokens: stops there, at the end of the document, or at the end of the context.
            temperature: 0 takes the most likely token each time; above, tokens are drawn.
            top_k: draw from this many tokens; None for 50, as the released code does; 0 for all.
            top_p: draw from the fewest tokens that have this probability together.
            seed: the same seed gives the same tokens, whatever else is in the batch.
            speaker: voice of the vocoder, by number or name.
            return_prompt: return also the string form of the prompt.

        Returns:
            The new segments (see `split_output`), with `return_prompt` together with the prompt's string.

        Raises:
            PromptError: a prompt that cannot be used: empty, longer than the context, with unknown tokens.
            CheckpointError: speech in the prompt and no speech tokenizer in the checkpoint.
        """
        string = self.prompt_string(prompt, output_modality)
        ids = self.vocabulary.encode(string)
        sampling = {"temperature": temperature, "top_k": top_k, "top_p": top_p, "seed": seed}
        new = self.generate_ids(ids, output_modality, max_new_tokens, **sampling)
        segments = self._segments(ids, new, output_modality, speaker)
        return (segments, string) if return_prompt else segments

    def generate_ids(
        self,
        ids: Sequence[int],
        output_modality: str = "any",
        max_new_tokens: int = 200,
        **sampling,
    ) -> Int[np.ndarray, " N"]:
        """The new ids after those of a prompt, int32 [N]; `</s>` is the last where the document ends.

        Args:
            sampling: the fields of `Sampling`, as in `generate`.

        Raises:
            PromptError: no ids, ids outside the vocabulary, or a prompt longer than the context.
        """
        request = self._request(ids, output_modality, max_new_tokens, Sampling(**sampling))
        ((_, new, _),) = self._engine.run([request], slots=1)
        return new

    def _request(self, ids: Sequence[int], modality: str, max_new_tokens: int, sampling: Sampling) -> Request:
        check_modality(modality)
        ids = np.asarray(ids, np.int32)
        context = self.config.max_position_embeddings
        if ids.ndim != 1 or not ids.size:
            raise PromptError(f"a prompt is one or more ids, found shape {ids.shape}")
        if ids.min() < 0 or ids.max() >= self.vocabulary.size:
            raise PromptError(f"ids go from 0 to {self.vocabulary.size - 1}, found {ids.min()}..{ids.max()}")
        if max_new_tokens < 1:
            raise PromptError(f"max_new_tokens must be 1 or more, found {max_new_tokens}")
        if ids.size >= context:
            raise PromptError(
                f"the prompt has {ids.size} tokens, the model's context is {context}: shorten it "
                "(a second of speech is about 20 to 40 tokens)"
            )
        return Request(ids, min(max_new_tokens, context - ids.size), MODALITIES.index(modality), sampling)

    def _segments(self, ids: Iterable[int], new: Iterable[int], modality: str, speaker: int | str) -> list[Segment]:
        """New ids as segments of text and speech."""
        prompt, decoded = self.vocabulary.decode(ids), self.vocabulary.decode([*ids, *new])
        return split_output(prompt, decoded, modality, lambda string: self._voice(string, speaker))

    def _voice(self, string: str, speaker: int | str) -> np.ndarray | SpeechUnits:
        """The sound of a run of unit tokens; no sound where there is no phonetic unit; units where there is no vocoder."""
        units = SpeechUnits.from_string("".join(_UNIT.findall(string)))
        if self.speech_tokenizer is None or self.speech_tokenizer.vocoder is None:
            return units
        if not units.hubert.size:
            return np.zeros(0, np.float32)
        return self.speech_tokenizer.decode(units, speaker=speaker)


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
