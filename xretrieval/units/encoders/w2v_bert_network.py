"""w2v-BERT 2.0 (arXiv 2312.05187, section 3.2.1): conformer layers over stacked log-mel filter banks, 50 frames a second.

A layer is half an MLP, attention, a causal convolution and half an MLP, each of the normalised input and added to it, and a norm at its end
(Conformer, arXiv 2005.08100). Attention knows positions by a learnt vector for each clamped distance (arXiv 1803.02155). Beside the package's letters,
P stands for distances, or for taps of a convolution. Weights of the layers have a leading axis of layers, and `jax.lax.scan` runs them.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval.units.encoders.encoder import EncoderConfig
from xretrieval.units.encoders.fbank import HOP, WINDOW, fbank, windows
from xretrieval.units.encoders.layers import LayerNorm, Linear

MEL_BINS = 80
STACK = 2  # windows of a frame
# Queries that attend at once: their scores stay in the caches, and memory grows with an utterance's length, not with its square.
_QUERIES = 128


@dataclasses.dataclass(frozen=True)
class W2vBertConfig(EncoderConfig):
    """Numbers of the network.

    Attributes:
      layer: the tapped one; layers that are there.
      model_width: D.
      heads: of attention.
      mlp_width: M.
      kernel: taps of the causal convolution.
      left, right: distances to earlier and to later frames are clamped to these.
      norm_epsilon: of every layer norm.
    """

    family: ClassVar[str] = "w2v_bert"

    layer: int
    model_width: int
    heads: int
    mlp_width: int
    kernel: int
    left: int
    right: int
    norm_epsilon: float

    @property
    def frame_rate(self) -> float:
        return 16_000 / (HOP * STACK)

    @property
    def width(self) -> int:
        return self.model_width

    def frames(self, samples: int) -> int:
        return windows(samples) // STACK

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        return W2vBert(self, rngs)


def stacked_fbank(samples_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """What the network takes: filter banks normalised over the utterance bin by bin, two windows a frame.

    Args:
      samples_BT: float32, padded.
      lengths_B: int32, samples of each.

    Returns:
      float32 [B, F, 160]. Of an odd number of windows the last one counts in the statistics and is in no frame: the released extractor pads it to a frame
      that it masks. Frames beyond an utterance's end mean nothing.
    """
    log_mel_BFW = fbank(samples_BT, MEL_BINS)
    rows, count, bins = log_mel_BFW.shape
    windows_B11 = ((lengths_B - WINDOW) // HOP + 1)[:, None, None]
    valid_BF1 = jnp.arange(count)[:, None] < windows_B11
    mean_B1W = jnp.sum(jnp.where(valid_BF1, log_mel_BFW, 0.0), axis=1, keepdims=True) / windows_B11
    centred_BFW = jnp.where(valid_BF1, log_mel_BFW - mean_B1W, 0.0)
    variance_B1W = jnp.sum(jnp.square(centred_BFW), axis=1, keepdims=True) / (windows_B11 - 1)
    normal_BFW = centred_BFW * jax.lax.rsqrt(variance_B1W + 1e-7)
    return normal_BFW[:, : count // STACK * STACK].reshape(rows, count // STACK, STACK * bins)


class MLP(nnx.Module):
    """silu(x W_up) W_down."""

    def __init__(self, config: W2vBertConfig, rngs: nnx.Rngs):
        self.up = Linear(config.layer, (config.model_width, config.mlp_width), rngs)
        self.down = Linear(config.layer, (config.mlp_width, config.model_width), rngs)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        return self.down(jax.nn.silu(self.up(x_BFD)))


class Attention(nnx.Module):
    """softmax(q (k + distance)^T / sqrt(C)) v over all frames of the utterance."""

    def __init__(self, config: W2vBertConfig, rngs: nnx.Rngs):
        self.config = config
        width = config.model_width
        self.q, self.k, self.v, self.out = (Linear(config.layer, (width, width), rngs) for _ in range(4))
        shape = (config.layer, config.left + config.right + 1, width // config.heads)
        self.distances_PC = nnx.Param(jax.random.normal(rngs.params(), shape))

    def __call__(self, x_BFD: jax.Array, valid_BF: jax.Array) -> jax.Array:
        config = self.config
        rows, frames, width = x_BFD.shape
        channels = width // config.heads
        q_BFHC, k_BFHC, v_BFHC = (linear(x_BFD).reshape(rows, frames, config.heads, channels) for linear in (self.q, self.k, self.v))
        k_BHCF, v_BHFC = k_BFHC.transpose(0, 2, 3, 1), v_BFHC.transpose(0, 2, 1, 3)
        size = min(_QUERIES, frames)
        blocks = -(-frames // size)
        q_BFHC = jnp.pad(q_BFHC * channels**-0.5, ((0, 0), (0, blocks * size - frames), (0, 0), (0, 0)))
        # [blocks, B, H, queries, C]
        q_blocks = q_BFHC.reshape(rows, blocks, size, config.heads, channels).transpose(1, 0, 3, 2, 4)

        def attend(inputs):
            q_BHQC, first = inputs
            distance_QF = jnp.arange(frames) - (first + jnp.arange(size))[:, None]
            index_QF = jnp.clip(distance_QF, -config.left, config.right) + config.left
            by_distance_BHQP = q_BHQC @ self.distances_PC[...].T
            index_BHQF = jnp.broadcast_to(index_QF, (*by_distance_BHQP.shape[:2], size, frames))
            bias_BHQF = jnp.take_along_axis(by_distance_BHQP, index_BHQF, axis=-1, mode="promise_in_bounds")
            scores_BHQF = jnp.where(valid_BF[:, None, None], q_BHQC @ k_BHCF + bias_BHQF, -jnp.inf)
            return jax.nn.softmax(scores_BHQF, axis=-1) @ v_BHFC

        out_blocks = jax.lax.map(attend, (q_blocks, jnp.arange(blocks) * size))
        out_BFD = out_blocks.transpose(1, 0, 3, 2, 4).reshape(rows, blocks * size, width)
        return self.out(out_BFD[:, :frames])


class Convolution(nnx.Module):
    """Gated linear unit, causal depthwise convolution, norm, silu, projection: what is after an utterance's end cannot reach into it."""

    def __init__(self, config: W2vBertConfig, rngs: nnx.Rngs):
        width = config.model_width

        def weight(into: int, out: int) -> nnx.Param:
            return nnx.Param(jax.random.normal(rngs.params(), (config.layer, into, out)) * into**-0.5)

        self.up_DF, self.taps_PD, self.down_DF = weight(width, 2 * width), weight(config.kernel, width), weight(width, width)
        self.norm = LayerNorm(config.layer, width, config.norm_epsilon)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        rows, frames, width = x_BFD.shape
        value_ND, gate_ND = jnp.split(x_BFD.reshape(-1, width) @ self.up_DF[...], 2, axis=-1)
        gated_BFD = (value_ND * jax.nn.sigmoid(gate_ND)).reshape(rows, frames, width)
        taps_PD = self.taps_PD[...]
        count = taps_PD.shape[0]
        gated_BFD = jnp.pad(gated_BFD, ((0, 0), (count - 1, 0), (0, 0)))
        # A sum of shifted products is one fused loop on XLA:CPU, whose grouped convolutions are slow.
        summed_BFD = gated_BFD[:, :frames] * taps_PD[0]
        for tap in range(1, count):
            summed_BFD += gated_BFD[:, tap : tap + frames] * taps_PD[tap]
        y_ND = jax.nn.silu(self.norm(summed_BFD)).reshape(-1, width) @ self.down_DF[...]
        return y_ND.reshape(rows, frames, width)


class Layer(nnx.Module):
    """A conformer layer."""

    def __init__(self, config: W2vBertConfig, rngs: nnx.Rngs):
        def norm() -> LayerNorm:
            return LayerNorm(config.layer, config.model_width, config.norm_epsilon)

        self.mlp1_norm, self.attention_norm, self.convolution_norm, self.mlp2_norm, self.final_norm = (norm() for _ in range(5))
        self.mlp1, self.mlp2 = MLP(config, rngs), MLP(config, rngs)
        self.attention, self.convolution = Attention(config, rngs), Convolution(config, rngs)

    def __call__(self, x_BFD: jax.Array, valid_BF: jax.Array) -> jax.Array:
        x_BFD += 0.5 * self.mlp1(self.mlp1_norm(x_BFD))
        x_BFD += self.attention(self.attention_norm(x_BFD), valid_BF)
        x_BFD += self.convolution(self.convolution_norm(x_BFD))
        x_BFD += 0.5 * self.mlp2(self.mlp2_norm(x_BFD))
        return self.final_norm(x_BFD)


class W2vBert(nnx.Module):
    """See `EncoderConfig.network`."""

    def __init__(self, config: W2vBertConfig, rngs: nnx.Rngs):
        self.config = config
        self.input_norm = LayerNorm(0, STACK * MEL_BINS, config.norm_epsilon)
        self.input = Linear(0, (STACK * MEL_BINS, config.model_width), rngs)
        if config.layer:
            self.layers = Layer(config, rngs)

    def __call__(self, samples_BT: jax.Array, lengths_B: jax.Array, keep: bool = False) -> tuple[jax.Array, jax.Array | None]:
        x_BFD = self.input(self.input_norm(stacked_fbank(samples_BT, lengths_B)))
        if not self.config.layer:
            return x_BFD, x_BFD[None] if keep else None
        frames_B1 = (((lengths_B - WINDOW) // HOP + 1) // STACK)[:, None]
        valid_BF = jnp.arange(x_BFD.shape[1]) < frames_B1
        graphdef, weights = nnx.split(self.layers, nnx.Param)

        def layer(x_BFD, weights_of_layer):
            x_BFD = nnx.merge(graphdef, weights_of_layer)(x_BFD, valid_BF)
            return x_BFD, x_BFD if keep else None

        out_BFD, states_LBFD = jax.lax.scan(layer, x_BFD, weights)
        return out_BFD, jnp.concatenate([x_BFD[None], states_LBFD]) if keep else None
