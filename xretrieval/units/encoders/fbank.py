"""Kaldi's log-mel filter bank, as speech encoders take it that were trained on it: 100 windows a second.

Windows of 25 ms lie wholly inside the sound ("snip edges"). Each loses its mean, is pre-emphasised and weighed by Kaldi's own window (Hann's to the
power 0.85, "povey"); triangular filters of unit peak, even on the mel scale 1127 ln(1 + f / 700) and linear in mel, sum its power spectrum.
"""

import jax
import jax.numpy as jnp
import numpy as np

from xretrieval.units.encoders.encoder import SAMPLING_RATE

WINDOW = 400
HOP = 160
_FFT = 512
_PREEMPHASIS = 0.97
_LOWEST_HERTZ = 20.0
_FULL_SCALE = 2.0**15  # Kaldi's samples are 16-bit integers
_FLOOR = 2.0**-23  # of a filter's power; that of such samples


def windows(samples: int) -> int:
    """Windows of an utterance of so many samples; 0 where it is shorter than one."""
    return max(0, (samples - WINDOW) // HOP + 1)


def povey_window() -> np.ndarray:
    """float64 [WINDOW]."""
    return np.hanning(WINDOW) ** 0.85


def mel_filters(bins: int) -> np.ndarray:
    """float64 [_FFT // 2 + 1, bins], from 20 Hz to the Nyquist frequency."""

    def to_mel(hertz):
        return 1127.0 * np.log(1.0 + hertz / 700.0)

    edges = np.linspace(to_mel(_LOWEST_HERTZ), to_mel(SAMPLING_RATE / 2), bins + 2)
    at = to_mel(np.arange(_FFT // 2 + 1) * SAMPLING_RATE / _FFT)[:, None]
    rising = (at - edges[:-2]) / (edges[1:-1] - edges[:-2])
    falling = (edges[2:] - at) / (edges[2:] - edges[1:-1])
    return np.maximum(0.0, np.minimum(rising, falling))


def spectrum_matrix() -> np.ndarray:
    """A window's samples to the real, then the imaginary parts of its spectrum, weighed by the window: float64 [WINDOW, 2 * (_FFT // 2 + 1)]."""
    angle = 2.0 * np.pi / _FFT * np.arange(WINDOW)[:, None] * np.arange(_FFT // 2 + 1)
    return povey_window()[:, None] * np.concatenate([np.cos(angle), np.sin(angle)], axis=1)


def fbank(samples_BT: jax.Array, bins: int) -> jax.Array:
    """Natural logarithms of the filters' powers.

    Computed in float64 up to the powers, as the reference is: in float32, roundings of the loud bins lie above what is in the quiet ones, in the upper
    half of a telephone recording for one, and normalised bins show them. By a matmul, because TPUs have no transform of float64.

    Args:
      samples_BT: float32, 16 kHz, full scale 1.
      bins: W, filters.

    Returns:
      float32 [B, windows(T), W]; a window that reaches into an utterance's padding has its share of zeros.
    """
    rows, samples = samples_BT.shape
    count = windows(samples)
    # A window is two and a half hops, so that windows are slices of hops beside one another: no gather.
    missing = max(0, (count + 2) * HOP - samples)
    hops_BFT = jnp.pad(samples_BT, ((0, 0), (0, missing)))[:, : (count + 2) * HOP].reshape(rows, count + 2, HOP)
    x_BFT = jnp.concatenate([hops_BFT[:, :-2], hops_BFT[:, 1:-1], hops_BFT[:, 2:, : WINDOW - 2 * HOP]], axis=-1)
    with jax.enable_x64(True):
        x_BFT = x_BFT.astype(jnp.float64) * _FULL_SCALE
        x_BFT -= jnp.mean(x_BFT, axis=-1, keepdims=True)
        before_BFT = jnp.concatenate([x_BFT[..., :1], x_BFT[..., :-1]], axis=-1)
        emphasised_NT = (x_BFT - _PREEMPHASIS * before_BFT).reshape(rows * count, WINDOW)
        parts_N = jnp.square(emphasised_NT @ spectrum_matrix())
        power_N = (parts_N[:, : _FFT // 2 + 1] + parts_N[:, _FFT // 2 + 1 :]).astype(jnp.float32)
    power_BFW = (power_N @ mel_filters(bins).astype(np.float32)).reshape(rows, count, bins)
    return jnp.log(jnp.maximum(power_BFW, _FLOOR))
