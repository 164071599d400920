"""Layers that encoders share, each alone or with a leading axis of layers for `jax.lax.scan`."""

import jax
import jax.numpy as jnp
from flax import nnx


class Linear(nnx.Module):
    """x @ W + b; `layers` 0: not of a stack."""

    def __init__(self, layers: int, shape: tuple[int, int], rngs: nnx.Rngs):
        stack = (layers,) if layers else ()
        self.weight_DF = nnx.Param(jax.random.normal(rngs.params(), (*stack, *shape)) * shape[0] ** -0.5)
        self.bias_F = nnx.Param(jnp.zeros((*stack, shape[1])))

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        # One large matmul is faster than a batch of them on XLA:CPU.
        y_NF = x_BFD.reshape(-1, x_BFD.shape[-1]) @ self.weight_DF[...] + self.bias_F[...]
        return y_NF.reshape(*x_BFD.shape[:-1], -1)


class LayerNorm(nnx.Module):
    """(x - mean) / deviation * scale + bias over the last axis; `layers` 0: not of a stack."""

    def __init__(self, layers: int, width: int, epsilon: float):
        self.epsilon = epsilon
        shape = (layers, width) if layers else (width,)
        self.scale_D, self.bias_D = nnx.Param(jnp.ones(shape)), nnx.Param(jnp.zeros(shape))

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        centred_BFD = x_BFD - jnp.mean(x_BFD, axis=-1, keepdims=True)
        variance_BF1 = jnp.mean(jnp.square(centred_BFD), axis=-1, keepdims=True)
        return centred_BFD * jax.lax.rsqrt(variance_BF1 + self.epsilon) * self.scale_D[...] + self.bias_D[...]
