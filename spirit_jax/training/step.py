"""The train state and the compiled functions of a run: initialise, train a step, evaluate a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Int

from spirit_jax.models import llama
from spirit_jax.models.losses import next_token_losses
from spirit_jax.parallel.compiler import compiler_options
from spirit_jax.parallel.sharding import batch_sharding, tracing, tree_shardings, with_shardings
from spirit_jax.training.faults import Recent, judge, no_recent

Batch = dict[str, Any]
Metrics = dict[str, jax.Array]


class TrainState(flax.struct.PyTreeNode):
    """Everything that a step changes: plain nested dicts of arrays and the optimiser's own state."""

    step: Int[Array, ""]
    params: llama.Params
    opt_state: Any
    recent: Recent


@dataclasses.dataclass(frozen=True)
class Program:
    """The compiled functions of a run on one mesh.

    Attributes:
        shardings: of the train state, leaf by leaf.
        abstract_state: shapes, dtypes and shardings of the train state; takes no memory.
        init: key -> fresh `TrainState`.
        start_from: params -> `TrainState` with a fresh optimiser.
        train_step: (state, batch) -> (state, metrics); the state passed in is consumed. A bad step (`metrics["bad"]`: loss or
            gradient not finite, or a spike) changes nothing but the step's number and the statistics of recent steps.
        eval_step: (params, batch) -> metrics, among them how often each id is a target [V], and the loss within its kind.
        lower_train_step: `train_step` for abstract arguments, lowered and not run.
    """

    shardings: TrainState
    abstract_state: TrainState
    init: Callable[[Any], TrainState]
    start_from: Callable[[llama.Params], TrainState]
    train_step: Callable[[TrainState, Batch], tuple[TrainState, Metrics]]
    eval_step: Callable[[llama.Params, Batch], Metrics]
    lower_train_step: Callable[[TrainState, Batch], jax.stages.Lowered]


def check_mesh(model: llama.LlamaConfig, mesh: Mesh, rows: int, accumulate: int) -> None:
    """Refuse a mesh that does not fit a run.

    Raises:
        ValueError: the devices do not divide the rows, times the parts they are worked through in, or a weight; names it.
    """
    ways = mesh.shape["data"] * mesh.shape["fsdp"]
    if rows % (accumulate * ways):
        raise ValueError(
            f"global_batch_size {rows} is not a multiple of accumulate {accumulate} x {ways} devices of the mesh axes data and fsdp"
        )
    tree_shardings(mesh, llama.logical_axes(model), llama.abstract_params(model))


def make_program(
    model: llama.LlamaConfig,
    optimizer: optax.GradientTransformation,
    schedule: Callable[[Any], Any],
    mesh: Mesh,
    *,
    rows: int,
    token_kinds: Int[np.ndarray, " V"],
    accumulate: int = 1,
    z_loss: float = 0.0,
    spike_sigmas: float = 0.0,
) -> Program:
    """Build the functions of a run; nothing is compiled before its first call.

    Args:
        rows: global batch size.
        token_kinds: what each id stands for (`Vocabulary.token_kinds`); the losses are reported by kind.
        accumulate: parts that a batch is worked through in, one after the other; sums of gradients and of tokens are
            accumulated, so the result is the whole batch's.
        spike_sigmas: how far above the recent ones a loss or gradient norm is a spike (`faults.judge`); 0: never.

    Raises:
        ValueError: the mesh does not divide the rows or a weight, or the parts do not divide the rows.
    """
    check_mesh(model, mesh, rows, accumulate)
    kinds_count = int(token_kinds.max()) + 1
    kinds_v = jnp.asarray(token_kinds, jnp.int32)
    network = llama.Llama(model)

    def by_kind(values_bt: Array, batch: Batch) -> Array:
        """Sums over the targets of each kind, float32 [K]; a plain sum, for a product would be rounded on accelerators."""
        masked_bt = values_bt.astype(jnp.float32) * batch["loss_mask"]
        return (masked_bt[..., None] * jax.nn.one_hot(kinds_v[batch["targets"]], kinds_count)).sum((0, 1))

    def forward(params: llama.Params, batch: Batch, scale: Any = 1.0) -> tuple[Array, Metrics]:
        """Hidden states, and sums over tokens: of the loss times scale, and by kind."""
        hidden_btd, _ = network.apply({"params": params}, batch["inputs"], batch["positions"], batch["segment_ids"])
        weights_bt = batch["loss_mask"].astype(jnp.float32) * scale
        losses = next_token_losses(hidden_btd, llama.head_weight(model, params), batch["targets"], weights_bt, z_loss)
        return hidden_btd, {
            "loss": losses.loss,
            "nll": by_kind(losses.nll_bt, batch),
            "correct": by_kind(losses.correct_bt, batch),
            "tokens": by_kind(jnp.ones_like(losses.nll_bt), batch),
        }

    def objective(params: llama.Params, batch: Batch, scale: Any) -> tuple[Array, Metrics]:
        metrics = forward(params, batch, scale)[1]
        return metrics["loss"], metrics

    def train_step(state: TrainState, batch: Batch) -> tuple[TrainState, Metrics]:
        scale = 1 / jnp.maximum(batch["loss_mask"].sum(), 1).astype(jnp.float32)
        gradient = jax.value_and_grad(objective, has_aux=True)
        if accumulate == 1:
            (_, metrics), grads = gradient(state.params, batch, scale)
        else:
            # row r goes to part r % accumulate: each device splits its own rows
            parts = jax.tree.map(
                lambda x: jnp.moveaxis(x.reshape(rows // accumulate, accumulate, *x.shape[1:]), 1, 0), batch
            )

            def add(total, part):
                return jax.tree.map(jnp.add, total, gradient(state.params, part, scale)), None

            zeros = jax.tree.map(
                lambda s: jnp.zeros(s.shape, s.dtype),
                jax.eval_shape(gradient, state.params, jax.tree.map(lambda x: x[0], parts), scale),
            )
            ((_, metrics), grads), _ = jax.lax.scan(add, zeros, parts)
        norm = optax.global_norm(grads)
        bad, recent = judge(state.recent, metrics["loss"], norm, spike_sigmas)
        metrics |= {"gradient_norm": norm, "learning_rate": jnp.asarray(schedule(state.step)), "bad": bad}
        updates, opt_state = optimizer.update(grads, state.opt_state, state.params)
        after = (optax.apply_updates(state.params, updates), opt_state)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(bad, old, new), after, (state.params, state.opt_state)
        )
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, recent=recent), metrics

    def eval_step(params: llama.Params, batch: Batch) -> Metrics:
        mask_bt = batch["loss_mask"].astype(jnp.float32)
        hidden_btd, metrics = forward(params, batch)
        head_dv = llama.head_weight(model, params)

        def row(inputs):
            """Of one row, so that no more logits exist: the loss of each target among the ids of its own kind."""
            hidden_td, targets_t = inputs
            logits_tv = jnp.einsum(
                "td,dv->tv", hidden_td, head_dv.astype(hidden_td.dtype), preferred_element_type=jnp.float32
            )
            same_tv = kinds_v == kinds_v[targets_t][:, None]
            total_t = jax.nn.logsumexp(jnp.where(same_tv, logits_tv, -jnp.inf), axis=-1)
            return total_t - jnp.take_along_axis(logits_tv, targets_t[:, None], axis=-1)[:, 0]

        within_bt = jax.lax.map(row, (hidden_btd, batch["targets"]))
        return metrics | {
            "within": by_kind(within_bt, batch),
            "targets": jnp.zeros(model.vocab_size).at[batch["targets"]].add(mask_bt),
        }

    def start_from(params: llama.Params) -> TrainState:
        step = jnp.zeros((), jnp.int32)
        return TrainState(step=step, params=params, opt_state=optimizer.init(params), recent=no_recent())

    def init(key) -> TrainState:
        return start_from(llama.init_params(model, key))

    whole = NamedSharding(mesh, PartitionSpec())
    shapes = jax.eval_shape(init, jax.random.key(0))
    param_shardings = tree_shardings(mesh, llama.logical_axes(model), shapes.params)
    opt_shardings = optax.tree_utils.tree_map_params(
        optimizer, lambda _, sharding: sharding, shapes.opt_state, param_shardings, transform_non_params=lambda _: whole
    )
    recent = jax.tree.map(lambda _: whole, shapes.recent)
    shardings = TrainState(step=whole, params=param_shardings, opt_state=opt_shardings, recent=recent)
    by_row = batch_sharding(mesh, rows)

    def compiled(function, in_shardings, out_shardings, **options):
        return jax.jit(function, in_shardings=in_shardings, out_shardings=out_shardings, **options)

    def traced(function):
        def call(*arguments):
            with tracing(mesh, model.dtype):
                return function(*arguments)

        return call

    step = compiled(
        train_step, (shardings, by_row), (shardings, whole), donate_argnums=0, compiler_options=compiler_options(mesh)
    )
    return Program(
        shardings=shardings,
        abstract_state=with_shardings(shapes, shardings),
        init=traced(compiled(init, whole, shardings)),
        start_from=traced(compiled(start_from, (param_shardings,), shardings)),
        train_step=traced(step),
        eval_step=traced(compiled(eval_step, (param_shardings, by_row), whole)),
        lower_train_step=traced(step.lower),
    )
