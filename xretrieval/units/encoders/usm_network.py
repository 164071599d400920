"""The conformer of the Universal Speech Model (arXiv 2303.01037) as Gemma 3n and Gemma 4 carry it for sound, 25 frames a second.

A layer is half an MLP, local attention, a light convolution and half an MLP, each added to its input, and a norm at its end (Conformer, arXiv
2005.08100); attention and MLPs are normalised on both sides, and values are clamped before norms. Attention sees the frame and a few before it, knows
distances by projected sinusoids (Transformer-XL, arXiv 1901.02860, appendix B), and caps its scores softly.

All of it is causal: what comes after an utterance's end, in a padded batch, cannot reach into it, and there are no masks for it here. Beside the
package's letters, P stands for distances or taps, U for blocks of frames, Q for the queries of a block and K for the keys that they see.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval.units.encoders.usm_frontend import Frontend, FrontendConfig

_LONGEST_TIMESCALE = 1e4


@dataclasses.dataclass(frozen=True)
class UsmConfig(FrontendConfig):
    """Numbers of the network; those of the front end in `FrontendConfig`.

    Attributes:
      layer: the tapped one; layers that are there.
      model_width: D.
      heads: of attention.
      block: Q, queries that attend at once.
      lookback: frames before its own that a query sees.
      soft_cap: of scores.
      key_scale: of keys, not of distances.
      kernel: taps of the causal convolution.
      residual_weight: of what an MLP adds.
      clamp: bound of values before norms.
      convolution_epsilon: of the norms in the light convolution.
      norm_epsilon: of all other norms of layers.
      bounded: linears of layers have bounds of what goes in and comes out.
    """

    family: ClassVar[str] = "usm"

    layer: int
    model_width: int
    heads: int
    block: int
    lookback: int
    soft_cap: float
    key_scale: float
    kernel: int
    residual_weight: float
    clamp: float
    convolution_epsilon: float
    norm_epsilon: float
    bounded: bool

    @property
    def width(self) -> int:
        return self.model_width

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        return Usm(self, rngs)


class Linear(nnx.Module):
    """x @ W in a stack of layers, x and the result held within bounds where it has some; no bias."""

    def __init__(self, layers: int, shape: tuple[int, int], bounded: bool, rngs: nnx.Rngs):
        self.bounded = bounded
        self.weight_DF = nnx.Param(jax.random.normal(rngs.params(), (layers, *shape)) * shape[0] ** -0.5)
        if bounded:
            everything_2 = jnp.tile(jnp.array([-jnp.inf, jnp.inf]), (layers, 1))
            self.input_bounds_2, self.output_bounds_2 = nnx.Param(everything_2), nnx.Param(everything_2)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        if self.bounded:
            x_BFD = jnp.clip(x_BFD, *self.input_bounds_2[...])
        # One large matmul is faster than a batch of them on XLA:CPU.
        y_NF = x_BFD.reshape(-1, x_BFD.shape[-1]) @ self.weight_DF[...]
        if self.bounded:
            y_NF = jnp.clip(y_NF, *self.output_bounds_2[...])
        return y_NF.reshape(*x_BFD.shape[:-1], -1)


class RMSNorm(nnx.Module):
    """x / rms(x) * scale over the last axis, in a stack of layers."""

    def __init__(self, config: UsmConfig, epsilon: float):
        self.epsilon = epsilon
        self.scale_D = nnx.Param(jnp.ones((config.layer, config.model_width)))

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        return x_BFD * jax.lax.rsqrt(jnp.mean(jnp.square(x_BFD), axis=-1, keepdims=True) + self.epsilon) * self.scale_D[...]


class MLP(nnx.Module):
    """silu(x W_up) W_down, with norms and clamps on both sides."""

    def __init__(self, config: UsmConfig, rngs: nnx.Rngs):
        self.clamp, width = config.clamp, config.model_width
        self.before, self.after = (RMSNorm(config, config.norm_epsilon) for _ in range(2))
        self.up = Linear(config.layer, (width, 4 * width), config.bounded, rngs)
        self.down = Linear(config.layer, (4 * width, width), config.bounded, rngs)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        x_BFD = self.before(jnp.clip(x_BFD, -self.clamp, self.clamp))
        y_BFD = self.down(jax.nn.silu(self.up(x_BFD)))
        return self.after(jnp.clip(y_BFD, -self.clamp, self.clamp))


def sinusoids(config: UsmConfig) -> np.ndarray:
    """float32 [lookback + 1, D]: sines and, in the second half, cosines of the distances, the farthest first."""
    timescales = config.model_width // 2
    rate = _LONGEST_TIMESCALE ** (-np.arange(timescales) / max(timescales - 1, 1))
    angle = np.arange(config.lookback, -1, -1)[:, None] * rate
    return np.concatenate([np.sin(angle), np.cos(angle)], axis=-1).astype(np.float32)


class LocalAttention(nnx.Module):
    """softmax(cap(q (k + distance)^T)) v over a frame and `lookback` frames before it: work and memory grow with length, not with its square."""

    def __init__(self, config: UsmConfig, rngs: nnx.Rngs):
        self.config = config
        width = config.model_width
        self.q, self.k, self.v, self.out = (Linear(config.layer, (width, width), config.bounded, rngs) for _ in range(4))
        self.distances = Linear(config.layer, (width, width), False, rngs)
        self.channel_scale_C = nnx.Param(jnp.zeros((config.layer, width // config.heads)))

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        config = self.config
        rows, frames, width = x_BFD.shape
        channels = width // config.heads
        # A channel's scale is 1 / sqrt(C) where its parameter is 0.
        scale_C = jax.nn.softplus(self.channel_scale_C[...]) * (channels**-0.5 / math.log(2.0))
        q_BFHC, k_BFHC, v_BFHC = (linear(x_BFD).reshape(rows, frames, config.heads, channels) for linear in (self.q, self.k, self.v))
        blocks = -(-frames // config.block)
        missing = blocks * config.block - frames
        q_BFHC = jnp.pad(q_BFHC * scale_C, ((0, 0), (0, missing), (0, 0), (0, 0)))
        q_BUHQC = q_BFHC.reshape(rows, blocks, config.block, config.heads, channels).transpose(0, 1, 3, 2, 4)
        keys = config.lookback + config.block
        place_UK = np.arange(blocks)[:, None] * config.block + np.arange(keys)

        def seen(x_BFHC: jax.Array) -> jax.Array:
            return jnp.pad(x_BFHC, ((0, 0), (config.lookback, missing), (0, 0), (0, 0)))[:, place_UK]

        distance_PHC = self.distances(jnp.asarray(sinusoids(config))).reshape(-1, config.heads, channels)
        scores_BUHQK = jnp.einsum("buhqc,bukhc->buhqk", q_BUHQC, seen(k_BFHC) * config.key_scale)
        scores_BUHQK += _by_place(jnp.einsum("buhqc,phc->buhqp", q_BUHQC, distance_PHC), keys)
        scores_BUHQK = config.soft_cap * jnp.tanh(scores_BUHQK / config.soft_cap)
        # A query's first key lies `lookback` before it, its last one is its own frame; none lies before the first frame.
        offset_QK = np.arange(keys) - np.arange(config.block)[:, None]
        visible_U1QK = ((offset_QK >= 0) & (offset_QK <= config.lookback))[None] & (place_UK >= config.lookback)[:, None]
        scores_BUHQK = jnp.where(visible_U1QK[:, None], scores_BUHQK, -jnp.inf)
        out_BUQHC = jnp.einsum("buhqk,bukhc->buqhc", jax.nn.softmax(scores_BUHQK, axis=-1), seen(v_BFHC))
        return self.out(out_BUQHC.reshape(rows, blocks * config.block, width)[:, :frames])


def _by_place(bias_BUHQP: jax.Array, keys: int) -> jax.Array:
    """[.., Q, K] with the p-th distance of query q at key q + p; elsewhere anything."""
    *outer, block, distances = bias_BUHQP.shape
    # Rows that are one longer than there are keys, read with rows of the keys' number, move by one a row.
    flat = jnp.pad(bias_BUHQP, [(0, 0)] * (len(outer) + 1) + [(0, keys + 1 - distances)]).reshape(*outer, block * (keys + 1))
    return flat[..., : block * keys].reshape(*outer, block, keys)


class LightConvolution(nnx.Module):
    """Norm, gated linear unit, causal depthwise convolution, clamp, norm, silu, projection."""

    def __init__(self, config: UsmConfig, rngs: nnx.Rngs):
        self.clamp, width = config.clamp, config.model_width
        self.before, self.norm = (RMSNorm(config, config.convolution_epsilon) for _ in range(2))
        self.up = Linear(config.layer, (width, 2 * width), config.bounded, rngs)
        self.weight_PD = nnx.Param(jax.random.normal(rngs.params(), (config.layer, config.kernel, width)) * config.kernel**-0.5)
        self.down = Linear(config.layer, (width, width), config.bounded, rngs)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        frames = x_BFD.shape[1]
        value_BFD, gate_BFD = jnp.split(self.up(self.before(x_BFD)), 2, axis=-1)
        weight_PD = self.weight_PD[...]
        taps = weight_PD.shape[0]
        gated_BFD = jnp.pad(value_BFD * jax.nn.sigmoid(gate_BFD), ((0, 0), (taps - 1, 0), (0, 0)))
        # A sum of shifted products is one fused loop on XLA:CPU, whose grouped convolutions are slow.
        summed_BFD = gated_BFD[:, :frames] * weight_PD[0]
        for tap in range(1, taps):
            summed_BFD += gated_BFD[:, tap : tap + frames] * weight_PD[tap]
        return self.down(jax.nn.silu(self.norm(jnp.clip(summed_BFD, -self.clamp, self.clamp))))


class Layer(nnx.Module):
    """A conformer layer."""

    def __init__(self, config: UsmConfig, rngs: nnx.Rngs):
        self.config = config
        self.mlp1, self.mlp2 = MLP(config, rngs), MLP(config, rngs)
        self.before_attention, self.after_attention, self.final_norm = (RMSNorm(config, config.norm_epsilon) for _ in range(3))
        self.attention, self.convolution = LocalAttention(config, rngs), LightConvolution(config, rngs)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        weight, clamp = self.config.residual_weight, self.config.clamp
        x_BFD += weight * self.mlp1(x_BFD)
        added_BFD = self.attention(self.before_attention(jnp.clip(x_BFD, -clamp, clamp)))
        x_BFD += self.after_attention(jnp.clip(added_BFD, -clamp, clamp))
        x_BFD += self.convolution(x_BFD)
        x_BFD += weight * self.mlp2(x_BFD)
        return self.final_norm(jnp.clip(x_BFD, -clamp, clamp))


class Usm(nnx.Module):
    """See `EncoderConfig.network`."""

    def __init__(self, config: UsmConfig, rngs: nnx.Rngs):
        self.frontend = Frontend(config, rngs)
        shape = (config.frontend_width, config.model_width)
        self.input_DF = nnx.Param(jax.random.normal(rngs.params(), shape) * shape[0] ** -0.5)
        self.layers = Layer(config, rngs) if config.layer else None

    def __call__(self, samples_BT: jax.Array, lengths_B: jax.Array, keep: bool = False) -> tuple[jax.Array, jax.Array | None]:
        x_BFW = self.frontend(samples_BT, lengths_B)
        x_BFD = (x_BFW.reshape(-1, x_BFW.shape[-1]) @ self.input_DF[...]).reshape(*x_BFW.shape[:2], -1)
        if self.layers is None:
            return x_BFD, x_BFD[None] if keep else None
        graphdef, weights = nnx.split(self.layers, nnx.Param)

        def layer(x_BFD, weights_of_layer):
            x_BFD = nnx.merge(graphdef, weights_of_layer)(x_BFD)
            return x_BFD, x_BFD if keep else None

        out_BFD, states_LBFD = jax.lax.scan(layer, x_BFD, weights)
        return out_BFD, jnp.concatenate([x_BFD[None], states_LBFD]) if keep else None
