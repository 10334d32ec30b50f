"""SwiGLU whose backward pass keeps nothing but its inputs."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from spirit_jax.kernels import reference


@jax.custom_vjp
def swiglu(gate: Float[Array, "*shape"], up: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
    """`reference.swiglu`. The backward pass computes the logistic function again instead of keeping it."""
    return reference.swiglu(gate, up)


def _backward(inputs, gradient):
    gate, up, gradient = (x.astype(jnp.float32) for x in (*inputs, gradient))
    # The logistic function is written as a tanh, because XLA would recognize the forward pass's and keep its result.
    # Adding zero times the gradient makes it wait for the gradient; XLA would compute it early, and keep it.
    logistic = 0.5 * jnp.tanh(0.5 * gate + 0 * gradient) + 0.5
    silu = gate * logistic
    by_gate, by_up = gradient * up * (logistic + silu * (1 - logistic)), gradient * silu
    return by_gate.astype(inputs[0].dtype), by_up.astype(inputs[1].dtype)


swiglu.defvjp(lambda gate, up: (swiglu(gate, up), (gate, up)), _backward)
