"""SpiritLM: a checkpoint that continues text and speech with text and speech."""

import os
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Float, Int

from spirit_jax import checkpoint
from spirit_jax.adapters import Adapter, read_adapter
from spirit_jax.checkpoint import CheckpointError
from spirit_jax.inference import literals, network, scoring
from spirit_jax.inference.answers import answer_segments
from spirit_jax.inference.engine import Engine
from spirit_jax.inference.loading import load_params, model_config
from spirit_jax.inference.prompts import EncodedPrompt, Modality, Prompt, PromptEncoder, Segment, Task
from spirit_jax.inference.sampling_params import SamplingError, SamplingParams
from spirit_jax.inference.scheduler import Capacity, Request
from spirit_jax.inference.scoring import TokenScores
from spirit_jax.inference.streaming import stream_segments
from spirit_jax.inference.voice import Voice
from spirit_jax.models import quantized
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.models.llama_config import Quantization
from spirit_jax.parallel.mesh import MeshConfig, make_mesh
from spirit_jax.speech.protocols import DEFAULT_SPEAKER, F0Extractor
from spirit_jax.speech.tokenizer import SpeechTokenizer
from spirit_jax.vocabulary import Vocabulary


class SpiritLM:
    """A language model with its vocabulary, and with a speech tokenizer if the checkpoint has one.

    Attributes:
        config: shape and numerics of the Llama.
        params: its parameters, sharded over `mesh` and laid out as `inference.network.arrange` returns them.
        vocabulary: its tokens, of Spirit LM Base or Expressive.
        speech_tokenizer: encodes the audio of prompts and speaks answers. Without one, prompts and answers hold units.
        sampling: default decoding options: those that the checkpoint recommends.
        adapter: the low-rank adapter that `from_pretrained` merged into the parameters, if there is one.
        engine: runs requests; a server takes its scheduler from it.
    """

    def __init__(
        self,
        params: Params,
        config: LlamaConfig,
        vocabulary: Vocabulary,
        speech_tokenizer: SpeechTokenizer | None = None,
        mesh: Mesh | None = None,
        sampling: SamplingParams | None = None,
    ):
        """
        Args:
            params: sharded over `mesh` by the table of sharding rules (`inference.network.param_shardings`), in floats
                or quantized.
            mesh: None means the first local device.
            sampling: default decoding options; None decodes greedily.

        Raises:
            CheckpointError: the model has fewer rows than the vocabulary has tokens.
        """
        if config.vocab_size < vocabulary.size:
            raise CheckpointError(
                f"the model has {config.vocab_size} rows, the vocabulary {vocabulary.size} tokens: "
                "they belong to different checkpoints"
            )
        self.config, self.vocabulary, self.speech_tokenizer = config, vocabulary, speech_tokenizer
        self.sampling = SamplingParams() if sampling is None else sampling
        self.adapter: Adapter | None = None
        self.mesh = _first_device() if mesh is None else mesh
        self.params = network.arrange(config, params, self.mesh)
        self.engine = Engine(self.params, config, self.mesh, vocabulary)

    @classmethod
    def from_pretrained(
        cls,
        directory: str | os.PathLike,
        dtype: str | None = None,
        mesh: Mesh | None = None,
        quantize: Quantization | None = None,
        f0: F0Extractor | None = None,
        adapter: str | os.PathLike | None = None,
    ) -> "SpiritLM":
        """Load a converted checkpoint, or any step of a training run.

        The parts of its speech tokenizer are loaded when they are first needed.

        Args:
            directory: `~` is expanded, in `adapter` too.
            dtype: "float32" or "bfloat16", of weights and computation; None means what the checkpoint's config says.
            mesh: devices to spread the model over; weights are read straight into their shards. None means one device.
            quantize: keep matrices in 8 bits ("int8"), half the memory of bfloat16, or in 4 bits ("int4"), less than a
                third; they are quantized as they are read.
            f0: pitch extractor for the audio of prompts, as in `SpeechTokenizer.from_pretrained`.
            adapter: directory of a low-rank adapter that is merged into the weights: a step of a run with a section
                `lora`, or an adapter in PEFT's format.

        Raises:
            CheckpointError: a part is missing or does not fit; names it.
            AdapterError: the adapter cannot be read, does not fit the network, or belongs to other weights.
            PathError: the directory or the adapter is not a path.
            BucketError, BucketJobError: it is in a bucket and cannot be copied to this machine.
            SamplingError: the checkpoint recommends an invalid decoding option.
        """
        directory = checkpoint.local_directory(directory, "checkpoint")
        settings = checkpoint.read_config(directory)
        config = model_config(settings, os.path.join(directory, checkpoint.CONFIG), dtype)
        vocabulary = Vocabulary.load(checkpoint.find(directory, checkpoint.TOKENIZER), settings.get("variant"))
        vocabulary = vocabulary.with_ends(checkpoint.end_ids(settings.get("generation") or {}))
        mesh = _first_device() if mesh is None else mesh
        updates = None if adapter is None else read_adapter(checkpoint.local_directory(adapter, "adapter"), config)
        params = load_params(directory, config, mesh, quantize, updates)
        try:
            checkpoint.find(directory, checkpoint.SPEECH_TOKENIZER)
        except CheckpointError:
            if f0 is not None:
                raise
            speech_tokenizer = None
        else:
            speech_tokenizer = SpeechTokenizer.from_pretrained(directory, vocabulary.variant, f0)
        sampling = SamplingParams.from_generation_config(settings.get("generation") or {})
        model = cls(params, config, vocabulary, speech_tokenizer, mesh, sampling)
        model.adapter = updates
        return model

    def with_adapter(self, directory: str | os.PathLike, adapter: str | os.PathLike) -> "SpiritLM":
        """Return this model with a low-rank adapter merged into it.

        The two models share the tokenizers, the compiled programs, and the embedding and head where the adapter does
        not change them. The layers of the result take as much memory as those of this model.

        Args:
            directory: the checkpoint that this model was loaded from, without an adapter.
            adapter: as in `from_pretrained`.

        Raises:
            CheckpointError, AdapterError, PathError: as `from_pretrained`.
        """
        updates = read_adapter(checkpoint.local_directory(adapter, "adapter"), self.config)
        directory = checkpoint.local_directory(directory, "checkpoint")
        params = load_params(directory, self.config, self.mesh, quantized.find_kind(self.params), updates)
        changed = {"layers", *updates.arrays.get("rows", {})}
        params |= {name: self.params[name] for name in params.keys() - changed}
        model = SpiritLM(params, self.config, self.vocabulary, self.speech_tokenizer, self.mesh, self.sampling)
        model.adapter = updates
        return model

    @property
    def prompt_encoder(self) -> PromptEncoder:
        """Turns prompts into ids."""
        return PromptEncoder(self.vocabulary, self.config.max_position_embeddings, self.speech_tokenizer)

    def voice(self, speaker: int | str = DEFAULT_SPEAKER) -> Voice:
        """Return what speaks answers: the checkpoint's vocoder with one of its speakers, by number or name."""
        vocoder = None if self.speech_tokenizer is None else self.speech_tokenizer.vocoder
        return Voice(vocoder, self.vocabulary.variant == "expressive", speaker)

    def encode_prompt(
        self, prompt: Prompt | EncodedPrompt, output_modality: Modality = "any", task: Task | None = None
    ) -> EncodedPrompt:
        """Check a prompt and turn it into ids. A prompt that is encoded already stays as it is.

        Args:
            prompt: segments in any order, or a token string, which is taken as it is.
            output_modality: "text" or "speech" restricts the answer; "any" allows both, in any order.
            task: "asr" or "tts" writes the prompt as that recipe does in training; it holds speech or text alone, and
                decides what the answer holds.

        Raises:
            PromptError: the prompt is empty, longer than the context, has unknown tokens, or does not fit the task.
            CheckpointError: the prompt holds audio and the checkpoint lacks what hears it.
            AudioError: audio is too short.
        """
        if isinstance(prompt, EncodedPrompt):
            return prompt
        if task is None:
            return self.prompt_encoder.encode(prompt, output_modality)
        return self.prompt_encoder.encode_task(prompt, task, output_modality)

    def generate(
        self,
        prompt: Prompt | EncodedPrompt,
        output_modality: Modality = "any",
        sampling: SamplingParams | None = None,
        *,
        task: Task | None = None,
        speaker: int | str = DEFAULT_SPEAKER,
        **changes: Any,
    ) -> list[Segment]:
        """Continue a prompt of text and speech, or answer it by a task.

        Args:
            prompt, output_modality, task: as in `encode_prompt`. An encoded prompt has its own output modality.
            sampling: decoding options; None means the checkpoint's (`self.sampling`).
            speaker: voice of the vocoder, by number or name.
            changes: fields of `SamplingParams` that replace those of `sampling`, such as `temperature=0.8`; None keeps
                a field.

        Returns:
            The new segments (see `answers.split_output`).

        Raises:
            PromptError, CheckpointError, AudioError: as `encode_prompt`.
            SamplingError: an option is out of range.
            VoiceError: the vocoder does not have the speaker.
        """
        (segments,) = self.generate_batch([prompt], output_modality, sampling, task=task, speaker=speaker, **changes)
        return segments

    def generate_batch(
        self,
        prompts: Sequence[Prompt | EncodedPrompt],
        output_modality: Modality = "any",
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        task: Task | None = None,
        slots: int = 16,
        speaker: int | str = DEFAULT_SPEAKER,
        **changes: Any,
    ) -> list[list[Segment]]:
        """Continue many prompts at once and return the same answers as `generate`, in the order of the prompts.

        Arguments and errors are those of `as_completed`.
        """
        answers = dict(
            self.as_completed(prompts, output_modality, sampling, task=task, slots=slots, speaker=speaker, **changes)
        )
        return [answers[index] for index in range(len(prompts))]

    def as_completed(
        self,
        prompts: Sequence[Prompt | EncodedPrompt],
        output_modality: Modality = "any",
        sampling: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        task: Task | None = None,
        slots: int = 16,
        speaker: int | str = DEFAULT_SPEAKER,
        **changes: Any,
    ) -> Iterator[tuple[int, list[Segment]]]:
        """Yield (index of a prompt, its answer) as answers are finished. Arguments and errors are those of `generate`.

        Args:
            sampling: options for all prompts, or one for each.
            slots: prompts that are worked on at once. Where one finishes, the next one starts.

        Raises:
            CapacityError: there are no slots.
        """
        encoded = [self.encode_prompt(prompt, output_modality, task) for prompt in prompts]
        voice = self._checked_voice(speaker, encoded)
        each = sampling if isinstance(sampling, Sequence) else [sampling] * len(encoded)
        if len(each) != len(encoded):
            raise SamplingError(f"{len(encoded)} prompts need as many sampling options, found {len(each)}")
        requests = [
            Request(prompt, self._options(options, changes)) for prompt, options in zip(encoded, each, strict=True)
        ]
        for index, new_ids in self.engine.run(requests, slots):
            request = requests[index]
            yield index, answer_segments(self.vocabulary, request.prompt, new_ids, request.sampling.stop, voice)

    def decode_answer(
        self,
        prompt: EncodedPrompt,
        new_ids: Int[np.ndarray, " N"],
        stop: Sequence[str] = (),
        speaker: int | str = DEFAULT_SPEAKER,
    ) -> list[Segment]:
        """Return the segments of ids that were generated after a prompt, cut before the first stop string."""
        return answer_segments(self.vocabulary, prompt, new_ids, stop, self.voice(speaker))

    def generate_ids(
        self,
        ids: Sequence[int] | Int[np.ndarray, " N"],
        output_modality: Modality = "any",
        sampling: SamplingParams | None = None,
        **changes: Any,
    ) -> Int[np.ndarray, " N"]:
        """Return the ids that follow those of a prompt, int32 [N]. `</s>` is the last one if the document ends.

        Args:
            sampling, changes: as in `generate`.

        Raises:
            PromptError: no ids, ids outside the vocabulary, or more than the context holds.
            SamplingError: an option is out of range.
        """
        prompt = self.prompt_encoder.encode_ids(ids, output_modality)
        ((_, new_ids),) = self.engine.run([Request(prompt, self._options(sampling, changes))], slots=1)
        return new_ids

    def stream(
        self,
        prompt: Prompt | EncodedPrompt,
        output_modality: Modality = "any",
        sampling: SamplingParams | None = None,
        *,
        task: Task | None = None,
        speaker: int | str = DEFAULT_SPEAKER,
        tokens_per_step: int = 8,
        **changes: Any,
    ) -> Iterator[Segment]:
        """Yield text pieces and stretches of audio while they are generated; arguments as in `generate`.

        The tokens are those of `generate`. All speech is spoken, however short, and speech that continues the prompt's
        starts anew. HiFi-GAN speaks in chunks; other vocoders speak a run of units when it is complete.

        Args:
            tokens_per_step: tokens to generate before they are looked at.

        Raises:
            PromptError, CheckpointError, AudioError, VoiceError: as `generate`.
            SamplingError: an option is out of range, or there are stop strings, which a stream does not support.
        """
        encoded = self.encode_prompt(prompt, output_modality, task)
        voice = self._checked_voice(speaker, [encoded])
        request = Request(encoded, self._options(sampling, changes))
        if request.sampling.stop:
            raise SamplingError("a stream does not support stop strings; use generate")
        arrivals = self._arrivals(request, tokens_per_step)
        yield from stream_segments(
            arrivals, self.vocabulary, voice, literals.decode(self.vocabulary, request.prompt.ids)
        )

    def _arrivals(self, request: Request, tokens_per_step: int) -> Iterator[list[int]]:
        """Yield the new ids of a request as they arrive."""
        scheduler = self.engine.scheduler(Capacity.for_requests([request], 1, self.config.max_position_embeddings))
        scheduler.submit(request)
        arrived = 0
        while scheduler.busy:
            for progress in scheduler.step(tokens_per_step):
                yield progress.new_ids[arrived:].tolist()
                arrived = len(progress.new_ids)

    def log_likelihood(self, prompt: Prompt, continuation: Prompt) -> tuple[float, int]:
        """Return the log-probability, in nats, of a continuation after a prompt, and its number of tokens.

        Arguments and errors are those of `log_likelihood_batch`.
        """
        return self.log_likelihood_batch([(prompt, continuation)])[0]

    def log_likelihood_batch(self, pairs: Sequence[tuple[Prompt, Prompt]]) -> list[tuple[float, int]]:
        """Return the sum of log-probabilities, in nats, and the number of tokens of each continuation given its prompt.

        Prompt and continuation are encoded together, as one document without its end. The tokens that differ from the
        prompt's own ids count.

        Args:
            pairs: strings, or segments on both sides; a modality token between them belongs to the prompt. The empty
                prompt "" is `<s>` alone.

        Raises:
            PromptError: an empty continuation, a string beside segments, or more tokens than the context holds.
        """
        encoder = self.prompt_encoder
        documents = [encoder.encode_continuation(prompt, continuation) for prompt, continuation in pairs]
        sums = scoring.log_likelihoods(self.config, self.mesh, self.params, documents)
        return [(float(total), len(ids) - start) for total, (ids, start) in zip(sums, documents, strict=True)]

    def token_scores(
        self, groups: Sequence[Sequence[Int[np.ndarray, " N"]]], batch_tokens: int = 8192
    ) -> list[list[TokenScores]]:
        """Return the log-probability of every token of documents, among all tokens and among those of its modality.

        Args:
            groups: ids of the documents, in groups such as the hypotheses of one item, whose common beginning is read
                once where that pays.
            batch_tokens: tokens of a batch.

        Raises:
            PromptError: ids outside the vocabulary, or a document longer than the context.
        """
        for group in groups:
            for ids in group:
                self.prompt_encoder.check_ids(ids[:-1])
        return scoring.token_scores(self.config, self.mesh, self.params, self.vocabulary, groups, batch_tokens)

    def logits(self, ids: Int[np.ndarray, "B T"] | Sequence[int]) -> Float[Array, "B T V"]:
        """Return the scores of the token after each id, float32; a single row of ids gives a batch of one.

        Raises:
            PromptError: ids outside the vocabulary, or more than the context holds.
        """
        ids_bt = np.atleast_2d(np.asarray(ids, np.int32))
        self.prompt_encoder.check_ids(ids_bt)
        return scoring.logits(self.config, self.mesh, self.params, ids_bt)

    def _options(self, sampling: SamplingParams | None, changes: dict[str, Any]) -> SamplingParams:
        return (self.sampling if sampling is None else sampling).override(**changes)

    def _checked_voice(self, speaker: int | str, prompts: Sequence[EncodedPrompt]) -> Voice:
        """Return the voice; an unknown speaker is refused before anything is generated.

        The vocoder is loaded only if an answer may hold speech.
        """
        if all(prompt.output_modality == "text" for prompt in prompts):
            return Voice(None, self.vocabulary.variant == "expressive", speaker)
        voice = self.voice(speaker)
        voice.check()
        return voice


def _first_device() -> Mesh:
    return make_mesh(MeshConfig(1, 1, 1), jax.local_devices()[:1])
