"""The log-mel front end: samples to normalised, stacked cepstra at the unit rate. No weights.

Framing, mel filters (HTK scale, triangular, unit peak) and DCT-II (orthonormal) are those of textbook MFCC; the cepstra of every
utterance are normalised to zero mean and unit variance, which removes most of a voice's colour and of a recording's level.
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from xretrieval.errors import UserError

SAMPLING_RATE = 16_000
# Raised whenever the numbers below change meaning: it is part of a unit tokenizer's fingerprint.
FRONTEND_VERSION = 1


@dataclasses.dataclass(frozen=True)
class LogMelConfig:
    """`stack` frames of `hop` samples make one stacked frame: 16,000 / 320 / 4 = 12.5 a second."""

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


@functools.partial(jax.jit, static_argnames="config")
def _padded_features(samples_T: jax.Array, num_frames: jax.Array, config: LogMelConfig) -> jax.Array:
    """Features of a zero-padded utterance, [F // stack, width]; only the first `num_frames` frames are sound."""
    max_frames = (samples_T.shape[0] - config.window) // config.hop + 1
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
    blocks = max_frames // config.stack
    x_FW = x_FW[jnp.minimum(jnp.arange(blocks * config.stack), num_frames - 1)]
    return x_FW.reshape(blocks, config.width)


def _normalise(x_FW: jax.Array, valid_F1: jax.Array, num_frames: jax.Array) -> jax.Array:
    mean_W = jnp.sum(jnp.where(valid_F1, x_FW, 0.0), axis=0) / num_frames
    centred_FW = jnp.where(valid_F1, x_FW - mean_W, 0.0)
    return centred_FW / jnp.sqrt(jnp.sum(centred_FW**2, axis=0) / num_frames + 1e-5)


def features(samples_T: np.ndarray, config: LogMelConfig) -> np.ndarray:
    """Stacked, per-utterance normalised cepstra of one utterance.

    The utterance is padded to a length bucket that depends on its own length alone, so its features do not depend on its neighbours.

    Args:
      samples_T: float32 [T], 16 kHz mono, at least one window long.
      config: the front end.

    Returns:
      float32 [ceil(frames / stack), config.width].

    Raises:
      UserError: fewer samples than one window.
    """
    if samples_T.ndim != 1 or samples_T.shape[0] < config.window:
        raise UserError(f"{samples_T.shape[0]} samples of sound are less than one window of {config.window}: the recording is too short")
    num_frames = (samples_T.shape[0] - config.window) // config.hop + 1
    frames_in_a_bucket = 2 * SAMPLING_RATE // config.hop // config.stack * config.stack
    buckets = -(-num_frames // frames_in_a_bucket)
    padded = np.zeros((buckets * frames_in_a_bucket - 1) * config.hop + config.window, np.float32)
    padded[: samples_T.shape[0]] = samples_T[: padded.shape[0]]
    out_FW = _padded_features(padded, np.int32(num_frames), config)
    return np.asarray(out_FW)[: -(-num_frames // config.stack)]
