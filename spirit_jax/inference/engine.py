"""The engine: a model that is ready to generate. It makes schedulers, and runs a fixed list of requests on one."""

from collections.abc import Iterator, Sequence

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Int

from spirit_jax.inference import network
from spirit_jax.inference.answers import answer_text, find_stop
from spirit_jax.inference.grammar import Constraints
from spirit_jax.inference.scheduler import Capacity, Request, Scheduler
from spirit_jax.inference.steps import DecodeProgram, ModelArrays
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.vocabulary import Vocabulary


class Engine:
    """A language model with what its schedulers share: parameters and constraints on the devices of a mesh.

    Attributes:
        end_ids: the ids that end an answer.
    """

    def __init__(self, params: Params, config: LlamaConfig, mesh: Mesh, vocabulary: Vocabulary | None):
        """
        Args:
            params: as `network.arrange` returns them, sharded over the mesh.
            vocabulary: None allows every token, ends answers only at their longest length, and ignores stop strings.
        """
        if vocabulary is None:
            constraints = Constraints.none(config.vocab_size)
        else:
            constraints = Constraints.of(vocabulary, config.vocab_size)
        self.config, self.mesh = config, mesh
        self.end_ids = () if vocabulary is None else vocabulary.end_ids
        self.arrays = ModelArrays(params, jax.device_put(constraints, network.replicated(mesh)))
        self._vocabulary = vocabulary

    def scheduler(self, capacity: Capacity) -> Scheduler:
        """Make a scheduler with an empty KV cache."""
        program = DecodeProgram(self.config, self.mesh, self.end_ids, capacity.features)
        return Scheduler(program, self.arrays, capacity, self._has_stop)

    def run(self, requests: Sequence[Request], slots: int) -> Iterator[tuple[int, Int[np.ndarray, " N"]]]:
        """Yield (index of a request, its new ids) as answers are finished.

        Args:
            slots: requests that run at once, at most. Where one finishes, the next one starts.

        Raises:
            CapacityError: there are no slots.
        """
        if not requests:
            return
        scheduler = self.scheduler(Capacity.for_requests(requests, slots, self.config.max_position_embeddings))
        indices = {scheduler.submit(request): index for index, request in enumerate(requests)}
        while scheduler.busy:
            for progress in scheduler.step():
                if progress.finished:
                    yield indices[progress.request_id], progress.new_ids

    def _has_stop(self, request: Request, new_ids: Int[np.ndarray, " N"]) -> bool:
        if self._vocabulary is None:
            return False
        return find_stop(answer_text(self._vocabulary, request.prompt, new_ids), request.sampling.stop) is not None
