"""The two compiled steps of generation: `prefill` reads a chunk of each prompt, `decode` generates tokens.

Both are pure functions from one `DecodeState` to the next. A row of the state is a slot of the scheduler. The result of
a row does not depend on other rows: each has its own positions, draws and limits, and idle rows are not stored.
"""

import dataclasses
import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array, Bool, Int

from spirit_jax.inference import network, sampling
from spirit_jax.inference.grammar import NO_GRAMMAR, Constraints
from spirit_jax.inference.prompts import MODALITIES, Modality
from spirit_jax.inference.sampling import SamplingArrays, SamplingFeatures
from spirit_jax.inference.sampling_params import SamplingParams
from spirit_jax.models.llama import LlamaConfig, Params


@dataclasses.dataclass(frozen=True)
class DecodeProgram:
    """Static argument of every function here: the steps are compiled for it."""

    config: LlamaConfig
    mesh: Mesh
    end_ids: tuple[int, ...]
    """Ids that end an answer."""
    features: SamplingFeatures

    def ends(self, token_b: Int[Array, " B"]) -> Bool[Array, " B"]:
        """Whether each token ends its answer."""
        return jnp.isin(token_b, jnp.array(self.end_ids, jnp.int32))


class ModelArrays(NamedTuple):
    """The arrays of a model, which no step changes."""

    params: Params
    """As `network.arrange` returns them, sharded over the mesh."""
    constraints: Constraints


class RowOptions(NamedTuple):
    """Options of the request in each row."""

    sampling: SamplingArrays
    modality: Int[Array | np.ndarray, " B"]
    """Index into `MODALITIES`."""
    max_new_tokens: Int[Array | np.ndarray, " B"]
    grammar: Int[Array | np.ndarray, "B 3"]
    """State of the unit grammar after the prompt."""

    @classmethod
    def of(
        cls,
        params: SamplingParams,
        modality: Modality,
        *,
        max_new_tokens: int,
        grammar: Int[np.ndarray, " 3"] = NO_GRAMMAR,
    ) -> "RowOptions":
        """Return the options of a single row.

        Args:
            max_new_tokens: at most `params.max_new_tokens`, and as many as the context has room for.
            grammar: state of the unit grammar after the prompt.
        """
        return cls(
            sampling=SamplingArrays.of([params]),
            modality=np.array([MODALITIES.index(modality)], np.int32),
            max_new_tokens=np.array([max_new_tokens], np.int32),
            grammar=grammar[None],
        )

    @classmethod
    def join(cls, rows: Sequence["RowOptions"]) -> "RowOptions":
        """Return the options of a batch, one row after the other."""
        return jax.tree.map(lambda *arrays: np.concatenate(arrays), *rows)


IDLE_ROW = RowOptions.of(SamplingParams(), "any", max_new_tokens=0)
"""Options of a row without a request."""


class PromptChunks(NamedTuple):
    """The next chunk of each prompt that is being read, as one batch."""

    tokens_bt: Int[Array | np.ndarray, "B T"]
    """Ids, padded on the right."""
    slots_b: Int[Array | np.ndarray, " B"]
    """The row of the state that each prompt has; a row that only fills the batch has one beyond the last."""
    start_b: Int[Array | np.ndarray, " B"]
    """Position of the chunk's first token."""
    length_b: Int[Array | np.ndarray, " B"]
    """Tokens in the chunk."""
    is_last_b: Bool[Array | np.ndarray, " B"]
    """Whether the chunk ends its prompt."""


class DecodeState(NamedTuple):
    """Everything that changes from step to step."""

    cache: network.Cache
    token: Int[Array, " B"]
    """The newest token, which the cache does not hold yet."""
    position: Int[Array, " B"]
    """Its position in the document."""
    count: Int[Array, " B"]
    """Tokens that the row has generated."""
    done: Bool[Array, " B"]
    """Whether the row is idle: finished, never filled, or with a prompt that is still being read."""
    output: Int[Array, "B G"]
    """The generated tokens."""
    occurred: Bool[Array, "B V"]
    """Tokens that the prompt and the answer hold; no columns if no request may have a repetition penalty."""
    grammar: Int[Array, "B 3"]
    """State of the unit grammar after the newest token."""


def state_shardings(program: DecodeProgram, state: DecodeState) -> DecodeState:
    """Return a tree of shardings: the cache is sharded, everything else is whole on every device.

    So every process of a job can read which rows are done, and all of them decide alike.
    """
    cache_sharding = network.cache_sharding(program.config, program.mesh, state.cache)
    shardings = jax.tree.map(lambda _: network.replicated(program.mesh), state)
    return shardings._replace(cache=jax.tree.map(lambda _: cache_sharding, state.cache))


def _placed(program: DecodeProgram, state: DecodeState) -> DecodeState:
    return jax.lax.with_sharding_constraint(state, state_shardings(program, state))


@functools.partial(jax.jit, static_argnums=0, static_argnames=("slots", "length", "new_tokens"))
def init_state(program: DecodeProgram, params: Params, *, slots: int, length: int, new_tokens: int) -> DecodeState:
    """Return a state in which every row is idle.

    Args:
        length: tokens of prompt and answer together that a slot holds.
        new_tokens: tokens of the longest answer.
    """
    vocabulary = program.config.vocab_size if program.features.repetition_penalty else 0
    state = DecodeState(
        cache=network.init_cache(program.config, params, slots, length),
        token=jnp.zeros(slots, jnp.int32),
        position=jnp.zeros(slots, jnp.int32),
        count=jnp.zeros(slots, jnp.int32),
        done=jnp.ones(slots, bool),
        output=jnp.zeros((slots, new_tokens), jnp.int32),
        occurred=jnp.zeros((slots, vocabulary), bool),
        grammar=jnp.zeros((slots, 3), jnp.int32),
    )
    return _placed(program, state)


class _History(NamedTuple):
    """State of a row that its next token depends on, besides the hidden state."""

    count_b: Int[Array, " B"]
    occurred_bv: Bool[Array, "B V"]
    grammar_b3: Int[Array | np.ndarray, "B 3"]


def _next_tokens(
    program: DecodeProgram, model: ModelArrays, options: RowOptions, hidden_bd: Array, history: _History
) -> tuple[Int[Array, " B"], Int[Array, "B 3"]]:
    """Return the next token of each row, and the state of its grammar after it."""
    logits_bv = network.logits(program.config, model.params, hidden_bd)
    if program.features.repetition_penalty:
        penalty_b = options.sampling.repetition_penalty
        logits_bv = sampling.penalize_repetition(logits_bv, history.occurred_bv, penalty_b)
    forbidden_bv = jnp.asarray(model.constraints.forbidden_mv)[options.modality]
    if program.features.grammar:
        forbidden_bv |= model.constraints.grammar.forbidden(history.grammar_b3)
    logits_bv = jnp.where(forbidden_bv, -jnp.inf, logits_bv)
    token_b = sampling.sample(logits_bv, options.sampling, history.count_b, program.features.shortlist)
    grammar_b3 = jnp.asarray(history.grammar_b3)
    if program.features.grammar:
        grammar_b3 = model.constraints.grammar.advance(grammar_b3, token_b)
    return token_b, grammar_b3


@functools.partial(jax.jit, static_argnums=0, static_argnames="first", donate_argnames="state")
def prefill(
    program: DecodeProgram,
    model: ModelArrays,
    state: DecodeState,
    options: RowOptions,
    chunks: PromptChunks,
    *,
    first: bool,
) -> DecodeState:
    """Read one chunk of each prompt into the cache. The last chunk of a prompt also chooses the first new token.

    Args:
        options: a row for each row of `chunks`.
        first: every chunk is the first one of its prompt, so nothing earlier has to be read.
    """
    batch, t = chunks.tokens_bt.shape
    slots = state.token.shape[0]
    tokens_bt, slots_b, start_b, length_b, is_last_b = map(jnp.asarray, chunks)
    offsets_1t = jnp.arange(t)[None]
    positions_bt = jnp.where(offsets_1t < length_b[:, None], start_b[:, None] + offsets_1t, -1)
    hidden_btd, cache = network.forward(
        program.config, model.params, tokens_bt, positions_bt, state.cache, rows_b=slots_b, first=first
    )
    assert cache is not None

    rows_b = jnp.arange(batch)
    occurred_bv = state.occurred
    if program.features.repetition_penalty:
        occurred_bv = occurred_bv[jnp.minimum(slots_b, slots - 1)] & (start_b > 0)[:, None]
        read_bt = jnp.where(positions_bt >= 0, tokens_bt, occurred_bv.shape[1])
        occurred_bv = occurred_bv.at[rows_b[:, None], read_bt].set(True, mode="drop")
    hidden_bd = jnp.take_along_axis(hidden_btd, jnp.maximum(length_b - 1, 0)[:, None, None], axis=1)[:, 0]
    history = _History(count_b=jnp.zeros_like(slots_b), occurred_bv=occurred_bv, grammar_b3=options.grammar)
    token_b, grammar_b3 = _next_tokens(program, model, options, hidden_bd, history)
    if program.features.repetition_penalty:
        occurred_bv = occurred_bv.at[rows_b, token_b].max(is_last_b)  # other chunks generate nothing
        occurred_bv = state.occurred.at[slots_b].set(occurred_bv, mode="drop")

    slots_b = jnp.where(is_last_b, slots_b, slots)
    done_b = program.ends(token_b) | (options.max_new_tokens <= 1)
    state = DecodeState(
        cache=cache,
        token=state.token.at[slots_b].set(token_b, mode="drop"),
        position=state.position.at[slots_b].set(start_b + length_b, mode="drop"),
        count=state.count.at[slots_b].set(1, mode="drop"),
        done=state.done.at[slots_b].set(done_b, mode="drop"),
        output=state.output.at[slots_b, 0].set(token_b, mode="drop"),
        occurred=occurred_bv,
        grammar=state.grammar.at[slots_b].set(grammar_b3, mode="drop"),
    )
    return _placed(program, state)


@functools.partial(jax.jit, static_argnums=0, donate_argnames="state")
def decode(
    program: DecodeProgram,
    model: ModelArrays,
    state: DecodeState,
    options: RowOptions,
    *,
    max_steps: Int[Array | np.ndarray, ""],
    until_free: Bool[Array | np.ndarray, ""],
) -> DecodeState:
    """Generate up to `max_steps` tokens in every running row.

    Args:
        options: a row for each row of the state.
        until_free: return as soon as one more row is done, so that another request can take it.
    """
    rows = jnp.arange(state.token.shape[0])
    running_before = jnp.sum(~state.done)

    def proceed(carry: tuple[Array, DecodeState]) -> Array:
        step, state = carry
        running = jnp.sum(~state.done)
        return (step < max_steps) & (running > 0) & ~(until_free & (running < running_before))

    def one_token(carry: tuple[Array, DecodeState]) -> tuple[Array, DecodeState]:
        step, state = carry
        active_b = ~state.done
        positions_b1 = jnp.where(active_b, state.position, -1)[:, None]
        hidden_b1d, cache = network.forward(
            program.config, model.params, state.token[:, None], positions_b1, state.cache
        )
        assert cache is not None
        history = _History(count_b=state.count, occurred_bv=state.occurred, grammar_b3=state.grammar)
        token_b, grammar_b3 = _next_tokens(program, model, options, hidden_b1d[:, 0], history)
        occurred_bv = state.occurred
        if program.features.repetition_penalty:
            occurred_bv = occurred_bv.at[rows, token_b].max(active_b)
        count_b = state.count + active_b
        ends_b = program.ends(token_b) | (count_b >= options.max_new_tokens)
        written_b = jnp.where(active_b, state.count, state.output.shape[1])
        state = DecodeState(
            cache=cache,
            token=jnp.where(active_b, token_b, state.token),
            position=state.position + active_b,
            count=count_b,
            done=state.done | ends_b,
            output=state.output.at[rows, written_b].set(token_b, mode="drop"),
            occurred=occurred_bv,
            grammar=jnp.where(active_b[:, None], grammar_b3, state.grammar),
        )
        return step + 1, state

    _, state = jax.lax.while_loop(proceed, one_token, (jnp.int32(0), state))
    return _placed(program, state)


@functools.partial(jax.jit, donate_argnames="done_b")
def _mark_done(done_b: Bool[Array, " B"], slot: Int[np.ndarray, ""]) -> Bool[Array, " B"]:
    return done_b.at[slot].set(True)


def release_slot(state: DecodeState, slot: int) -> DecodeState:
    """Return the state with one row idle."""
    return state._replace(done=_mark_done(state.done, np.int32(slot)))


@functools.cache
def _copy(mesh: Mesh):
    return jax.jit(lambda *arrays: arrays, out_shardings=network.replicated(mesh))


class DecodeResult(NamedTuple):
    """Results that the scheduler reads from the device after `decode`."""

    done: Bool[np.ndarray, " B"]
    count: Int[np.ndarray, " B"]
    output: Int[np.ndarray, "B G"]


def fetch(program: DecodeProgram, state: DecodeState) -> DecodeResult:
    """Copy to the host which rows are done, how many tokens each has generated, and which. Waits for the device."""
    return DecodeResult(*(np.array(x) for x in _copy(program.mesh)(state.done, state.count, state.output)))
