"""The decoder block of Gemma 3 (arXiv 2503.19786): RMSNorm before and after, QK norm, RoPE, GeGLU."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval import mesh as mesh_lib

NORM_EPSILON = 1e-6


def _weight(rngs: nnx.Rngs, shape: tuple[int, int], axes: tuple[str | None, str | None]) -> nnx.Param:
    """A matrix with variance 1 / fan-in, created already sharded."""
    return nnx.Param(jax.random.normal(rngs.params(), shape, out_sharding=mesh_lib.spec(*axes)) * shape[0] ** -0.5)


def project(x_RLD: jax.Array, weight_DF: jax.Array) -> jax.Array:
    """x @ w with rows and tokens flattened: XLA:CPU runs one large matmul 1.5 times as fast as a batch of small ones.

    The weight is gathered over `data` just before its use (fully sharded parameters); its gradient is reduce-scattered back.
    """
    rows, length, width = x_RLD.shape
    weight_DF = jax.reshard(weight_DF, jax.sharding.PartitionSpec(None, None))
    x_ND = jax.lax.reshape(x_RLD, (rows * length, width), out_sharding=mesh_lib.spec("batch", None))
    y_NF = x_ND @ weight_DF
    return jax.lax.reshape(y_NF, (rows, length, weight_DF.shape[1]), out_sharding=mesh_lib.spec("batch", None, None))


class RMSNorm(nnx.Module):
    """x / rms(x) * (1 + scale), computed in float32 over the last axis."""

    def __init__(self, width: int):
        self.scale_D = nnx.Param(jnp.zeros((width,)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        scale = 1.0 + self.scale_D[...]
        return (x32 * jax.lax.rsqrt(variance + NORM_EPSILON) * scale.reshape((1,) * (x.ndim - 1) + (-1,))).astype(x.dtype)


@functools.cache
def _rope_tables(max_positions: int, channels: int, base: float) -> tuple[np.ndarray, np.ndarray]:
    """cos and sin, float32 [positions, channels / 2]; NumPy constants, because inside jit XLA:CPU recomputes them for every element."""
    frequency = base ** (-np.arange(0, channels, 2) / channels)
    angle = np.arange(max_positions)[:, None] * frequency[None, :]
    return np.cos(angle).astype(np.float32), np.sin(angle).astype(np.float32)


def apply_rope(x_RLHC: jax.Array, positions_RL: jax.Array, base: float, max_positions: int) -> jax.Array:
    """Rotary positions (arXiv 2104.09864) in the half-split layout of the released checkpoints."""
    cos, sin = _rope_tables(max_positions, x_RLHC.shape[-1], base)
    replicated = mesh_lib.spec("batch", None, None)
    cos_RL1C = jnp.asarray(cos).at[positions_RL].get(out_sharding=replicated)[:, :, None, :]
    sin_RL1C = jnp.asarray(sin).at[positions_RL].get(out_sharding=replicated)[:, :, None, :]
    first, second = jnp.split(x_RLHC, 2, axis=-1)
    return jnp.concatenate([first * cos_RL1C - second * sin_RL1C, second * cos_RL1C + first * sin_RL1C], axis=-1)


def attention_mask(segment_ids_RL: jax.Array, positions_RL: jax.Array, causal: bool) -> jax.Array:
    """bool [R, L, L]: a token sees its own segment, and only what is not after it where `causal`. Segment 0 is padding."""
    mask_RLL = (segment_ids_RL[:, :, None] == segment_ids_RL[:, None, :]) & (segment_ids_RL > 0)[:, None, :]
    if causal:
        mask_RLL &= positions_RL[:, :, None] >= positions_RL[:, None, :]
    return mask_RLL


class Attention(nnx.Module):
    """Grouped-query attention with QK norm."""

    def __init__(self, width: int, heads: int, kv_heads: int, head_dim: int, rope_base: float, max_positions: int, rngs: nnx.Rngs):
        self.heads, self.kv_heads, self.head_dim = heads, kv_heads, head_dim
        self.rope_base, self.max_positions = rope_base, max_positions
        self.q_DF = _weight(rngs, (width, heads * head_dim), ("embed", "heads"))
        self.k_DF = _weight(rngs, (width, kv_heads * head_dim), ("embed", "heads"))
        self.v_DF = _weight(rngs, (width, kv_heads * head_dim), ("embed", "heads"))
        self.o_FD = _weight(rngs, (heads * head_dim, width), ("heads", "embed"))
        self.q_norm, self.k_norm = RMSNorm(head_dim), RMSNorm(head_dim)

    def __call__(self, x_RLD: jax.Array, mask_RLL: jax.Array, positions_RL: jax.Array) -> jax.Array:
        rows, length, _ = x_RLD.shape
        rope = functools.partial(apply_rope, positions_RL=positions_RL, base=self.rope_base, max_positions=self.max_positions)
        q_RLHC = project(x_RLD, self.q_DF[...]).reshape(rows, length, self.heads, self.head_dim)
        k_RLGC = project(x_RLD, self.k_DF[...]).reshape(rows, length, self.kv_heads, self.head_dim)
        v_RLGC = project(x_RLD, self.v_DF[...]).reshape(rows, length, self.kv_heads, self.head_dim)
        q_RLHC, k_RLGC = rope(self.q_norm(q_RLHC)), rope(self.k_norm(k_RLGC))
        q_RLGHC = q_RLHC.reshape(rows, length, self.kv_heads, self.heads // self.kv_heads, self.head_dim)
        logits_RGHLL = jnp.einsum("rlghc,rmgc->rghlm", q_RLGHC, k_RLGC).astype(jnp.float32) * self.head_dim**-0.5
        logits_RGHLL = jnp.where(mask_RLL[:, None, None], logits_RGHLL, jnp.finfo(jnp.float32).min)
        weights_RGHLL = jax.nn.softmax(logits_RGHLL, axis=-1).astype(x_RLD.dtype)
        out_RLGHC = jnp.einsum("rghlm,rmgc->rlghc", weights_RGHLL, v_RLGC)
        return project(out_RLGHC.reshape(rows, length, self.heads * self.head_dim), self.o_FD[...])


class GeGLU(nnx.Module):
    """gelu(x W_gate) * (x W_up), projected back; gelu in the tanh form of Gemma."""

    def __init__(self, width: int, hidden: int, rngs: nnx.Rngs):
        self.gate_DM = _weight(rngs, (width, hidden), ("embed", "mlp"))
        self.up_DM = _weight(rngs, (width, hidden), ("embed", "mlp"))
        self.down_MD = _weight(rngs, (hidden, width), ("mlp", "embed"))

    def __call__(self, x_RLD: jax.Array) -> jax.Array:
        hidden_RLM = jax.nn.gelu(project(x_RLD, self.gate_DM[...]), approximate=True) * project(x_RLD, self.up_DM[...])
        return project(hidden_RLM, self.down_MD[...])


class Block(nnx.Module):
    """One decoder layer: x + norm(attention(norm(x))), then x + norm(mlp(norm(x)))."""

    def __init__(self, width: int, hidden: int, attention: Attention, rngs: nnx.Rngs):
        self.attention, self.mlp = attention, GeGLU(width, hidden, rngs)
        self.pre_attention_norm, self.post_attention_norm = RMSNorm(width), RMSNorm(width)
        self.pre_mlp_norm, self.post_mlp_norm = RMSNorm(width), RMSNorm(width)

    def __call__(self, x_RLD: jax.Array, mask_RLL: jax.Array, positions_RL: jax.Array) -> jax.Array:
        x_RLD = x_RLD + self.post_attention_norm(self.attention(self.pre_attention_norm(x_RLD), mask_RLL, positions_RL))
        return x_RLD + self.post_mlp_norm(self.mlp(self.pre_mlp_norm(x_RLD)))
