"""HuBERT (arXiv 2106.07447) and wav2vec 2.0 (arXiv 2006.11477), one network: strided convolutions of the samples, then a transformer; 50 frames a second.

Released models differ in the norms of the convolutions (over the utterance after the first one, or over each frame after all of them), and in whether a
layer's norms come after its attention and MLP or before them ("stable", as in XLS-R, arXiv 2111.09296). Beside the package's letters, P stands for taps
of a convolution. Weights of the layers have a leading axis of layers, and `jax.lax.scan` runs them.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval.units.encoders.hubert_frontend import Frontend, FrontendConfig, blocks, convolve, gelu
from xretrieval.units.encoders.layers import LayerNorm, Linear

# Queries that attend at once: memory grows with an utterance's length, not with its square.
_QUERIES = 256


@dataclasses.dataclass(frozen=True)
class HubertConfig(FrontendConfig):
    """Numbers of the network; those of the convolutions in `FrontendConfig`.

    Attributes:
      layer: the tapped one; layers that are there.
      model_width: D.
      heads: of attention.
      mlp_width: M.
      stable: a layer's norms come before its attention and MLP, not after them.
      input_norm: a norm comes before the projection to D.
      position_kernel, position_groups: taps and groups of the convolution that tells positions.
      norm_epsilon: of every layer norm but those of the convolutions.
    """

    family: ClassVar[str] = "hubert"

    layer: int
    model_width: int
    heads: int
    mlp_width: int
    stable: bool
    input_norm: bool
    position_kernel: int
    position_groups: int
    norm_epsilon: float

    @property
    def width(self) -> int:
        return self.model_width

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        return Hubert(self, rngs)


class Positions(nnx.Module):
    """What tells a frame its place: a grouped convolution over the frames around it, and gelu."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.groups = config.position_groups
        shape = (config.position_kernel, config.model_width // self.groups, config.model_width)
        self.weight_PDF = nnx.Param(jax.random.normal(rngs.params(), shape) * (shape[0] * shape[1]) ** -0.5)
        self.bias_F = nnx.Param(jnp.zeros(config.model_width))

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        weight_PDF = self.weight_PDF[...]
        taps = weight_PDF.shape[0]
        # Of an even number of taps one more is before the frame than after it.
        y_BFD = convolve(x_BFD, weight_PDF, before=taps // 2, after=taps - 1 - taps // 2, groups=self.groups)
        return gelu(y_BFD + self.bias_F[...])


class Attention(nnx.Module):
    """softmax(q k^T / sqrt(C)) v over all frames of the utterance."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.heads = config.heads
        width = config.model_width
        self.qkv, self.out = Linear(config.layer, (width, 3 * width), rngs), Linear(config.layer, (width, width), rngs)

    def __call__(self, x_BFD: jax.Array, valid_BF: jax.Array) -> jax.Array:
        rows, frames, width = x_BFD.shape
        channels = width // self.heads
        q_BHFC, k_BHFC, v_BHFC = self.qkv(x_BFD).reshape(rows, frames, 3, self.heads, channels).transpose(2, 0, 3, 1, 4)
        k_BHCF = k_BHFC.swapaxes(2, 3)
        mask_B11F = jnp.where(valid_BF, 0.0, -jnp.inf)[:, None, None]
        number, size = blocks(frames, _QUERIES)
        q_BHFC = jnp.pad(q_BHFC * channels**-0.5, ((0, 0), (0, 0), (0, number * size - frames), (0, 0)))

        def attend(q_BHQC: jax.Array) -> jax.Array:
            scores_BHQF = q_BHQC @ k_BHCF + mask_B11F
            powers_BHQF = jnp.exp(scores_BHQF - jnp.max(scores_BHQF, axis=-1, keepdims=True))
            # Fewer numbers are divided after the sum over values than before it.
            return (powers_BHQF @ v_BHFC) / jnp.sum(powers_BHQF, axis=-1, keepdims=True)

        out_KBHQC = jax.lax.map(attend, q_BHFC.reshape(rows, self.heads, number, size, channels).transpose(2, 0, 1, 3, 4))
        out_BFD = out_KBHQC.transpose(1, 0, 3, 2, 4).reshape(rows, number * size, width)
        return self.out(out_BFD[:, :frames])


class Layer(nnx.Module):
    """Attention and MLP, each added to what goes into it; the norms come before them or after the sums."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.stable = config.stable
        self.attention_norm, self.mlp_norm = (LayerNorm(config.layer, config.model_width, config.norm_epsilon) for _ in range(2))
        self.attention = Attention(config, rngs)
        self.up = Linear(config.layer, (config.model_width, config.mlp_width), rngs)
        self.down = Linear(config.layer, (config.mlp_width, config.model_width), rngs)

    def __call__(self, x_BFD: jax.Array, valid_BF: jax.Array) -> jax.Array:
        if self.stable:
            x_BFD += self.attention(self.attention_norm(x_BFD), valid_BF)
            return x_BFD + self.down(gelu(self.up(self.mlp_norm(x_BFD))))
        x_BFD = self.attention_norm(x_BFD + self.attention(x_BFD, valid_BF))
        return self.mlp_norm(x_BFD + self.down(gelu(self.up(x_BFD))))


class Hubert(nnx.Module):
    """See `EncoderConfig.network`."""

    def __init__(self, config: HubertConfig, rngs: nnx.Rngs):
        self.config = config
        self.frontend = Frontend(config, rngs)
        if config.input_norm:
            self.input_norm = LayerNorm(0, config.conv_widths[-1], config.norm_epsilon)
        self.input = Linear(0, (config.conv_widths[-1], config.model_width), rngs)
        self.positions = Positions(config, rngs)
        if not config.stable:
            self.norm = LayerNorm(0, config.model_width, config.norm_epsilon)
        if config.layer:
            self.layers = Layer(config, rngs)

    def __call__(self, samples_BT: jax.Array, lengths_B: jax.Array, keep: bool = False) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        x_BFD = self.frontend(samples_BT, lengths_B)
        x_BFD = self.input(self.input_norm(x_BFD) if config.input_norm else x_BFD)
        valid_BF = jnp.arange(x_BFD.shape[1]) < config.convolved(lengths_B)[:, None]
        # The convolution of positions reaches beyond the end, where it must find zeros.
        x_BFD = jnp.where(valid_BF[:, :, None], x_BFD, 0.0)
        x_BFD += self.positions(x_BFD)
        if not config.stable:
            x_BFD = self.norm(x_BFD)
        if not config.layer:
            return x_BFD, x_BFD[None] if keep else None
        graphdef, weights = nnx.split(self.layers, nnx.Param)

        def layer(x_BFD, weights_of_layer):
            x_BFD = nnx.merge(graphdef, weights_of_layer)(x_BFD, valid_BF)
            return x_BFD, x_BFD if keep else None

        out_BFD, states_LBFD = jax.lax.scan(layer, x_BFD, weights)
        return out_BFD, jnp.concatenate([x_BFD[None], states_LBFD]) if keep else None
