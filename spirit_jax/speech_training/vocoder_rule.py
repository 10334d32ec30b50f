"""One step of a unit HiFi-GAN against its discriminators (Kong et al. 2020, arXiv 2010.05646)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.models import hifigan_losses as losses
from spirit_jax.models.hifigan import HifiGan, fold_weight_norm, initialize
from spirit_jax.models.hifigan_config import HifiGanConfig
from spirit_jax.models.hifigan_discriminators import Discriminators, fold_norms, iterate_power, split_norms
from spirit_jax.models.hifigan_losses import Outputs
from spirit_jax.models.mel import vocoder_mel
from spirit_jax.speech_training.vocoder_config import GanOptimizerConfig, VocoderTraining
from spirit_jax.training.faults import detect_bad_step, no_recent_steps
from spirit_jax.training.optimizer import Optimizer
from spirit_jax.training.state import DeviceBatch, Metrics, Params, TrainState
from spirit_jax.training.step import replicated

GENERATOR, DISCRIMINATORS = "generator", "discriminators"
"""The two networks in the train state."""

RATIOS = {
    "loss": ("loss_sum", "rows"),
    "mel": ("mel_sum", "rows"),
    "duration": ("duration_sum", "rows"),
    "adversarial": ("adversarial_sum", "rows"),
    "features": ("features_sum", "rows"),
    "discriminator": ("discriminator_sum", "rows"),
}
"""The values of the log, each the mean over rows of a loss without its weight; `loss` is the generator's."""


def gan_optimizer(config: GanOptimizerConfig, epoch_steps: int) -> Optimizer:
    """AdamW whose learning rate falls after each epoch of `epoch_steps` steps."""

    def schedule(step):
        return config.learning_rate * config.decay ** (step // epoch_steps)

    def is_decayed(params: Any) -> Any:
        return jax.tree_util.tree_map_with_path(lambda path, _: "power" not in jax.tree_util.keystr(path), params)

    adamw = optax.adamw(
        schedule,
        b1=config.beta1,
        b2=config.beta2,
        eps=config.epsilon,
        weight_decay=config.weight_decay,
        mask=is_decayed,
    )
    return Optimizer(transformation=adamw, schedule=schedule)


@dataclasses.dataclass(frozen=True, eq=False)
class VocoderRule:
    """A step first updates the discriminators on recordings and generated audio, then the generator against them.

    Both optimizers keep their own moments. A batch holds `audio_br`, the codes of each frame (`units_bt`, `pitch_bt`,
    `styles_bt`), `speaker_b`, `style_b`, the inner runs of the crop (`runs_bu`, `durations_bu`, `runs_b`) and
    `weight_b`. It is a `training.step.Rule`.
    """

    config: VocoderTraining
    network: HifiGanConfig
    """The generator with the sizes of its tables."""
    optimizer: Optimizer
    spike_sigmas: float = 0.0
    """As `training.step.UpdateRule.spike_sigmas`."""
    initial: Params | None = None
    """Weights of the generator to begin with."""
    dtype: str = "float32"

    def init(self, key: Array) -> TrainState:
        """A state with fresh networks; the generator's weights are `initial` if they are given."""
        first, second, third = jax.random.split(key, 3)
        generator = initialize(self.network, first) if self.initial is None else self.initial
        audio_br = jnp.zeros((1, self.config.samples))
        plain = Discriminators(self.config.discriminators).init(second, audio_br)["params"]
        return self.start_from({GENERATOR: generator, DISCRIMINATORS: split_norms(dict(plain), third)})

    def start_from(self, params: Params) -> TrainState:
        """A state with these parameters and fresh optimizers."""
        params = jax.tree.map(jnp.asarray, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state={name: self.optimizer.transformation.init(tree) for name, tree in params.items()},
            recent=no_recent_steps(),
        )

    def shardings(self, mesh: Mesh, shapes: TrainState) -> TrainState:
        """Every device holds both networks."""
        return replicated(mesh, shapes)

    def train_step(self, state: TrainState, batch: DeviceBatch, *, accumulate: int = 1) -> tuple[TrainState, Metrics]:
        """Update both networks with a batch; a bad step changes neither.

        Raises:
            ValueError: `accumulate` is not 1.
        """
        if accumulate != 1:
            raise ValueError(f"a vocoder's batch is not divided; found accumulate {accumulate}")
        start, recent = self.config.adversarial_start, state.recent
        if start >= self.config.loop.steps:  # the discriminators never take part, so their step is not compiled
            params, opt_state, metrics = self._mel_step(state.params, state.opt_state, batch)
        elif start:
            # The loss is another one from here on; beside the one before, its first steps would be spikes.
            recent = jax.tree.map(
                lambda fresh, kept: jnp.where(state.step == start, fresh, kept), no_recent_steps(), recent
            )
            params, opt_state, metrics = jax.lax.cond(
                state.step >= start, self._adversarial_step, self._mel_step, state.params, state.opt_state, batch
            )
        else:
            params, opt_state, metrics = self._adversarial_step(state.params, state.opt_state, batch)
        bad, recent = detect_bad_step(recent, metrics["loss"], metrics["gradient_norm"], self.spike_sigmas)
        params, opt_state = jax.tree.map(
            lambda new, old: jnp.where(bad, old, new), (params, opt_state), (state.params, state.opt_state)
        )
        metrics |= {"bad": bad, "learning_rate": jnp.asarray(self.optimizer.schedule(state.step))}
        return TrainState(step=state.step + 1, params=params, opt_state=opt_state, recent=recent), metrics

    def eval_step(self, params: Params, batch: DeviceBatch) -> Metrics:
        """The losses of held-out rows, each times the number of rows."""
        weight_b = batch["weight_b"]
        audio_br, log_durations_bu = self._speak(params[GENERATOR], batch)
        real, made = (self._judge(params[DISCRIMINATORS], x_br) for x_br in (batch["audio_br"], audio_br))
        loss, values = self._generator_loss(audio_br, log_durations_bu, batch, real, made)
        return self._sums(loss, values | {"discriminator": losses.discriminator_loss(real, made, weight_b)}, batch)

    def _adversarial_step(self, params: Params, opt_state: Any, batch: DeviceBatch) -> tuple[Params, Any, Metrics]:
        """Both updates."""
        weight_b, real_br = batch["weight_b"], batch["audio_br"]
        judges = iterate_power(params[DISCRIMINATORS])
        (made_br, log_durations_bu), pull_back = jax.vjp(lambda tree: self._speak(tree, batch), params[GENERATOR])

        def judges_loss(judges: Params) -> Float[Array, ""]:
            fixed_br = jax.lax.stop_gradient(made_br)
            return losses.discriminator_loss(self._judge(judges, real_br), self._judge(judges, fixed_br), weight_b)

        discriminator, judges_gradient = jax.value_and_grad(judges_loss)(judges)
        judges, judges_state = self._update(judges, opt_state[DISCRIMINATORS], judges_gradient)
        real = self._judge(judges, real_br)

        def generator_loss(made_br: Array, log_durations_bu: Array | None) -> tuple[Float[Array, ""], dict[str, Array]]:
            return self._generator_loss(made_br, log_durations_bu, batch, real, self._judge(judges, made_br))

        (loss, values), pulled = jax.value_and_grad(generator_loss, argnums=(0, 1), has_aux=True)(
            made_br, log_durations_bu
        )
        (gradient,) = pull_back(pulled)
        generator, generator_state = self._update(params[GENERATOR], opt_state[GENERATOR], gradient)
        metrics = self._sums(loss, values | {"discriminator": discriminator}, batch)
        metrics["gradient_norm"] = optax.global_norm((gradient, judges_gradient))
        return (
            {GENERATOR: generator, DISCRIMINATORS: judges},
            {GENERATOR: generator_state, DISCRIMINATORS: judges_state},
            metrics,
        )

    def _mel_step(self, params: Params, opt_state: Any, batch: DeviceBatch) -> tuple[Params, Any, Metrics]:
        """An update of the generator without discriminators."""

        def generator_loss(generator: Params) -> tuple[Float[Array, ""], dict[str, Array]]:
            return self._generator_loss(*self._speak(generator, batch), batch, (), ())

        (loss, values), gradient = jax.value_and_grad(generator_loss, has_aux=True)(params[GENERATOR])
        generator, generator_state = self._update(params[GENERATOR], opt_state[GENERATOR], gradient)
        metrics = self._sums(loss, values | {"discriminator": jnp.zeros(())}, batch)
        metrics["gradient_norm"] = optax.global_norm(gradient)
        return {**params, GENERATOR: generator}, {**opt_state, GENERATOR: generator_state}, metrics

    def _update(self, params: Params, opt_state: Any, gradient: Params) -> tuple[Params, Any]:
        updates, opt_state = self.optimizer.transformation.update(gradient, opt_state, params)
        moved: Any = optax.apply_updates(params, updates)
        return dict(moved), opt_state

    def _speak(self, params: Params, batch: DeviceBatch) -> tuple[Float[Array, "B R"], Float[Array, "B U"] | None]:
        """Audio of the crops and the log durations of their inner runs, None without a duration predictor."""
        model = HifiGan(self.network)
        variables = {"params": fold_weight_norm(params)}
        audio_br: Any = model.apply(
            variables,
            batch["units_bt"],
            batch["pitch_bt"],
            batch["styles_bt"],
            batch["speaker_b"],
            batch["style_b"],
            method="generate",
        )
        if not self.network.duration_hidden_dim:
            return audio_br, None
        runs_b = batch["runs_b"]
        log_durations_bu: Any = model.apply(
            variables, batch["runs_bu"], jnp.zeros_like(runs_b), runs_b, method="log_durations"
        )
        return audio_br, log_durations_bu

    def _judge(self, params: Params, audio_br: Float[Array, "B R"]) -> Outputs:
        outputs: Any = Discriminators(self.config.discriminators).apply({"params": fold_norms(params)}, audio_br)
        return outputs

    def _generator_loss(
        self,
        audio_br: Float[Array, "B R"],
        log_durations_bu: Float[Array, "B U"] | None,
        batch: DeviceBatch,
        real: Outputs,
        made: Outputs,
    ) -> tuple[Float[Array, ""], dict[str, Array]]:
        """The weighted loss, and its parts without their weights."""
        c, weight_b = self.config, batch["weight_b"]
        (real_btm, frames_b), (made_btm, _) = (vocoder_mel(x_br, c.mel) for x_br in (batch["audio_br"], audio_br))
        frames_b = frames_b * weight_b.astype(jnp.int32)
        runs_b = batch["runs_b"] * weight_b.astype(jnp.int32)
        values = {
            "mel": losses.mel_loss(real_btm, made_btm, frames_b),
            "duration": jnp.zeros(())
            if log_durations_bu is None
            else losses.duration_loss(log_durations_bu, batch["durations_bu"], runs_b),
            "adversarial": losses.adversarial_loss(made, weight_b),
            "features": losses.feature_matching_loss(real, made, weight_b),
        }
        loss = (
            c.mel_weight * values["mel"]
            + c.duration_weight * values["duration"]
            + values["adversarial"]
            + c.feature_weight * values["features"]
        )
        return loss, values

    def _sums(self, loss: Array, values: dict[str, Array], batch: DeviceBatch) -> Metrics:
        rows = batch["weight_b"].sum()
        sums = {f"{name}_sum": value * rows for name, value in values.items()}
        seconds = rows * (self.config.samples / SAMPLE_RATE)
        return {**sums, "loss_sum": loss * rows, "loss": loss, "rows": rows, "seconds": seconds}
