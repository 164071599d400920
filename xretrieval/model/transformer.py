"""One decoder stack for Gemma 1 to 3, EmbeddingGemma and Qwen3: RMSNorm, rotary positions, grouped-query attention, gated MLP.

Every weight of the stack has a leading axis of layers, and `jax.lax.scan` runs them: one layer is compiled, however many there are.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval import mesh as mesh_lib
from xretrieval.model.attention import AttentionConfig, attend
from xretrieval.model.linear import Linear, narrow, widen


class Rows(NamedTuple):
    """What a layer knows of its rows beside their tokens."""

    segment_ids_RL: jax.Array
    rope: tuple[jax.Array, ...]  # cos and sin, float32 [R, L, 1, C / 2]: of global layers, then of local ones where there are some


@dataclasses.dataclass(frozen=True)
class StackConfig:
    """Sizes and kinds of a layer; see `tower.TowerConfig`, which they are taken from."""

    width: int
    heads: int
    kv_heads: int
    head_dim: int
    mlp_hidden: int
    activation: str
    norm_plus_one: bool
    norm_epsilon: float
    qk_norm: bool
    post_norms: bool
    global_every: int
    attention: AttentionConfig
    remat: bool


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, computed in float32; Gemma keeps scale - 1 (`plus_one`). `layers` 0: not of a stack."""

    def __init__(self, width: int, plus_one: bool, epsilon: float, layers: int = 0):
        self.plus_one, self.epsilon = plus_one, epsilon
        # Whole where the mesh does not divide it: it is small, and the width should not decide over the mesh.
        axis = None if width % jax.sharding.get_abstract_mesh().shape["data"] else "embed"
        shape, axes = ((layers, width), (None, axis)) if layers else ((width,), (axis,))
        self.scale_D = nnx.Param(jnp.full(shape, 0.0 if plus_one else 1.0, jnp.float32, out_sharding=mesh_lib.spec(*axes)))

    def __call__(self, x: jax.Array) -> jax.Array:
        x32 = x.astype(jnp.float32)
        scale = jax.reshard(self.scale_D[...].astype(jnp.float32), mesh_lib.spec(None))
        scale = (1.0 + scale if self.plus_one else scale).reshape((1,) * (x.ndim - 1) + (-1,))
        variance = jnp.mean(jnp.square(x32), axis=-1, keepdims=True)
        return (x32 * jax.lax.rsqrt(variance + self.epsilon) * scale).astype(x.dtype)


def rope_tables(positions_RL: jax.Array, channels: int, base: float, factor: float) -> tuple[jax.Array, jax.Array]:
    """cos and sin of rotary positions (arXiv 2104.09864), positions divided by `factor`; float32 [R, L, 1, C / 2].

    The angles are NumPy constants of the row's length (positions restart in each segment, so none is longer): inside jit XLA:CPU would compute
    them again for every element.
    """
    frequency = base ** (-np.arange(0, channels, 2) / channels)
    angle_LC = np.arange(positions_RL.shape[1])[:, None] / factor * frequency[None, :]
    spec = mesh_lib.spec("batch", None, None)

    def at(table_LC: np.ndarray) -> jax.Array:
        return jnp.asarray(table_LC.astype(np.float32)).at[positions_RL].get(out_sharding=spec)[:, :, None, :]

    return at(np.cos(angle_LC)), at(np.sin(angle_LC))


def apply_rope(x_RLHC: jax.Array, cos_RL1C: jax.Array, sin_RL1C: jax.Array) -> jax.Array:
    """Rotates in float32, in the half-split layout of the released checkpoints."""
    first, second = jnp.split(x_RLHC.astype(jnp.float32), 2, axis=-1)
    turned = [first * cos_RL1C - second * sin_RL1C, second * cos_RL1C + first * sin_RL1C]
    return jnp.concatenate(turned, axis=-1).astype(x_RLHC.dtype)


def _by_head(x_RLF: jax.Array, head_dim: int) -> jax.Array:
    """[R, L, F / C, C]; a row of one token would leave open which axis is split."""
    rows, length, features = x_RLF.shape
    return jax.lax.reshape(x_RLF, (rows, length, features // head_dim, head_dim), out_sharding=mesh_lib.spec("batch", None, "heads", None))


class Attention(nnx.Module):
    """Grouped-query attention; queries and keys may be normalised a head."""

    def __init__(self, config: StackConfig, layers: int, lora_rank: int, rngs: nnx.Rngs):
        self.config = config
        width, query, value = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
        self.q = Linear(layers, (width, query), (None, "features"), lora_rank, rngs, config.heads)
        self.k = Linear(layers, (width, value), (None, "features"), lora_rank, rngs, config.kv_heads)
        self.v = Linear(layers, (width, value), (None, "features"), lora_rank, rngs, config.kv_heads)
        self.o = Linear(layers, (query, width), ("features", None), lora_rank, rngs)
        if config.qk_norm:
            self.q_norm, self.k_norm = (RMSNorm(config.head_dim, config.norm_plus_one, config.norm_epsilon, layers) for _ in range(2))

    def __call__(self, x_RLD: jax.Array, rows: Rows, is_local: jax.Array, lora_scale: float) -> jax.Array:
        config = self.config
        q_RLHC, k_RLGC, v_RLGC = (_by_head(y_RLF, config.head_dim) for y_RLF in widen(x_RLD, (self.q, self.k, self.v), lora_scale))
        if config.qk_norm:
            q_RLHC, k_RLGC = self.q_norm(q_RLHC), self.k_norm(k_RLGC)
        cos, sin = rows.rope[:2]
        if len(rows.rope) > 2:
            cos, sin = jnp.where(is_local, rows.rope[2], cos), jnp.where(is_local, rows.rope[3], sin)
        q_RLHC, k_RLGC = apply_rope(q_RLHC, cos, sin), apply_rope(k_RLGC, cos, sin)
        out_RLHC = attend(q_RLHC, k_RLGC, v_RLGC, rows.segment_ids_RL, is_local, config.attention)
        features = config.heads * config.head_dim
        out_RLF = jax.lax.reshape(out_RLHC, (*x_RLD.shape[:2], features), out_sharding=mesh_lib.spec("batch", None, "heads"))
        return narrow(out_RLF, self.o, lora_scale)


class GatedMLP(nnx.Module):
    """act(x W_gate) * (x W_up), projected back; gelu in its tanh form (Gemma) or silu (Qwen3)."""

    def __init__(self, config: StackConfig, layers: int, lora_rank: int, rngs: nnx.Rngs):
        self.activation = config.activation
        self.gate = Linear(layers, (config.width, config.mlp_hidden), (None, "features"), lora_rank, rngs)
        self.up = Linear(layers, (config.width, config.mlp_hidden), (None, "features"), lora_rank, rngs)
        self.down = Linear(layers, (config.mlp_hidden, config.width), ("features", None), lora_rank, rngs)

    def __call__(self, x_RLD: jax.Array, lora_scale: float) -> jax.Array:
        gate_RLM, up_RLM = widen(x_RLD, (self.gate, self.up), lora_scale)
        gate_RLM = jax.nn.gelu(gate_RLM, approximate=True) if self.activation == "gelu" else jax.nn.silu(gate_RLM)
        return narrow(gate_RLM * up_RLM, self.down, lora_scale)


class Block(nnx.Module):
    """A layer: x + attention(norm(x)), then x + mlp(norm(x)); Gemma 2 and 3 also normalise what is added."""

    def __init__(self, config: StackConfig, layers: int, lora_rank: int, rngs: nnx.Rngs):
        def norm() -> RMSNorm:
            return RMSNorm(config.width, config.norm_plus_one, config.norm_epsilon, layers)

        self.post_norms = config.post_norms
        self.attention, self.mlp = Attention(config, layers, lora_rank, rngs), GatedMLP(config, layers, lora_rank, rngs)
        self.pre_attention_norm, self.pre_mlp_norm = norm(), norm()
        if config.post_norms:
            self.post_attention_norm, self.post_mlp_norm = norm(), norm()

    def __call__(self, x_RLD: jax.Array, rows: Rows, is_local: jax.Array, lora_scale: float) -> jax.Array:
        added_RLD = self.attention(self.pre_attention_norm(x_RLD), rows, is_local, lora_scale)
        x_RLD = x_RLD + (self.post_attention_norm(added_RLD) if self.post_norms else added_RLD)
        added_RLD = self.mlp(self.pre_mlp_norm(x_RLD), lora_scale)
        return x_RLD + (self.post_mlp_norm(added_RLD) if self.post_norms else added_RLD)


def run_stack(stack: Block, x_RLD: jax.Array, rows: Rows, first: int, lora_scale: float, keep: bool = False) -> tuple[jax.Array, Any]:
    """Runs layers `first`, `first` + 1, ... of a tower.

    Args:
      stack: one `Block` whose weights have a leading axis of layers.
      x_RLD: what goes in.
      rows: of x.
      first: the number of the stack's first layer in the tower: it decides which layers are local.
      lora_scale: of the adapters, alpha / rank.
      keep: also return what comes out of every layer.

    Returns:
      (x_RLD, [layers, R, L, D] or None).
    """
    config = stack.attention.config
    graphdef, weights = nnx.split(stack, nnx.Param)
    # Norms' scales are gathered here, not in every layer: they are small, but each gather takes its time over all devices.
    weights = jax.tree.map(lambda x: jax.reshard(x, mesh_lib.spec(None, None)) if x.ndim == 2 else x, weights)
    layers = jax.tree.leaves(weights)[0].shape[0]
    is_local_N = (np.arange(first, first + layers) + 1) % config.global_every != 0

    def layer(x_RLD, inputs):
        weights_of_layer, is_local = inputs
        x_RLD = nnx.merge(graphdef, weights_of_layer)(x_RLD, rows, is_local, lora_scale)
        return x_RLD, x_RLD if keep else None

    if config.remat:
        layer = jax.checkpoint(layer)
    return jax.lax.scan(layer, x_RLD, (weights, jnp.asarray(is_local_N)))
