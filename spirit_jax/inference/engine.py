"""Prefill and the decode loop: slots of a KV cache that prompts of any length fill as they become free.

All shapes come from a small set (`bucket`), so most new prompts compile nothing. A row's result does not depend on the
rows beside it: each has its own positions, its own draws and its own limits, and idle rows are not stored.
"""

import dataclasses
import functools
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from spirit_jax.inference import network, sampling
from spirit_jax.inference.grammar import NO_GRAMMAR, Grammar
from spirit_jax.inference.sampling import Knobs, Sampling
from spirit_jax.models.llama import LlamaConfig, Params
from spirit_jax.parallel.sharding import tracing

_SMALLEST = 64
_PREFILL = 512  # longest piece of a prompt that is worked through at once: longer ones let others decode in between
_BETWEEN = 8  # tokens that running rows decode between two pieces of a long prompt


@dataclasses.dataclass(frozen=True)
class Request:
    """One prompt and how to continue it. `modality` is a row of the table of forbidden ids."""

    ids: Sequence[int]
    max_new_tokens: int
    modality: int
    sampling: Sampling = Sampling()
    grammar: Sequence[int] | None = None
    """The state of the unit grammar after the prompt; None: anything that the modality allows may come."""


class Rows(NamedTuple):
    """What is asked for in each row, as arrays."""

    knobs: Knobs
    modality: Int[Array, " B"]
    limit: Int[Array, " B"]
    grammar: Int[Array, "B 3"]
    """The unit grammar's state after the prompt."""

    @classmethod
    def of(cls, requests: Sequence[Request | None]) -> "Rows":
        """One row for each; None for an idle one."""
        filled = [request or Request((), 0, 0) for request in requests]
        return cls(
            Knobs.of([request.sampling for request in filled]),
            np.array([request.modality for request in filled], np.int32),
            np.array([request.max_new_tokens for request in filled], np.int32),
            np.array([NO_GRAMMAR if request.grammar is None else request.grammar for request in filled], np.int32),
        )


class State(NamedTuple):
    """What the decode loop carries: all [B] but the cache, the output and what has occurred."""

    cache: network.Cache
    token: Int[Array, " B"]
    """The newest token, which is not in the cache yet."""
    position: Int[Array, " B"]
    """Where it stands in its document."""
    count: Int[Array, " B"]
    """How many tokens the row has generated."""
    done: Bool[Array, " B"]
    """Whether the row is idle: finished, never filled, or with a prompt still being read."""
    output: Int[Array, "B G"]
    """The generated tokens."""
    occurred: Bool[Array, "B V"]
    """Tokens of the prompt and of the output; no columns where no row has a repetition penalty."""
    grammar: Int[Array, "B 3"]
    """The unit grammar's state after the newest token."""


@dataclasses.dataclass(frozen=True)
class Program:
    """What the compiled functions are specialised on."""

    config: LlamaConfig
    mesh: Mesh
    eos_id: int
    few: int | None
    """`sampling.candidates` of the rows: 0 where all are greedy."""
    penalised: bool
    """Whether any row has a repetition penalty."""
    grammatical: bool
    """Whether any row has a unit grammar."""


class Tables(NamedTuple):
    """What follows from the vocabulary."""

    forbidden_mv: Bool[Array, "M V"]
    """Ids that a request of each modality may not generate."""
    grammar: Grammar


def bucket(length: int, largest: int | None = None, steps: int = 1) -> int:
    """The padded length: the next power of two, 64 at least, `largest` at most; `steps` of them from one to the next."""
    step = max(_SMALLEST, 1 << max(length - 1, 0).bit_length()) // (2 * steps)
    padded = max(_SMALLEST, -(-length // step) * step)
    return padded if largest is None else min(padded, largest)


def _next(program: Program, params: Params, tables: Tables, rows: Rows, hidden_bd, count_b, occurred_bv, grammar_b3):
    """The next token of each row, and the state of its grammar after it."""
    logits_bv = network.logits(program.config, params, hidden_bd)
    if program.penalised:
        logits_bv = sampling.penalise(logits_bv, occurred_bv, rows.knobs.repetition_penalty)
    forbidden_bv = tables.forbidden_mv[rows.modality]
    if program.grammatical:
        forbidden_bv |= tables.grammar.forbidden(grammar_b3)
    logits_bv = jnp.where(forbidden_bv, -jnp.inf, logits_bv)
    token_b = sampling.choose(logits_bv, rows.knobs, count_b, program.few)
    return token_b, tables.grammar.advance(grammar_b3, token_b) if program.grammatical else grammar_b3


def _placed(program: Program, state: State) -> State:
    """The cache in shards, all else whole on every device, so that every process can read it."""
    rest = jax.lax.with_sharding_constraint(state._replace(cache=None), network.whole(program.mesh))
    cache = jax.lax.with_sharding_constraint(
        state.cache, network.cache_sharding(program.config, program.mesh, state.cache)
    )
    return rest._replace(cache=cache)


@functools.partial(jax.jit, static_argnums=(0, 2, 3, 4))
def _empty(program: Program, params: Params, slots: int, length: int, output: int) -> State:
    width = program.config.vocab_size if program.penalised else 0
    zeros = jnp.zeros(slots, jnp.int32)
    state = State(
        network.empty_cache(program.config, params, slots, length),
        zeros,
        zeros,
        zeros,
        jnp.ones(slots, bool),
        jnp.zeros((slots, output), jnp.int32),
        jnp.zeros((slots, width), bool),
        jnp.zeros((slots, 3), jnp.int32),
    )
    return _placed(program, state)


@functools.partial(jax.jit, static_argnums=0, static_argnames="first", donate_argnums=3)
def _prefill(
    program: Program,
    params: Params,
    tables: Tables,
    state: State,
    rows: Rows,
    slots_b,
    tokens_bt,
    start_b,
    length_b,
    end_b,
    first: bool = False,
) -> State:
    """Read a piece of each prompt; where it is the last one, choose the first new token.

    Args:
        slots_b: which row of the state each prompt has; beyond the last one, a row that only fills the batch.
        start_b, length_b: position of the first token of the piece, and how many tokens it has.
        end_b: whether it is the last piece.
        first: whether it is the first piece of every prompt.
    """
    t = tokens_bt.shape[1]
    offsets_1t = jnp.arange(t)[None]
    positions_bt = jnp.where(offsets_1t < length_b[:, None], start_b[:, None] + offsets_1t, -1)
    read = jnp.minimum(slots_b, state.token.shape[0] - 1)
    hidden_btd, cache = network.forward(
        program.config, params, tokens_bt, positions_bt, state.cache, rows_b=slots_b, first=first
    )

    occurred_bv = state.occurred
    if program.penalised:
        occurred_bv = occurred_bv[read] & (start_b > 0)[:, None]
        kept_bt = jnp.where(positions_bt >= 0, tokens_bt, occurred_bv.shape[1])
        occurred_bv = occurred_bv.at[jnp.arange(len(read))[:, None], kept_bt].set(True, mode="drop")
    hidden_bd = jnp.take_along_axis(hidden_btd, jnp.maximum(length_b - 1, 0)[:, None, None], axis=1)[:, 0]
    zero_b = jnp.zeros_like(slots_b)
    token_b, grammar_b3 = _next(program, params, tables, rows, hidden_bd, zero_b, occurred_bv, rows.grammar)
    if program.penalised:
        occurred_bv = occurred_bv.at[jnp.arange(len(read)), token_b].max(end_b)  # else it is not generated
        occurred_bv = state.occurred.at[slots_b].set(occurred_bv, mode="drop")

    slots_b = jnp.where(end_b, slots_b, state.token.shape[0])
    finished_b = (token_b == program.eos_id) | (rows.limit <= 1)
    state = State(
        cache,
        state.token.at[slots_b].set(token_b, mode="drop"),
        state.position.at[slots_b].set(start_b + length_b, mode="drop"),
        state.count.at[slots_b].set(1, mode="drop"),
        state.done.at[slots_b].set(finished_b, mode="drop"),
        state.output.at[slots_b, 0].set(token_b, mode="drop"),
        occurred_bv,
        state.grammar.at[slots_b].set(grammar_b3, mode="drop"),
    )
    return _placed(program, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnums=3)
def _decode(program: Program, params: Params, tables: Tables, state: State, rows: Rows, steps, until_free) -> State:
    """Up to `steps` new tokens for every running row; with `until_free`, stop as soon as one more row is done."""
    row = jnp.arange(state.token.shape[0])
    running = jnp.sum(~state.done)

    def more(carry):
        step, state = carry
        still = jnp.sum(~state.done)
        return (step < steps) & (still > 0) & ~(until_free & (still < running))

    def body(carry):
        step, state = carry
        active_b = ~state.done
        positions_b1 = jnp.where(active_b, state.position, -1)[:, None]
        hidden_btd, cache = network.forward(program.config, params, state.token[:, None], positions_b1, state.cache)
        token_b, grammar_b3 = _next(
            program, params, tables, rows, hidden_btd[:, 0], state.count, state.occurred, state.grammar
        )
        occurred_bv = state.occurred
        if program.penalised:
            occurred_bv = occurred_bv.at[row, token_b].max(active_b)
        count_b = state.count + active_b
        ends_b = (token_b == program.eos_id) | (count_b >= rows.limit)
        written = jnp.where(active_b, state.count, state.output.shape[1])
        return step + 1, State(
            cache,
            jnp.where(active_b, token_b, state.token),
            state.position + active_b,
            count_b,
            state.done | ends_b,
            state.output.at[row, written].set(token_b, mode="drop"),
            occurred_bv,
            jnp.where(active_b[:, None], grammar_b3, state.grammar),
        )

    return _placed(program, jax.lax.while_loop(more, body, (0, state))[1])


@functools.partial(jax.jit, donate_argnums=0)
def _set(done_b: Bool[Array, " B"], slot) -> Bool[Array, " B"]:
    return done_b.at[slot].set(True)


@dataclasses.dataclass
class _Reading:
    """A prompt on its way into the cache."""

    index: int
    slot: int
    read: int = 0


class Engine:
    """Runs requests in the slots of one KV cache."""

    def __init__(self, params: Params, config: LlamaConfig, mesh: Mesh, tables: Tables, eos_id: int):
        """
        Args:
            params: the Llama's parameters, sharded over `mesh` as the table of rules says.
        """
        self.params, self.config, self.mesh, self.eos_id = params, config, mesh, eos_id
        self.tables = jax.device_put(tables, network.whole(mesh))
        # every process of a job sees all rows, so that all of them decide alike
        self._fetch = jax.jit(lambda *arrays: arrays, out_shardings=network.whole(mesh))

    def run(
        self,
        requests: Sequence[Request],
        slots: int,
        steps: int | None = None,
        stop: Callable[[int, np.ndarray], bool] | None = None,
    ) -> Iterator[tuple[int, np.ndarray, bool]]:
        """Yield (index of a request, all its new tokens so far, whether it is finished), every request finished once.

        Args:
            slots: how many prompts are worked on at a time; the next one starts where one finishes.
            steps: yield running requests too, every so many tokens.
            stop: asked of a running request (index, tokens so far) whenever it would be yielded; true finishes it.
        """
        ways = network.batch_ways(self.mesh)
        slots = -(-min(slots, len(requests)) // ways) * ways
        longest = max(len(r.ids) + r.max_new_tokens for r in requests)
        length = bucket(longest, self.config.max_position_embeddings, steps=4)  # each token reads all of it
        output = bucket(max(r.max_new_tokens for r in requests))
        program = Program(
            self.config,
            self.mesh,
            self.eos_id,
            sampling.candidates([r.sampling for r in requests]),
            any(r.sampling.repetition_penalty != 1 for r in requests),
            any(r.grammar is not None for r in requests),
        )
        waiting = deque(range(len(requests)))
        reading: list[_Reading] = []
        running: dict[int, int] = {}  # slot -> request
        with tracing(self.mesh, self.config.dtype):
            state = _empty(program, self.params, slots, length, output)
        while waiting or reading or running:
            free = set(range(slots)) - running.keys() - {prompt.slot for prompt in reading}
            for slot in sorted(free)[: len(waiting)]:
                reading.append(_Reading(waiting.popleft(), slot))
            if reading:
                state = self._read(program, state, requests, reading, ways)
                running |= {p.slot: p.index for p in reading if p.read == len(requests[p.index].ids)}
                reading = [p for p in reading if p.slot not in running]
            if not running:
                continue
            rows = Rows.of([requests[running[slot]] if slot in running else None for slot in range(slots)])
            most = _BETWEEN if reading else steps or output
            with tracing(self.mesh, self.config.dtype):
                arguments = (rows, np.int32(most), np.bool_(bool(waiting)))
                state = _decode(program, self.params, self.tables, state, *arguments)
            done, count, tokens = (np.array(x) for x in self._fetch(state.done, state.count, state.output))
            for slot, index in sorted(running.items(), key=lambda item: item[1]):
                new = tokens[slot, : count[slot]]
                if not done[slot] and stop is not None and stop(index, new):
                    done[slot] = True
                    state = state._replace(done=_set(state.done, slot))
                if done[slot] or steps is not None:
                    yield index, new, bool(done[slot])
            running = {slot: index for slot, index in running.items() if not done[slot]}

    def _read(
        self, program: Program, state: State, requests: Sequence[Request], reading: list[_Reading], ways: int
    ) -> State:
        """One prefill: the next piece of every prompt that is being read."""
        pieces = [requests[p.index].ids[p.read : p.read + _PREFILL] for p in reading]
        rows = -(-(1 << (len(reading) - 1).bit_length()) // ways) * ways
        tokens_bt = np.zeros((rows, bucket(max(map(len, pieces)))), np.int32)
        slots_b = np.full(rows, state.token.shape[0], np.int32)
        start_b, length_b, end_b = np.zeros(rows, np.int32), np.zeros(rows, np.int32), np.zeros(rows, bool)
        asked: list[Request | None] = [None] * rows
        for row, (prompt, piece) in enumerate(zip(reading, pieces, strict=True)):
            tokens_bt[row, : len(piece)] = piece
            slots_b[row], start_b[row], length_b[row] = prompt.slot, prompt.read, len(piece)
            prompt.read += len(piece)
            asked[row] = requests[prompt.index]
            end_b[row] = prompt.read == len(asked[row].ids)
        with tracing(self.mesh, self.config.dtype):
            arguments = (Rows.of(asked), slots_b, tokens_bt, start_b, length_b, end_b)
            return _prefill(program, self.params, self.tables, state, *arguments, first=bool((start_b == 0).all()))
