"""Cross entropy in chunks of positions: the logits of all positions never exist at once."""

import functools
import math

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Float, Int

from spirit_jax.core.arithmetic import ceil_div
from spirit_jax.core.mesh import mesh_axes
from spirit_jax.kernels.reference import TokenLosses


@functools.partial(jax.custom_vjp, nondiff_argnums=(4, 5))
def cross_entropy(
    hidden_btd: Float[Array, "B T D"],
    head_dv: Float[Array, "D V"],
    targets_bt: Int[Array, "B T"],
    weights_bt: Float[Array, "B T"],
    z_loss: float = 0.0,
    chunk: int = 512,
) -> TokenLosses:
    """`reference.cross_entropy`, `chunk` positions of every row at a time: at most B * chunk * V logits exist.

    Under differentiation the same pass takes the gradient while a chunk's logits are at hand, instead of computing
    them again. Only the gradients of the hidden states and of the head are kept for the backward pass.
    """
    return _forward(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients=False)[0]


def _forward(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients):
    """The losses and, if asked for, the gradients of their sum by hidden_btd (in its dtype) and head_dv (float32).

    Where a mesh splits the rows, each device works through its own. The head is then gathered once and its gradient
    is summed over the devices once; the partitioner would do both in every chunk.
    """
    head_dv = head_dv.astype(hidden_btd.dtype)
    work = functools.partial(_local_forward, z_loss=z_loss, chunk=chunk, gradients=gradients)
    mesh, rows = jax.sharding.get_abstract_mesh(), mesh_axes("batch")
    if not rows or hidden_btd.shape[0] % math.prod(mesh.shape[axis] for axis in rows):
        return work(hidden_btd, head_dv, targets_bt, weights_bt)
    # The axes that split the head itself: its gradient leaves split as the head came.
    split = tuple(axis for axis in mesh_axes("embed") if axis in rows)

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
            TokenLosses(whole, by_row, by_row, by_row),  # pyright: ignore[reportArgumentType] - specs instead of arrays
            (by_row, PartitionSpec(split)) if gradients else (whole, whole),
        ),
        axis_names=set(rows),
        check_vma=False,
    )(hidden_btd, head_dv, targets_bt, weights_bt)


def _local_forward(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients):
    """`_forward` of the rows that this device holds."""
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
            # A transposition of its own: XLA:CPU takes longer where it folds it into the product.
            h_dn = jax.lax.optimization_barrier(h_bcd.reshape(-1, h_bcd.shape[2]).T)
            gradient_nv = gradient_bcv.reshape(-1, gradient_bcv.shape[2])
            head_gradient += jnp.einsum("dn,nv->dv", h_dn, gradient_nv, preferred_element_type=jnp.float32)
        return head_gradient, (losses, h_gradient_bcd)

    chunk = min(chunk, t)
    count = ceil_div(t, chunk)

    def split(x):
        """[B, T, ...] to [chunks, B, chunk, ...]; the positions added at the end have weight 0."""
        x = jnp.pad(x, [(0, 0), (0, count * chunk - t)] + [(0, 0)] * (x.ndim - 2))
        return jnp.moveaxis(x.reshape(b, count, chunk, *x.shape[2:]), 1, 0)

    def join(x):
        """The inverse of `split`."""
        return jnp.moveaxis(x, 0, 1).reshape(b, count * chunk, *x.shape[3:])[:, :t]

    head_gradient = jnp.zeros(head_dv.shape, jnp.float32) if gradients else None
    inputs = (split(hidden_btd), split(targets_bt), split(weights_bt))
    head_gradient, (losses, h_gradient) = jax.lax.scan(step, head_gradient, inputs)
    nll_bt, logsumexp_bt, correct_bt = map(join, losses)
    loss = jnp.sum(weights_bt * (nll_bt + z_loss * logsumexp_bt**2))
    return TokenLosses(loss, nll_bt, logsumexp_bt, correct_bt), (join(h_gradient) if gradients else None, head_gradient)


def _cross_entropy_forward(hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk):
    losses, (h_gradient, head_gradient) = _forward(
        hidden_btd, head_dv, targets_bt, weights_bt, z_loss, chunk, gradients=True
    )
    assert head_gradient is not None
    token_loss_bt = losses.nll_bt + z_loss * losses.logsumexp_bt**2
    return losses, (h_gradient, head_gradient.astype(head_dv.dtype), token_loss_bt)


def _cross_entropy_backward(z_loss, chunk, residuals, cotangents):
    h_gradient, head_gradient, token_loss_bt = residuals
    scale = cotangents.loss
    return (
        (h_gradient * scale).astype(h_gradient.dtype),
        (head_gradient * scale).astype(head_gradient.dtype),
        None,
        token_loss_bt * scale,
    )


cross_entropy.defvjp(_cross_entropy_forward, _cross_entropy_backward)
