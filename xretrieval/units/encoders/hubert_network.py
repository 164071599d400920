"""HuBERT (arXiv 2106.07447) and wav2vec 2.0 (arXiv 2006.11477), one network: strided convolutions of the samples, then a transformer; 50 frames a second.

Released models differ in the norms of the convolutions (over the utterance after the first one, or over each frame after all of them), and in whether a
layer's norms come after its attention and MLP or before them ("stable", as in XLS-R, arXiv 2111.09296). Beside the package's letters, P stands for taps
of a convolution. Weights of the layers have a leading axis of layers, and `jax.lax.scan` runs them.
"""

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from xretrieval.units.encoders.encoder import SAMPLING_RATE, EncoderConfig
from xretrieval.units.encoders.layers import LayerNorm, Linear

# Of the samples' variance, and of the norms of the convolutions, whatever the other norms have.
_SAMPLES_EPSILON = 1e-7
_CONVOLUTION_EPSILON = 1e-5


@dataclasses.dataclass(frozen=True)
class HubertConfig(EncoderConfig):
    """Numbers of the network.

    Attributes:
      layer: the tapped one; layers that are there.
      model_width: D.
      heads: of attention.
      mlp_width: M.
      stable: a layer's norms come before its attention and MLP, not after them.
      normalise: samples are brought to mean 0 and variance 1 over the utterance.
      group_norm: each channel of the first convolution is normalised over the utterance; else each frame of every convolution.
      conv_widths, conv_kernels, conv_strides: channels, taps and steps of the convolutions.
      conv_bias: they have one.
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
    normalise: bool
    group_norm: bool
    conv_widths: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_bias: bool
    input_norm: bool
    position_kernel: int
    position_groups: int
    norm_epsilon: float

    @property
    def frame_rate(self) -> float:
        return SAMPLING_RATE / math.prod(self.conv_strides)

    @property
    def width(self) -> int:
        return self.model_width

    def frames(self, samples: int) -> int:
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = max(0, (samples - kernel) // stride + 1)
        return samples

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        return Hubert(self, rngs)


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x; by erf, which XLA:CPU computes faster than the erfc of `jax.nn.gelu`."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def normalised(samples_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Samples of mean 0 and variance 1 over each utterance; zeros beyond its end."""
    valid_BT = jnp.arange(samples_BT.shape[1]) < lengths_B[:, None]
    mean_B1 = jnp.sum(samples_BT, axis=1, keepdims=True, where=valid_BT) / lengths_B[:, None]
    centred_BT = jnp.where(valid_BT, samples_BT - mean_B1, 0.0)
    variance_B1 = jnp.sum(jnp.square(centred_BT), axis=1, keepdims=True) / lengths_B[:, None]
    return centred_BT * jax.lax.rsqrt(variance_B1 + _SAMPLES_EPSILON)


class UtteranceNorm(nnx.Module):
    """A group norm whose groups are single channels: each is normalised over the frames of its utterance."""

    def __init__(self, width: int):
        self.scale_D, self.bias_D = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x_BFD: jax.Array, frames_B: jax.Array) -> jax.Array:
        count_B11 = frames_B[:, None, None]
        valid_BF1 = jnp.arange(x_BFD.shape[1])[:, None] < count_B11
        mean_B1D = jnp.sum(x_BFD, axis=1, keepdims=True, where=valid_BF1) / count_B11
        centred_BFD = x_BFD - mean_B1D
        variance_B1D = jnp.sum(jnp.square(centred_BFD), axis=1, keepdims=True, where=valid_BF1) / count_B11
        return centred_BFD * (jax.lax.rsqrt(variance_B1D + _CONVOLUTION_EPSILON) * self.scale_D[...]) + self.bias_D[...]


class Convolution(nnx.Module):
    """A strided convolution without padding, its norm if it has one, and gelu."""

    def __init__(self, config: HubertConfig, number: int, rngs: nnx.Rngs):
        self.stride = config.conv_strides[number]
        taps, out = config.conv_kernels[number], config.conv_widths[number]
        into = config.conv_widths[number - 1] if number else 1
        self.weight_PDF = nnx.Param(jax.random.normal(rngs.params(), (taps, into, out)) * (taps * into) ** -0.5)
        if config.conv_bias:
            self.bias_F = nnx.Param(jnp.zeros(out))
        if not config.group_norm:
            self.frame_norm = LayerNorm(0, out, _CONVOLUTION_EPSILON)
        elif not number:
            self.utterance_norm = UtteranceNorm(out)

    def __call__(self, x_BFD: jax.Array, frames_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Also the frames that come out of each utterance, of the `frames_B` that went in."""
        weight_PDF = self.weight_PDF[...]
        frames_B = (frames_B - weight_PDF.shape[0]) // self.stride + 1
        x_BFD = _convolve(x_BFD, weight_PDF, self.stride, "VALID")
        if hasattr(self, "bias_F"):
            x_BFD += self.bias_F[...]
        if hasattr(self, "frame_norm"):
            x_BFD = self.frame_norm(x_BFD)
        if hasattr(self, "utterance_norm"):
            x_BFD = self.utterance_norm(x_BFD, frames_B)
        return gelu(x_BFD), frames_B


def _convolve(x_BFD: jax.Array, weight_PDF: jax.Array, stride: int, padding: str | list[tuple[int, int]], groups: int = 1) -> jax.Array:
    layout = ("NWC", "WIO", "NWC")
    return jax.lax.conv_general_dilated(x_BFD, weight_PDF, (stride,), padding, dimension_numbers=layout, feature_group_count=groups)


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
        padding = [(taps // 2, taps - 1 - taps // 2)]
        return gelu(_convolve(x_BFD, weight_PDF, 1, padding, self.groups) + self.bias_F[...])


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
        scores_BHQF = (q_BHFC * channels**-0.5) @ k_BHFC.swapaxes(2, 3)
        weights_BHQF = jax.nn.softmax(jnp.where(valid_BF[:, None, None], scores_BHQF, -jnp.inf), axis=-1)
        return self.out((weights_BHQF @ v_BHFC).swapaxes(1, 2).reshape(rows, frames, width))


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
        self.convolutions = nnx.List([Convolution(config, number, rngs) for number in range(len(config.conv_kernels))])
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
        if config.normalise:
            samples_BT = normalised(samples_BT, lengths_B)
        x_BFD, frames_B = samples_BT[:, :, None], lengths_B
        for convolution in self.convolutions:
            x_BFD, frames_B = convolution(x_BFD, frames_B)
        x_BFD = self.input(self.input_norm(x_BFD) if config.input_norm else x_BFD)
        valid_BF = jnp.arange(x_BFD.shape[1]) < frames_B[:, None]
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
