"""One optimizer step of any objective, compiled for a mesh: initialize, train on a batch, evaluate a batch."""

import dataclasses
from collections.abc import Callable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, Float

from spirit_jax.parallel.compiler import compiler_options
from spirit_jax.parallel.sharding import BatchLayout, tracing, tree_shardings, with_shardings
from spirit_jax.training.faults import detect_bad_step, no_recent_steps
from spirit_jax.training.optimizer import Optimizer
from spirit_jax.training.state import DeviceBatch, Metrics, Params, TrainState


class Objective(Protocol):
    """A training objective: the parameters, their sharding over a mesh, and the loss of a batch.

    A batch's loss is a sum over its targets (tokens, frames) times `loss_scale(batch)`, the reciprocal of their number
    over the whole batch. Sums over the parts of a batch then add up to the mean over the batch.
    """

    @property
    def dtype(self) -> str:
        """Data type of the computation; "float32" asks for float32 matrix products on every platform."""
        ...

    def init(self, key: Array) -> Params:
        """Fresh parameters."""
        ...

    def logical_axes(self) -> Any:
        """The logical axes of each parameter, as a tree of tuples."""
        ...

    def loss_scale(self, batch: DeviceBatch) -> Float[Array, ""]:
        """The factor of the summed loss, computed from the whole batch."""
        ...

    def loss(self, params: Params, batch: DeviceBatch, scale: Float[Array, ""]) -> tuple[Float[Array, ""], Metrics]:
        """The loss of a batch or of a part of it, and metrics that add up over parts, among them `loss` itself."""
        ...

    def evaluate(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Metrics of a held-out batch that add up over batches."""
        ...


class Rule(Protocol):
    """Update of the train state by a batch, as plain functions of arrays that `TrainStep` compiles.

    `UpdateRule` is the rule of one loss and one optimizer. A network that trains against another one, or that has state
    outside the gradient, brings its own.
    """

    @property
    def dtype(self) -> str:
        """Data type of the computation; "float32" asks for float32 matrix products on every platform."""
        ...

    def init(self, key: Array) -> TrainState:
        """A state with fresh parameters."""
        ...

    def start_from(self, params: Params) -> TrainState:
        """A state with these parameters and a fresh optimizer."""
        ...

    def train_step(self, state: TrainState, batch: DeviceBatch, *, accumulate: int = 1) -> tuple[TrainState, Metrics]:
        """Update the state with a batch that is worked through in `accumulate` parts.

        The metrics are those of `task.Step.train_step`.
        """
        ...

    def eval_step(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Metrics of a held-out batch that add up over batches."""
        ...

    def shardings(self, mesh: Mesh, shapes: TrainState) -> TrainState:
        """The sharding of every leaf of the state."""
        ...


def replicated(mesh: Mesh, shapes: TrainState) -> TrainState:
    """Shardings of a state that every device holds whole; its rows are split all the same."""
    return jax.tree.map(lambda _: NamedSharding(mesh, PartitionSpec()), shapes)


@dataclasses.dataclass(frozen=True, eq=False)
class UpdateRule:
    """The rule of one objective and one optimizer."""

    objective: Objective
    optimizer: Optimizer
    spike_sigmas: float = 0.0
    """A loss or gradient norm so many deviations above recent ones is a spike (`faults.detect_bad_step`); 0: never."""

    @property
    def dtype(self) -> str:
        """The objective's."""
        return self.objective.dtype

    def init(self, key: Array) -> TrainState:
        """A state with fresh parameters."""
        return self.start_from(self.objective.init(key))

    def start_from(self, params: Params) -> TrainState:
        """A state with these parameters and a fresh optimizer."""
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.transformation.init(params),
            recent=no_recent_steps(),
        )

    def gradients(self, params: Params, batch: DeviceBatch, accumulate: int) -> tuple[Metrics, Params]:
        """The metrics of a batch and the gradient of its loss, added up over `accumulate` parts of the batch."""
        scale = self.objective.loss_scale(batch)
        gradient = jax.value_and_grad(self.objective.loss, has_aux=True)
        if accumulate == 1:
            (_, metrics), grads = gradient(params, batch, scale)
            return metrics, grads
        # Row r goes to part r % accumulate, so that each device splits its own rows.
        parts = jax.tree.map(
            lambda x: jnp.moveaxis(x.reshape(x.shape[0] // accumulate, accumulate, *x.shape[1:]), 1, 0), batch
        )

        def add(total, part):
            return jax.tree.map(jnp.add, total, gradient(params, part, scale)), None

        first_part = jax.tree.map(lambda x: x[0], parts)
        shapes = jax.eval_shape(gradient, params, first_part, scale)
        zeros = jax.tree.map(lambda s: jnp.zeros(s.shape, s.dtype), shapes)
        ((_, metrics), grads), _ = jax.lax.scan(add, zeros, parts)
        return metrics, grads

    def train_step(self, state: TrainState, batch: DeviceBatch, *, accumulate: int = 1) -> tuple[TrainState, Metrics]:
        """Update the state with a batch.

        A bad step (a loss or gradient that is not finite, or a spike) changes only the number of the step and the
        statistics of recent steps.

        Args:
            state: the state before the step.
            batch: the global batch.
            accumulate: parts that it is worked through in, one after the other; the result is the same.

        Returns:
            The state after the step, and the objective's metrics with `gradient_norm`, `learning_rate` and `bad`.
        """
        # Each row carries the number of the update, which random choices within a step depend on (dropout).
        rows = jax.tree.leaves(batch)[0].shape[0]
        batch = {**batch, "step": jnp.broadcast_to(state.step, (rows,))}
        metrics, grads = self.gradients(state.params, batch, accumulate)
        norm = optax.global_norm(grads)
        bad, recent = detect_bad_step(state.recent, metrics["loss"], norm, self.spike_sigmas)
        learning_rate = jnp.asarray(self.optimizer.schedule(state.step))
        metrics |= {"gradient_norm": norm, "learning_rate": learning_rate, "bad": bad}
        updates, opt_state = self.optimizer.transformation.update(grads, state.opt_state, state.params)
        after = (optax.apply_updates(state.params, updates), opt_state)
        before = (state.params, state.opt_state)
        params, opt_state = jax.tree.map(lambda new, old: jnp.where(bad, old, new), after, before)
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, recent=recent), metrics

    def eval_step(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Metrics of a held-out batch that add up over batches."""
        return self.objective.evaluate(params, batch)

    def shardings(self, mesh: Mesh, shapes: TrainState) -> TrainState:
        """The sharding of every leaf of the state: moments are split like their parameters, the rest is replicated.

        Raises:
            ShardingError: the mesh does not divide a parameter; names it.
        """
        whole = NamedSharding(mesh, PartitionSpec())
        params = tree_shardings(mesh, self.objective.logical_axes(), shapes.params)
        opt_state = optax.tree_utils.tree_map_params(
            self.optimizer.transformation,
            lambda _, sharding: sharding,
            shapes.opt_state,
            params,
            transform_non_params=lambda _: whole,
        )
        recent = jax.tree.map(lambda _: whole, shapes.recent)
        return shapes.replace(step=whole, params=params, opt_state=opt_state, recent=recent)


@dataclasses.dataclass(frozen=True, eq=False)
class Frozen:
    """Parameters that a rule reads and that no step changes, such as the base of an adapter.

    They are arguments of the compiled functions and no part of the train state, so that neither the optimizer nor a
    checkpoint holds them.
    """

    params: Params
    """Arrays, or abstract arrays with shardings, with which a step can only be lowered."""
    bind: Callable[[Params], Rule]
    """Returns the rule that reads these parameters."""


class TrainStep:
    """The compiled functions of a run on one mesh. Nothing is compiled before the first call of each function.

    Args:
        rule: how a batch changes the state.
        layout: how a batch is split over the mesh.
        frozen: parameters that the rule reads; what its `bind` returns then takes the place of `rule` in the compiled
            steps.

    Attributes:
        layout: how a batch is split over the mesh.
        shardings: sharding of every leaf of the train state.
        abstract_state: shapes, data types and shardings of the train state; takes no memory.

    Raises:
        ShardingError: the mesh does not divide a parameter; names it.
    """

    def __init__(self, rule: Rule, layout: BatchLayout, frozen: Frozen | None = None):
        mesh = layout.mesh
        self._frozen = {} if frozen is None else frozen.params

        def bound(params: Params) -> Rule:
            return rule if frozen is None else frozen.bind(params)

        def train_step(state: TrainState, batch: DeviceBatch, params: Params) -> tuple[TrainState, Metrics]:
            return bound(params).train_step(state, batch, accumulate=layout.accumulate)

        def eval_step(trained: Params, batch: DeviceBatch, params: Params) -> Metrics:
            return bound(params).eval_step(trained, batch)

        shapes = jax.eval_shape(rule.init, jax.random.key(0))
        self.layout = layout
        self.shardings = rule.shardings(mesh, shapes)
        self.abstract_state: TrainState = with_shardings(shapes, self.shardings)
        self._dtype = rule.dtype
        whole, by_row, state = NamedSharding(mesh, PartitionSpec()), layout.sharding, self.shardings
        kept = jax.tree.map(lambda array: array.sharding, self._frozen)
        self._init = jax.jit(rule.init, in_shardings=whole, out_shardings=state)
        self._start_from = jax.jit(rule.start_from, in_shardings=(state.params,), out_shardings=state)
        self._train_step = jax.jit(
            train_step,
            in_shardings=(state, by_row, kept),
            out_shardings=(state, whole),
            donate_argnums=0,
            compiler_options=compiler_options(mesh),
        )
        self._eval_step = jax.jit(eval_step, in_shardings=(state.params, by_row, kept), out_shardings=whole)

    def _traced(self, function: Callable[..., Any], *arguments: Any) -> Any:
        with tracing(self.layout.mesh, self._dtype):
            return function(*arguments)

    def init(self, key: Array) -> TrainState:
        """Create a state with fresh parameters."""
        return self._traced(self._init, key)

    def start_from(self, params: Params) -> TrainState:
        """Create a state with these parameters and a fresh optimizer."""
        return self._traced(self._start_from, params)

    def put_batch(self, batch: dict[str, np.ndarray]) -> DeviceBatch:
        """Build the global arrays of a batch from this process's rows of it."""
        return self.layout.put(batch)

    def train_step(self, state: TrainState, batch: DeviceBatch) -> tuple[TrainState, Metrics]:
        """Run `UpdateRule.train_step`; the state that is passed in is consumed."""
        return self._traced(self._train_step, state, batch, self._frozen)

    def eval_step(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Compute metrics of a held-out batch that add up over batches."""
        return self._traced(self._eval_step, params, batch, self._frozen)

    def lower_train_step(self, state: Any, batch: Any) -> jax.stages.Lowered:
        """Lower `train_step` for abstract arguments without running it."""
        return self._traced(self._train_step.lower, state, batch, self._frozen)
