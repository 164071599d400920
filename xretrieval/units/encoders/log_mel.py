"""The log-mel encoder: samples to normalised, stacked cepstra at the unit rate. No weights.

Framing, mel filters (HTK scale, triangular, unit peak) and DCT-II (orthonormal) are those of textbook MFCC; the cepstra of every
utterance are normalised to zero mean and unit variance, which removes most of a voice's colour and of a recording's level.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from xretrieval.units.encoders.encoder import SAMPLING_RATE, EncoderConfig


@dataclasses.dataclass(frozen=True)
class LogMelConfig(EncoderConfig):
    """`stack` frames of `hop` samples make one stacked frame: 16,000 / 320 / 4 = 12.5 a second."""

    family: ClassVar[str] = "log_mel"

    window: int = 400
    hop: int = 320
    fft: int = 512
    mel_bins: int = 80
    cepstra: int = 13
    deltas: bool = True
    stack: int = 4
    floor: float = 1e-6

    @property
    def frame_rate(self) -> float:
        """Stacked frames a second."""
        return SAMPLING_RATE / (self.hop * self.stack)

    @property
    def width(self) -> int:
        """Values of one stacked frame."""
        return self.cepstra * (2 if self.deltas else 1) * self.stack

    def windows(self, samples: int) -> int:
        """Frames before stacking; 0 where the utterance is shorter than a window."""
        return max(0, (samples - self.window) // self.hop + 1)

    def frames(self, samples: int) -> int:
        return -(-self.windows(samples) // self.stack)

    def network(self, rngs: nnx.Rngs) -> nnx.Module:
        return LogMel(self)


def mel_filters(config: LogMelConfig) -> np.ndarray:
    """Triangular filters, float32 [fft // 2 + 1, mel_bins], from 20 Hz to the Nyquist frequency."""

    def to_mel(hertz):
        return 2595.0 * np.log10(1.0 + hertz / 700.0)

    edges_mel = np.linspace(to_mel(20.0), to_mel(SAMPLING_RATE / 2), config.mel_bins + 2)
    edges = 700.0 * (10.0 ** (edges_mel / 2595.0) - 1.0)
    bins = np.arange(config.fft // 2 + 1)[:, None] * SAMPLING_RATE / config.fft
    rising = (bins - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - bins) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling)).astype(np.float32)


def dct_matrix(config: LogMelConfig) -> np.ndarray:
    """Orthonormal DCT-II, float32 [mel_bins, cepstra]."""
    n, k = np.arange(config.mel_bins)[:, None], np.arange(config.cepstra)[None, :]
    matrix = np.cos(np.pi / config.mel_bins * (n + 0.5) * k) * np.sqrt(2.0 / config.mel_bins)
    matrix[:, 0] /= np.sqrt(2.0)
    return matrix.astype(np.float32)


class LogMel(nnx.Module):
    """See `EncoderConfig.network`."""

    def __init__(self, config: LogMelConfig):
        self.config = config

    def __call__(self, samples_BT: jax.Array, lengths_B: jax.Array, keep: bool = False) -> tuple[jax.Array, jax.Array | None]:
        config = self.config
        frames_B = (lengths_B - config.window) // config.hop + 1
        x_BFW = jnp.stack([_features(samples_BT[row], frames_B[row], config) for row in range(samples_BT.shape[0])])
        return x_BFW, x_BFW[None] if keep else None


def _features(samples_T: jax.Array, num_frames: jax.Array, config: LogMelConfig) -> jax.Array:
    """Features of a zero-padded utterance, [F, width]; only the first `num_frames` frames before stacking are sound."""
    max_frames = config.windows(samples_T.shape[0])
    starts_F = np.arange(max_frames)[:, None] * config.hop + np.arange(config.window)[None, :]
    frames_FT = samples_T[starts_F] * np.hanning(config.window + 1)[:-1].astype(np.float32)
    power = jnp.abs(jnp.fft.rfft(frames_FT, n=config.fft)) ** 2
    log_mel_FW = jnp.log(jnp.maximum(power @ mel_filters(config), config.floor))
    x_FW = log_mel_FW @ dct_matrix(config)
    valid_F1 = (jnp.arange(max_frames) < num_frames)[:, None]
    x_FW = _normalise(x_FW, valid_F1, num_frames)
    if config.deltas:
        # The regression over two frames either side; beyond the ends the edge frame stands, as if the utterance went on.
        index_F = jnp.clip(jnp.arange(max_frames)[:, None] + np.arange(-2, 3), 0, num_frames - 1)
        delta_FW = jnp.einsum("fkw,k->fw", x_FW[index_F], np.arange(-2, 3, dtype=np.float32) / 10.0)
        x_FW = jnp.concatenate([x_FW, _normalise(delta_FW, valid_F1, num_frames)], axis=1)
    # A last stack that is not full repeats the last frame.
    blocks = config.frames(samples_T.shape[0])
    x_FW = x_FW[jnp.minimum(jnp.arange(blocks * config.stack), num_frames - 1)]
    return x_FW.reshape(blocks, config.width)


def _normalise(x_FW: jax.Array, valid_F1: jax.Array, num_frames: jax.Array) -> jax.Array:
    mean_W = jnp.sum(jnp.where(valid_F1, x_FW, 0.0), axis=0) / num_frames
    centred_FW = jnp.where(valid_F1, x_FW - mean_W, 0.0)
    return centred_FW / jnp.sqrt(jnp.sum(centred_FW**2, axis=0) / num_frames + 1e-5)
