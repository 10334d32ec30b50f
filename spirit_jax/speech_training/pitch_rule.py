"""One step of the pitch VQ-VAE: reconstruction, commitment, and the codebook's moving averages."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jax.sharding import Mesh
from jaxtyping import Array, Float

from spirit_jax.core.constants import SAMPLE_RATE
from spirit_jax.kernels.masked import valid_frames
from spirit_jax.models import codebook
from spirit_jax.models.vqvae import VQVAE
from spirit_jax.speech.f0 import CONTOUR_HOP
from spirit_jax.speech_training.pitch_config import PitchTraining
from spirit_jax.training.faults import detect_bad_step, no_recent_steps
from spirit_jax.training.optimizer import Optimizer
from spirit_jax.training.state import DeviceBatch, Metrics, Params, TrainState
from spirit_jax.training.step import replicated

RATIOS = {
    "loss": ("loss_sum", "frames"),
    "f0_error_hz": ("hertz_sum", "voiced"),
    "f0_error_cents": ("cents_sum", "voiced"),
    "voicing_error": ("voicing_sum", "frames"),
    "commitment": ("commitment_sum", "codes"),
    "codes_in_use": ("in_use", "batches"),
}
"""The values of the log. F0 is compared on voiced frames, absolute in Hz and cents; the codes in use are those that a
batch has."""

_LOWEST_F0 = 20.0  # Hz, of a reconstruction whose error is counted in cents


@dataclasses.dataclass(frozen=True, eq=False)
class PitchRule:
    """AdamW of encoder and decoder; the codebook follows its latents. It is a `training.step.Rule`.

    A batch holds `f0_bt`, as the encoder reads it, `voiced_bt`, `mean_b` (the Hz that F0 is relative to), `frames_b`
    and `weight_b`.
    """

    config: PitchTraining
    optimizer: Optimizer
    seed: int = 0
    spike_sigmas: float = 0.0
    dtype: str = "float32"

    @property
    def model(self) -> VQVAE:
        """The network."""
        return VQVAE(self.config.network)

    def init(self, key: Array) -> TrainState:
        """A state with fresh weights; the first batch gives the codebook."""
        shape = self.config.network
        f0_bt = jnp.zeros((1, shape.hop))
        averages = codebook.no_averages(shape.codes, shape.embedding_size)
        return self.start_from(
            {"vqvae": dict(self.model.init(key, f0_bt, f0_bt)["params"]), "averages": averages._asdict()}
        )

    def start_from(self, params: Params) -> TrainState:
        """A state with these parameters and a fresh optimizer."""
        params = jax.tree.map(jnp.asarray, params)
        return TrainState(
            step=jnp.zeros((), jnp.int32),
            params=params,
            opt_state=self.optimizer.transformation.init(_trained(params)),
            recent=no_recent_steps(),
        )

    def shardings(self, mesh: Mesh, shapes: TrainState) -> TrainState:
        """Every device holds the network."""
        return replicated(mesh, shapes)

    def train_step(self, state: TrainState, batch: DeviceBatch, *, accumulate: int = 1) -> tuple[TrainState, Metrics]:
        """Update the network and its codebook with a batch; a bad step changes neither.

        Raises:
            ValueError: `accumulate` is not 1.
        """
        if accumulate != 1:
            raise ValueError(f"the codebook needs the whole batch; found accumulate {accumulate}")
        params = state.params

        def loss(trained: Params) -> tuple[Float[Array, ""], tuple[Metrics, Array, Array, Array]]:
            metrics, latents = self._losses({**params["vqvae"], **trained}, batch)
            return metrics["loss"], (metrics, *latents)

        trained = _trained(params)
        (value, (metrics, *latents)), gradient = jax.value_and_grad(loss, has_aux=True)(trained)
        updates, opt_state = self.optimizer.transformation.update(gradient, state.opt_state, trained)
        moved: Any = optax.apply_updates(trained, updates)
        key = jax.random.fold_in(jax.random.key(self.seed), state.step)
        averages, entries_ke, dead = codebook.update(
            codebook.Averages(**params["averages"]), *latents, key=key, decay=self.config.decay
        )
        after = {
            "vqvae": {**dict(moved), "codebook": entries_ke},
            "averages": averages._asdict(),
        }
        norm = optax.global_norm(gradient)
        bad, recent = detect_bad_step(state.recent, value, norm, self.spike_sigmas)
        after, opt_state = jax.tree.map(
            lambda new, old: jnp.where(bad, old, new), (after, opt_state), (params, state.opt_state)
        )
        learning_rate = jnp.asarray(self.optimizer.schedule(state.step))
        metrics |= {"gradient_norm": norm, "learning_rate": learning_rate, "bad": bad, "replaced": dead}
        return TrainState(step=state.step + 1, params=after, opt_state=opt_state, recent=recent), metrics

    def eval_step(self, params: Params, batch: DeviceBatch) -> Metrics:
        """Sums over the frames of held-out rows."""
        metrics, _ = self._losses(params["vqvae"], batch)
        return metrics

    def _losses(self, params: Params, batch: DeviceBatch) -> tuple[Metrics, tuple[Array, Array, Array]]:
        """Losses and errors, and the latents [N, E], their codes [N] and which of them count [N]."""
        c, f0_bt, voiced_bt = self.config, batch["f0_bt"], batch["voiced_bt"]
        frames_b = batch["frames_b"] * batch["weight_b"].astype(jnp.int32)
        outputs: Any = self.model.apply({"params": params}, f0_bt, voiced_bt, frames_b, method="straight_through")
        z_bne, codes_bn, counts_b, made_bt2 = outputs
        size = min(made_bt2.shape[1], f0_bt.shape[1])
        counts_b = jnp.maximum(counts_b, 0)
        inside_bt = valid_frames(jnp.minimum(frames_b, counts_b * c.network.hop), size)
        valid_bn = valid_frames(counts_b, z_bne.shape[1])
        f0_bt, voiced_bt, made_bt2 = f0_bt[:, :size], voiced_bt[:, :size], made_bt2[:, :size]

        def total(x_bt: Float[Array, "B T"]) -> Float[Array, ""]:
            return jnp.sum(jnp.where(inside_bt, x_bt, 0.0))

        frames = jnp.maximum(inside_bt.sum(), 1).astype(jnp.float32)
        squared_bt = jnp.square(made_bt2[..., 0] - f0_bt)
        squared_bt += c.voicing_weight * jnp.square(made_bt2[..., 1] - voiced_bt)
        reconstruction = total(squared_bt) / (2 * frames)
        entries_bne = jax.lax.stop_gradient(jnp.take(params["codebook"], codes_bn, axis=0))
        distance_bn = jnp.square(z_bne - entries_bne).mean(-1)
        codes = jnp.maximum(valid_bn.sum(), 1).astype(jnp.float32)
        commitment = jnp.sum(jnp.where(valid_bn, distance_bn, 0.0)) / codes
        loss = reconstruction + c.commitment * commitment

        is_voiced_bt = (voiced_bt > 0.5) & inside_bt
        recorded_bt, made_bt = (x_bt + batch["mean_b"][:, None] for x_bt in (f0_bt, made_bt2[..., 0]))
        octaves_bt = jnp.log2(jnp.maximum(made_bt, _LOWEST_F0) / jnp.where(is_voiced_bt, recorded_bt, _LOWEST_F0))
        present_k = jnp.zeros(c.network.codes, bool).at[codes_bn].max(valid_bn)
        metrics = {
            "loss": loss,
            "loss_sum": loss * frames,
            "hertz_sum": jnp.sum(jnp.where(is_voiced_bt, jnp.abs(made_bt - recorded_bt), 0.0)),
            "cents_sum": jnp.sum(jnp.where(is_voiced_bt, jnp.abs(1200 * octaves_bt), 0.0)),
            "voiced": is_voiced_bt.sum().astype(jnp.float32),
            "voicing_sum": total(((made_bt2[..., 1] > 0.5) != (voiced_bt > 0.5)).astype(jnp.float32)),
            "commitment_sum": commitment * codes,
            "frames": frames,
            "codes": codes,
            "in_use": present_k.sum().astype(jnp.float32),
            "batches": jnp.ones(()),
            "seconds": frames * (CONTOUR_HOP / SAMPLE_RATE),
        }
        latents = jax.lax.stop_gradient(z_bne).reshape(-1, z_bne.shape[-1])
        return metrics, (latents, codes_bn.reshape(-1), valid_bn.reshape(-1))


def _trained(params: Params) -> Params:
    """The parameters that have a gradient."""
    return {name: tree for name, tree in params["vqvae"].items() if name != "codebook"}
