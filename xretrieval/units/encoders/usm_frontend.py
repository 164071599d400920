"""What Gemma's audio towers make of sound before their conformer: log-mel windows, 100 a second, and two convolutions of stride 2 over them.

Gemma 3n and Gemma 4 differ in numbers alone: `FrontendConfig` holds them. Beside the package's letters, N stands for mel windows and P for the taps
of a convolution.
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval.units.encoders.encoder import SAMPLING_RATE, EncoderConfig

_CONVOLUTIONS = 2
STRIDE = 2
TAPS = 3


@dataclasses.dataclass(frozen=True)
class FrontendConfig(EncoderConfig):
    """Numbers of the front end.

    Attributes:
      window, hop, fft: samples of a window, from one to the next, and of its Fourier transform.
      lead: samples of silence before the sound.
      mel_bins: W.
      lowest_hertz, highest_hertz: ends of the mel filters.
      preemphasis: share of the sample before that each one loses.
      scale: of the samples.
      floor: of a filter's magnitude: the least one, or what is added to each where `floor_added`.
      mean, deviation: of every bin, taken from it and divided by; none where it is left as it is.
      channels: of the two convolutions.
      frames_before: zeros before the first mel window (and before the first frame of the second convolution); TAPS - 1 less these come after the last.
      cumulative_norm: statistics over all bins, channels and frames so far (Gemma 3n), or over the channels of each bin and frame (Gemma 4).
      frontend_epsilon: of these norms.
    """

    window: int
    hop: int
    fft: int
    lead: int
    mel_bins: int
    lowest_hertz: float
    highest_hertz: float
    preemphasis: float
    scale: float
    floor: float
    floor_added: bool
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    channels: tuple[int, ...]
    frames_before: int
    cumulative_norm: bool
    frontend_epsilon: float

    @property
    def frame_rate(self) -> float:
        return SAMPLING_RATE / (self.hop * STRIDE**_CONVOLUTIONS)

    @property
    def frontend_width(self) -> int:
        """Values of a frame that the convolutions give."""
        return strided(self.mel_bins) * self.channels[-1]

    def windows(self, samples):
        """Mel windows of so many samples (a number or an array); the released extractors want one sample more than a window."""
        return (samples + self.lead - self.window - 1) // self.hop + 1

    def frames(self, samples: int) -> int:
        return strided(max(0, self.windows(samples)))


def strided(count):
    """What the two convolutions leave of so many windows or bins."""
    for _ in range(_CONVOLUTIONS):
        count = -(-count // STRIDE)
    return count


def mel_filters(config: FrontendConfig) -> np.ndarray:
    """float64 [fft // 2 + 1, W]: triangles of unit peak, linear in Hz, between edges that are even on the mel scale 2595 log10(1 + f / 700)."""
    lowest, highest = (2595.0 * np.log10(1.0 + hertz / 700.0) for hertz in (config.lowest_hertz, config.highest_hertz))
    edges = 700.0 * (10.0 ** (np.linspace(lowest, highest, config.mel_bins + 2) / 2595.0) - 1.0)
    at = np.arange(config.fft // 2 + 1)[:, None] * SAMPLING_RATE / config.fft
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def spectrum_matrix(config: FrontendConfig) -> np.ndarray:
    """A window's samples to the real, then the imaginary parts of its spectrum: float64 [window, 2 * (fft // 2 + 1)].

    The samples are scaled, pre-emphasised in each window alone and weighed by Hann's window. That is zero for a window's first sample: what would come
    before it does not count.
    """
    place = np.arange(config.window)[:, None]
    angle = 2.0 * np.pi / config.fft * place * np.arange(config.fft // 2 + 1)
    hann = 0.5 - 0.5 * np.cos(2.0 * np.pi * place / config.window)
    spectrum = config.scale * hann * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)
    spectrum[:-1] -= config.preemphasis * spectrum[1:]
    return spectrum


def log_mel(samples_BT: jax.Array, config: FrontendConfig) -> jax.Array:
    """Natural logarithms of the filters' magnitudes.

    Computed in float64 up to the magnitudes: in float32, roundings of the loud bins lie above what is in the quiet ones, in the upper half of a telephone
    recording for one, and each library and device rounds in its own way. By a matmul, because TPUs have no transform of float64.

    Args:
      samples_BT: float32, 16 kHz, full scale 1.
      config: its numbers.

    Returns:
      float32 [B, N, W], N = config.windows(T); a window that reaches into an utterance's padding has its share of zeros.
    """
    rows, samples = samples_BT.shape
    count = config.windows(samples)
    # Windows are slices of hops beside one another: no gather.
    reach = -(-config.window // config.hop)
    wanted = (count + reach - 1) * config.hop
    padded_BT = jnp.pad(samples_BT, ((0, 0), (config.lead, max(0, wanted - samples - config.lead))))[:, :wanted]
    hops_BNT = padded_BT.reshape(rows, count + reach - 1, config.hop)
    x_BNT = jnp.concatenate([hops_BNT[:, i : i + count] for i in range(reach)], axis=-1)[..., : config.window]
    with jax.enable_x64(True):
        x_NT = x_BNT.reshape(rows * count, config.window).astype(jnp.float64)
        parts = jnp.square(x_NT @ spectrum_matrix(config))
        magnitude = jnp.sqrt(parts[:, : config.fft // 2 + 1] + parts[:, config.fft // 2 + 1 :]).astype(jnp.float32)
    mel_BNW = (magnitude @ mel_filters(config).astype(np.float32)).reshape(rows, count, config.mel_bins)
    x_BNW = jnp.log(mel_BNW + config.floor if config.floor_added else jnp.maximum(mel_BNW, config.floor))
    if config.mean:
        x_BNW = x_BNW - np.array(config.mean, np.float32)
    if config.deviation:
        x_BNW = x_BNW / np.array(config.deviation, np.float32)
    return x_BNW


class FrontendNorm(nnx.Module):
    """Norm of [B, N, W, C] with a scale a channel and no bias; see `FrontendConfig`.

    The cumulative one is USM's in Gemma 3n's form: the variance at a frame is the mean, over the frames so far, of squared differences from the mean
    up to each of them.
    """

    def __init__(self, channels: int, cumulative: bool, epsilon: float):
        self.cumulative, self.epsilon = cumulative, epsilon
        self.scale_C = nnx.Param(jnp.ones(channels))

    def _mean(self, x_BNWC: jax.Array) -> jax.Array:
        if not self.cumulative:
            return jnp.mean(x_BNWC, axis=-1, keepdims=True)
        so_far_N111 = np.arange(1, x_BNWC.shape[1] + 1, dtype=np.float32)[:, None, None]
        return jnp.cumsum(jnp.mean(x_BNWC, axis=(2, 3), keepdims=True), axis=1) / so_far_N111

    def __call__(self, x_BNWC: jax.Array) -> jax.Array:
        centred_BNWC = x_BNWC - self._mean(x_BNWC)
        variance = self._mean(jnp.square(centred_BNWC))
        return centred_BNWC * jax.lax.rsqrt(variance + self.epsilon) * self.scale_C[...]


class Convolution(nnx.Module):
    """A convolution of 3 × 3 taps, windows by bins, with stride 2; norm; ReLU."""

    def __init__(self, config: FrontendConfig, channels_in: int, channels_out: int, rngs: nnx.Rngs):
        self.before = config.frames_before
        shape = (TAPS, TAPS, channels_in, channels_out)
        self.weight_PPCC = nnx.Param(jax.random.normal(rngs.params(), shape) * (TAPS * TAPS * channels_in) ** -0.5)
        self.norm = FrontendNorm(channels_out, config.cumulative_norm, config.frontend_epsilon)

    def __call__(self, x_BNWC: jax.Array) -> jax.Array:
        padding = ((self.before, TAPS - 1 - self.before), (1, 1))
        y_BNWC = jax.lax.conv_general_dilated(
            x_BNWC, self.weight_PPCC[...], (STRIDE, STRIDE), padding, dimension_numbers=("NHWC", "HWIO", "NHWC")
        )
        return jax.nn.relu(self.norm(y_BNWC))


class Frontend(nnx.Module):
    """Samples to what the projection before the conformer takes."""

    def __init__(self, config: FrontendConfig, rngs: nnx.Rngs):
        self.config = config
        first, second = config.channels
        self.convolution1, self.convolution2 = Convolution(config, 1, first, rngs), Convolution(config, first, second, rngs)

    def __call__(self, samples_BT: jax.Array, lengths_B: jax.Array) -> jax.Array:
        """float32 [B, F, frontend_width], in the order (bin, channel); frames beyond an utterance's end mean nothing."""
        x_BNWC = log_mel(samples_BT, self.config)[..., None]
        count_B = self.config.windows(lengths_B)
        for convolution in (self.convolution1, self.convolution2):
            # Where an utterance alone is padded with zeros, so it is in a batch.
            valid_BN = jnp.arange(x_BNWC.shape[1]) < count_B[:, None]
            x_BNWC = convolution(jnp.where(valid_BN[:, :, None, None], x_BNWC, 0.0))
            count_B = -(-count_B // STRIDE)
        return x_BNWC.reshape(*x_BNWC.shape[:2], self.config.frontend_width)
