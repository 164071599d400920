"""From hidden states to embeddings: one vector a segment, dense heads, unit norm; all in float32."""

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval import mesh as mesh_lib


class DenseHead(nnx.Module):
    """x W in float32."""

    def __init__(self, fan_in: int, fan_out: int, rngs: nnx.Rngs):
        kernel = jax.random.normal(rngs.params(), (fan_in, fan_out), out_sharding=mesh_lib.spec("embed", None))
        self.kernel_DE = nnx.Param(kernel * fan_in**-0.5)

    def __call__(self, x_RSD: jax.Array) -> jax.Array:
        kernel_DE = jax.reshard(self.kernel_DE[...].astype(jnp.float32), jax.sharding.PartitionSpec(None, None))
        return jnp.matmul(x_RSD, kernel_DE, precision="highest")


def _members(segment_ids_RL: jax.Array, num_segments: int) -> jax.Array:
    return segment_ids_RL[:, None, :] == jnp.arange(1, num_segments + 1, dtype=jnp.int32)[None, :, None]


def mean_pool(x_RLD: jax.Array, segment_ids_RL: jax.Array, num_segments: int) -> jax.Array:
    """Mean over the tokens of each segment, float32 [R, S, D]."""
    member_RSL = _members(segment_ids_RL, num_segments).astype(jnp.float32)
    sums_RSD = jnp.einsum("rsl,rld->rsd", member_RSL, x_RLD.astype(jnp.float32), precision="highest")
    return sums_RSD / jnp.maximum(jnp.sum(member_RSL, axis=-1), 1.0)[..., None]


def last_pool(x_RLD: jax.Array, segment_ids_RL: jax.Array, num_segments: int) -> jax.Array:
    """The last token of each segment, float32 [R, S, D]; zeros where a row lacks the segment."""
    ends_RL = segment_ids_RL != jnp.pad(segment_ids_RL[:, 1:], ((0, 0), (0, 1)))
    last_RSL = (_members(segment_ids_RL, num_segments) & ends_RL[:, None, :]).astype(jnp.float32)
    return jnp.einsum("rsl,rld->rsd", last_RSL, x_RLD.astype(jnp.float32), precision="highest")


def unit_norm(x: jax.Array) -> jax.Array:
    """x / |x| over the last axis; zeros stay zeros, with a finite gradient."""
    return x * jax.lax.rsqrt(jnp.maximum(jnp.sum(jnp.square(x), axis=-1, keepdims=True), 1e-12))
