"""A Spirit LM as a model of EleutherAI's lm-evaluation-harness, so that its text tasks run on checkpoints.

    import lm_eval
    from spirit_jax import SpiritLM
    from spirit_jax.evaluation.harness import harness_model
    model = harness_model(SpiritLM.from_pretrained("checkpoint"))
    print(lm_eval.simple_evaluate(model=model, tasks=["hellaswag"])["results"])

Text is read after `[Text]`, as in training. The harness is not a dependency: pip install lm_eval.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
from jaxtyping import Int

from spirit_jax.evaluation.items import BenchmarkError
from spirit_jax.inference.prompts import Segment
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.inference.spiritlm import SpiritLM

_DEFAULT_NEW_TOKENS = 256


class Request(Protocol):
    """Fields of the harness's `Instance` that this class reads."""

    @property
    def args(self) -> tuple[Any, ...]:
        """Context and continuation, a string, or context and generation options."""
        ...


class HarnessScorer:
    """The methods that the harness calls, without its base class."""

    def __init__(self, model: SpiritLM, batch_tokens: int = 8192, slots: int = 16):
        """
        Args:
            batch_tokens: tokens of a batch of log-likelihoods.
            slots: answers that are generated at once.
        """
        self.model, self.batch_tokens, self.slots = model, batch_tokens, slots
        self._prefix = np.asarray([*model.vocabulary.prefix, model.vocabulary.text_id], np.int32)
        self._context = model.config.max_position_embeddings

    def loglikelihood(self, requests: Sequence[Request]) -> list[tuple[float, bool]]:
        """Log-probability of each continuation after its context, and whether greedy decoding gives it.

        A document longer than the model's context loses its beginning, as in the harness.
        """
        documents: list[tuple[Int[np.ndarray, " N"], int]] = []
        for request in requests:
            context, continuation = request.args
            before, whole = self._ids(context), self._ids(context + continuation)
            shortest = min(len(before), len(whole))
            differs = np.flatnonzero(before[:shortest] != whole[:shortest])
            start = int(differs[0]) if differs.size else shortest
            cut = max(len(whole) - self._context, 0)
            documents.append((whole[cut:], max(start - cut, 1)))
        scores = self.model.token_scores([[ids] for ids, _ in documents], self.batch_tokens)
        return [
            (float(score.all[start:].sum(dtype=np.float64)), bool(score.best[start:].all()))
            for (_, start), (score,) in zip(documents, scores, strict=True)
        ]

    def loglikelihood_rolling(self, requests: Sequence[Request]) -> list[float]:
        """Log-probability of each string. Each token counts once, after as many tokens as the context holds."""
        groups: list[list[tuple[Int[np.ndarray, " N"], int]]] = [self._windows(self._ids(r.args[0])) for r in requests]
        flat = [window for group in groups for window in group]
        scores = iter(self.model.token_scores([[ids] for ids, _ in flat], self.batch_tokens))
        return [sum(float(next(scores)[0].all[start:].sum(dtype=np.float64)) for _, start in group) for group in groups]

    def generate_until(self, requests: Sequence[Request]) -> list[str]:
        """The text after each context, until one of the strings `until`; greedy unless `do_sample` is true."""
        options = [request.args[1] for request in requests]
        room = self._context - max((_new_tokens(each) for each in options), default=0)
        encoder = self.model.prompt_encoder
        prompts = []
        for request in requests:
            ids = self._ids(request.args[0])
            kept = ids if len(ids) <= room else np.concatenate([self._prefix, ids[-(room - len(self._prefix)) :]])
            prompts.append(encoder.encode_ids(kept, "text"))
        answers = self.model.generate_batch(prompts, "text", [_sampling(each) for each in options], slots=self.slots)
        return ["".join(_text(segment) for segment in segments) for segments in answers]

    def _ids(self, text: str) -> Int[np.ndarray, " N"]:
        return np.concatenate([self._prefix, np.asarray(self.model.vocabulary.encode_text(text), np.int32)])

    def _windows(self, ids: Int[np.ndarray, " N"]) -> list[tuple[Int[np.ndarray, " N"], int]]:
        """Parts of a document with the index of the first token that counts in each."""
        end = min(len(ids), self._context)
        windows = [(ids[:end], len(self._prefix))]
        while end < len(ids):
            start, end = end, min(end + self._context - 1, len(ids))
            first = max(end - self._context, 0)
            windows.append((ids[first:end], start - first))
        return windows


def harness_model(model: SpiritLM, batch_tokens: int = 8192, slots: int = 16) -> Any:
    """A model that `lm_eval.simple_evaluate(model=...)` takes.

    Args:
        batch_tokens, slots: as in `HarnessScorer`.

    Raises:
        BenchmarkError: lm_eval is not installed.
    """
    try:
        from lm_eval.api.model import LM
    except ImportError as error:
        raise BenchmarkError(f"the harness is not installed: pip install lm_eval ({error})") from error

    class SpiritHarnessModel(HarnessScorer, LM):
        def __init__(self) -> None:
            LM.__init__(self)
            HarnessScorer.__init__(self, model, batch_tokens, slots)

    return SpiritHarnessModel()


def _sampling(options: Mapping[str, Any]) -> SamplingParams:
    """The decoding options of a request of the harness."""
    until = options.get("until") or ()
    temperature = float(options.get("temperature") or 1.0) if options.get("do_sample") else 0.0
    return SamplingParams(
        temperature=temperature,
        top_p=float(options.get("top_p") or 1.0),
        top_k=int(options.get("top_k") or 0),
        max_new_tokens=_new_tokens(options),
        stop=[until] if isinstance(until, str) else [text for text in until if text],
    )


def _new_tokens(options: Mapping[str, Any]) -> int:
    return int(options.get("max_gen_toks") or _DEFAULT_NEW_TOKENS)


def _text(segment: Segment) -> str:
    return segment.content if isinstance(segment.content, str) else ""
