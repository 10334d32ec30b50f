"""Next-token cross entropy straight from hidden states: the logits of all positions never exist at once."""

import functools
import math
from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from spirit_jax.kernels.platform import platform


class TokenLosses(NamedTuple):
    """What `next_token_losses` returns, all float32. Gradients flow through `loss` alone."""

    loss: Float[Array, ""]
    """Sum over tokens of weight * (nll + z_loss * logsumexp**2): divide by the global count of tokens."""
    nll_bt: Float[Array, "B T"]
    """Negative log-likelihood of each target, in nats."""
    logsumexp_bt: Float[Array, "B T"]
    """Logarithm of the softmax's denominator."""
    correct_bt: Bool[Array, "B T"]
    """Whether no other token has a higher score than the target."""


def next_token_losses(
    hidden_btd: Float[Array, "B T D"],
    head_dv: Float[Array, "D V"],
    targets_bt: Int[Array, "B T"],
    weights_bt: Float[Array, "B T"] | Bool[Array, "B T"],
    z_loss: float = 0.0,
    chunk: int | None = None,
) -> TokenLosses:
    """Cross entropy of `targets_bt` under softmax(hidden_btd @ head_dv), weighted and summed, in float32.

    Works through the sequence `chunk` positions of every row at a time, so at most B * chunk * V logits exist. Under
    differentiation the gradient is taken in the same pass, while a chunk's logits are at hand, instead of computing
    them again: only the gradients of the hidden states and of the head are kept for the backward pass.

    Args:
        head_dv: multiplied in the dtype of the hidden states, accumulated in float32.
        weights_bt: weight of each position in the sum; 0 where there is nothing to learn (padding).
        z_loss: coefficient of the squared logsumexp, which keeps the logits from drifting.
        chunk: None is 512, and 128 on CPU, where fresh memory costs more than another turn.
    """
    if chunk is None:
        chunk = 128 if platform() == "cpu" else 512
    return _losses(hidden_btd, head_dv, targets_bt, weights_bt.astype(jnp.float32), z_loss, chunk)


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def _losses(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk):
    return _forward(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients=False)[0]


def _mesh_axes(name: str) -> tuple[str, ...]:
    """Axes of the mesh in force that split a logical axis."""
    mesh = jax.sharding.get_abstract_mesh()
    part = (nn.logical_to_mesh_axes((name,)) or (None,))[0] or ()
    return tuple(axis for axis in ((part,) if isinstance(part, str) else part) if mesh.shape.get(axis, 1) > 1)


def _forward(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients):
    """The losses and, if asked for, the gradients of their sum by hidden_btd (its dtype) and head_dv (float32).

    Where a mesh splits the rows, each device works through its own: the head is gathered once and its gradient summed over
    the devices once, not in every chunk, as the partitioner has it.
    """
    head_dv = head_dv.astype(hidden_btd.dtype)
    work = functools.partial(_work, z_loss=z_loss, chunk=chunk, gradients=gradients)
    mesh, rows = jax.sharding.get_abstract_mesh(), _mesh_axes("batch")
    if not rows or hidden_btd.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        return work(hidden_btd, head_dv, targets_bt, weights_bt)
    split = tuple(axis for axis in _mesh_axes("embed") if axis in rows)  # of the head, whose gradient leaves as it came

    def local(*arguments):
        losses, (h_gradient, head_gradient) = work(*arguments)
        if gradients and split:
            head_gradient = jax.lax.psum_scatter(head_gradient, split, scatter_dimension=0, tiled=True)
        if gradients and set(rows) != set(split):
            head_gradient = jax.lax.psum(head_gradient, tuple(set(rows) - set(split)))
        return losses._replace(loss=jax.lax.psum(losses.loss, rows)), (h_gradient, head_gradient)

    by_row, whole = PartitionSpec(rows), PartitionSpec()
    return jax.shard_map(
        local,
        in_specs=(by_row, whole, by_row, by_row),
        out_specs=(
            TokenLosses(whole, by_row, by_row, by_row),
            (by_row, PartitionSpec(split)) if gradients else (whole, whole),
        ),
        axis_names=set(rows),
        check_vma=False,
    )(hidden_btd, head_dv, targets_bt, weights_bt)


def _work(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients):
    """As `_forward`, over the rows that are here."""
    b, t = hidden_btd.shape[:2]

    def step(head_gradient, inputs):
        h_bcd, targets_bc, weights_bc = inputs
        with jax.named_scope("logits"):
            logits_bcv = jnp.einsum("bcd,dv->bcv", h_bcd, head_dv, preferred_element_type=jnp.float32)
        highest_bc = jnp.max(logits_bcv, axis=-1)
        exp_bcv = jnp.exp(logits_bcv - highest_bc[..., None])
        total_bc = jnp.sum(exp_bcv, axis=-1)
        logsumexp_bc = highest_bc + jnp.log(total_bc)
        target_logit_bc = jnp.take_along_axis(logits_bcv, targets_bc[..., None], axis=-1)[..., 0]
        losses = (logsumexp_bc - target_logit_bc, logsumexp_bc, target_logit_bc >= highest_bc)
        if not gradients:
            return None, (losses, None)
        with jax.named_scope("logits_gradient"):
            scale_bc = weights_bc * (1 + 2 * z_loss * logsumexp_bc) / total_bc
            target_bcv = jnp.arange(logits_bcv.shape[-1]) == targets_bc[..., None]
            gradient_bcv = exp_bcv * scale_bc[..., None] - jnp.where(target_bcv, weights_bc[..., None], 0)
            gradient_bcv = gradient_bcv.astype(h_bcd.dtype)
            h_gradient_bcd = jnp.einsum("bcv,dv->bcd", gradient_bcv, head_dv)
            # Transposed by itself: where XLA:CPU folds it into the product, that takes longer.
            h_dn = jax.lax.optimization_barrier(h_bcd.reshape(-1, h_bcd.shape[2]).T)
            gradient_nv = gradient_bcv.reshape(-1, gradient_bcv.shape[2])
            head_gradient += jnp.einsum("dn,nv->dv", h_dn, gradient_nv, preferred_element_type=jnp.float32)
        return head_gradient, (losses, h_gradient_bcd)

    chunk = min(chunk, t)
    count = -(-t // chunk)

    def split(x):
        """[B, T, ...] to [chunks, B, chunk, ...]; the positions added at the end have weight 0."""
        x = jnp.pad(x, [(0, 0), (0, count * chunk - t)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, count, chunk, *x.shape[2:]), 1, 0)

    def join(x):
        return jnp.moveaxis(x, 0, 1).reshape(b, count * chunk, *x.shape[3:])[:, :t]

    head_gradient = jnp.zeros(head_dv.shape, jnp.float32) if gradients else None
    inputs = (split(hidden_btd), split(targets_bt), split(weights_bt))
    head_gradient, (losses, h_gradient) = jax.lax.scan(step, head_gradient, inputs)
    nll_bt, logsumexp_bt, correct_bt = map(join, losses)
    loss = jnp.sum(weights_bt * (nll_bt + z_loss * logsumexp_bt**2))
    return TokenLosses(loss, nll_bt, logsumexp_bt, correct_bt), (join(h_gradient) if gradients else None, head_gradient)


def _losses_fwd(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk):
    losses, (h_gradient, head_gradient) = _forward(
        hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients=True
    )
    token_loss_bt = losses.nll_bt + z_loss * losses.logsumexp_bt**2
    return losses, (h_gradient, head_gradient.astype(head_dv.dtype), token_loss_bt)


def _losses_bwd(z_loss, chunk, residuals, cotangents):
    h_gradient, head_gradient, token_loss_bt = residuals
    scale = cotangents.loss
    return (
        (h_gradient * scale).astype(h_gradient.dtype),
        (head_gradient * scale).astype(head_gradient.dtype),
        None,
        token_loss_bt * scale,
    )


_losses.defvjp(_losses_fwd, _losses_bwd)
