"""The convolutions of HuBERT and wav2vec 2.0: samples to frames of 20 ms or so, each of 25 ms of sound.

Their first output is 160 times as many numbers as the samples, so they run in blocks of frames, one after another: what goes from one convolution to
the next stays in the caches, and memory hardly grows with an utterance's length.
"""

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval.units.encoders.encoder import SAMPLING_RATE, EncoderConfig
from xretrieval.units.encoders.layers import LayerNorm

# Of the samples' variance, and of the norms of the convolutions, whatever the other norms have.
_SAMPLES_EPSILON = 1e-7
_CONVOLUTION_EPSILON = 1e-5
_BLOCK = 100  # frames; the fastest of 25 to 200


@dataclasses.dataclass(frozen=True)
class FrontendConfig(EncoderConfig):
    """Numbers of the convolutions.

    Attributes:
      normalise: samples are brought to mean 0 and variance 1 over the utterance.
      group_norm: each channel of the first convolution is normalised over the utterance; else each frame of every convolution.
      conv_widths, conv_kernels, conv_strides: channels, taps and steps.
      conv_bias: they have one.
    """

    normalise: bool
    group_norm: bool
    conv_widths: tuple[int, ...]
    conv_kernels: tuple[int, ...]
    conv_strides: tuple[int, ...]
    conv_bias: bool

    @property
    def frame_rate(self) -> float:
        return SAMPLING_RATE / math.prod(self.conv_strides)

    def frames(self, samples: int) -> int:
        return max(0, self.convolved(samples))

    def convolved(self, samples: Any) -> Any:
        """As `frames`, of an int or an array of int32; below 1 where there is no frame."""
        for kernel, stride in zip(self.conv_kernels, self.conv_strides, strict=True):
            samples = (samples - kernel) // stride + 1
        return samples

    def reach(self, frames: int) -> int:
        """Samples that so many frames are made of."""
        for kernel, stride in zip(self.conv_kernels[::-1], self.conv_strides[::-1], strict=True):
            frames = (frames - 1) * stride + kernel
        return frames


def gelu(x: jax.Array) -> jax.Array:
    """x times the normal distribution function of x; by erf, which XLA:CPU computes faster than the erfc of `jax.nn.gelu`."""
    return 0.5 * x * (1.0 + jax.lax.erf(x * 0.5**0.5))


def convolve(x_BFD: jax.Array, weight_PDF: jax.Array, stride: int = 1, before: int = 0, after: int = 0, groups: int = 1) -> jax.Array:
    """Products with P frames, every `stride` frames, of x with so many zeros before and after it."""
    return jax.lax.conv_general_dilated(
        x_BFD, weight_PDF, (stride,), [(before, after)], dimension_numbers=("NWC", "WIO", "NWC"), feature_group_count=groups
    )


def normalised(samples_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
    """Samples of mean 0 and variance 1 over each utterance; zeros beyond its end."""
    valid_BT = jnp.arange(samples_BT.shape[1]) < lengths_B[:, None]
    mean_B1 = jnp.sum(samples_BT, axis=1, keepdims=True, where=valid_BT) / lengths_B[:, None]
    centred_BT = jnp.where(valid_BT, samples_BT - mean_B1, 0.0)
    variance_B1 = jnp.sum(jnp.square(centred_BT), axis=1, keepdims=True) / lengths_B[:, None]
    return centred_BT * jax.lax.rsqrt(variance_B1 + _SAMPLES_EPSILON)


def blocks(count: int, most: int) -> tuple[int, int]:
    """How many blocks `count` is divided into, and the size of each: at most `most`, and as few as that allows."""
    number = -(-count // most)
    return number, -(-count // number)


class Convolution(nnx.Module):
    """A strided convolution without padding, of a bias and a norm of frames if it has them."""

    def __init__(self, config: FrontendConfig, number: int, rngs: nnx.Rngs):
        self.stride = config.conv_strides[number]
        taps, out = config.conv_kernels[number], config.conv_widths[number]
        into = config.conv_widths[number - 1] if number else 1
        self.weight_PDF = nnx.Param(jax.random.normal(rngs.params(), (taps, into, out)) * (taps * into) ** -0.5)
        # The norm over the utterance takes a bias away.
        if config.conv_bias and (number or not config.group_norm):
            self.bias_F = nnx.Param(jnp.zeros(out))
        if not config.group_norm:
            self.norm = LayerNorm(0, out, _CONVOLUTION_EPSILON)

    def __call__(self, x_BFD: jax.Array) -> jax.Array:
        x_BFD = convolve(x_BFD, self.weight_PDF[...], self.stride)
        if hasattr(self, "bias_F"):
            x_BFD += self.bias_F[...]
        return self.norm(x_BFD) if hasattr(self, "norm") else x_BFD


class UtteranceNorm(nnx.Module):
    """(x - mean) / deviation * scale + bias over the frames of the utterance: a group norm whose groups are single channels."""

    def __init__(self, width: int):
        self.scale_D, self.bias_D = nnx.Param(jnp.ones(width)), nnx.Param(jnp.zeros(width))

    def __call__(self, x_BFD: jax.Array, mean_BD: jax.Array, variance_BD: jax.Array) -> jax.Array:
        factor_BD = jax.lax.rsqrt(variance_BD + _CONVOLUTION_EPSILON) * self.scale_D[...]
        return (x_BFD - mean_BD[:, None]) * factor_BD[:, None] + self.bias_D[...]


class Frontend(nnx.Module):
    """Samples to what the last convolution gives, float32 [B, frames(T), conv_widths[-1]]; frames beyond an utterance's end mean nothing."""

    def __init__(self, config: FrontendConfig, rngs: nnx.Rngs):
        self.config = config
        self.convolutions = nnx.List([Convolution(config, number, rngs) for number in range(len(config.conv_kernels))])
        if config.group_norm:
            self.utterance_norm = UtteranceNorm(config.conv_widths[0])

    def __call__(self, samples_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        config = self.config
        if config.normalise:
            samples_BT = normalised(samples_BT, lengths_B)
        moments = self._moments(samples_BT, lengths_B) if config.group_norm else ()
        frames = config.frames(samples_BT.shape[1])
        number, size = blocks(frames, _BLOCK)

        def block(samples_BT: jax.Array) -> jax.Array:
            x_BFD = samples_BT[:, :, None]
            for i, convolution in enumerate(self.convolutions):
                x_BFD = convolution(x_BFD)
                if config.group_norm and not i:
                    x_BFD = self.utterance_norm(x_BFD, *moments)
                x_BFD = gelu(x_BFD)
            return x_BFD

        x_KBFD = _map_pieces(block, samples_BT, number, size * math.prod(config.conv_strides), config.reach(size))
        return x_KBFD.swapaxes(0, 1).reshape(samples_BT.shape[0], number * size, -1)[:, :frames]

    def _moments(self, samples_BT: jax.Array, lengths_B: jax.Array) -> tuple[jax.Array, jax.Array]:
        """Mean and variance of what the first convolution gives, over the frames of each utterance, [B, D] each."""
        config, convolution = self.config, self.convolutions[0]
        taps, stride = config.conv_kernels[0], config.conv_strides[0]
        number, size = blocks((samples_BT.shape[1] - taps) // stride + 1, _BLOCK * math.prod(config.conv_strides[1:]))
        frames_B1 = ((lengths_B - taps) // stride + 1)[:, None]
        # Of each block, to be masked.
        ends_KB1 = frames_B1 - (np.arange(number) * size)[:, None, None]

        def moments(samples_BT: jax.Array, end_B1: jax.Array) -> tuple[jax.Array, jax.Array, jax.Array]:
            """Frames, their mean, and the sum of squared differences from it."""
            x_BFD = convolution(samples_BT[:, :, None])
            valid_BF1 = (np.arange(size) < end_B1)[:, :, None]
            count_B1 = jnp.sum(valid_BF1, axis=1)
            mean_BD = jnp.sum(x_BFD, axis=1, where=valid_BF1) / jnp.maximum(count_B1, 1)
            return count_B1, mean_BD, jnp.sum(jnp.square(x_BFD - mean_BD[:, None]), axis=1, where=valid_BF1)

        count_KB1, mean_KBD, squares_KBD = _map_pieces(moments, samples_BT, number, size * stride, (size - 1) * stride + taps, ends_KB1)
        mean_BD = jnp.sum(count_KB1 * mean_KBD, axis=0) / frames_B1
        # Squares of the whole from those of the blocks, without cancellation.
        squares_BD = jnp.sum(squares_KBD + count_KB1 * jnp.square(mean_KBD - mean_BD), axis=0)
        return mean_BD, squares_BD / frames_B1


def _map_pieces(function: Callable[..., Any], samples_BT: jax.Array, number: int, step: int, reach: int, *arrays: jax.Array) -> Any:
    """The function of each piece of the samples, `reach` of them every `step`, and of the piece's part of the arrays; a leading axis of pieces."""
    missing = (number - 1) * step + reach - samples_BT.shape[1]
    samples_BT = jnp.pad(samples_BT, ((0, 0), (0, max(0, missing))))

    def piece(inputs: tuple[jax.Array, ...]) -> Any:
        return function(jax.lax.dynamic_slice_in_dim(samples_BT, inputs[0], reach, axis=1), *inputs[1:])

    return jax.lax.map(piece, (jnp.arange(number) * step, *arrays))
