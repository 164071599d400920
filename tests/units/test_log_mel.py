"""The log-mel encoder against float64 NumPy."""

import numpy as np
import pytest
import scipy.fft

from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as encoders
from xretrieval.units.encoders import log_mel


def sound(seconds=1.3, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.05 * rng.normal(size=t.size)).astype(np.float32)


def encoded(samples, config):
    return encoders.Encoder(config, {}).features([samples])[0]


def reference(samples, config):
    """The features as a loop over frames, in float64."""
    samples = samples.astype(np.float64)
    count = (len(samples) - config.window) // config.hop + 1
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
    mel, dct = log_mel.mel_filters(config).astype(np.float64), log_mel.dct_matrix(config).astype(np.float64)
    rows = []
    for f in range(count):
        power = np.abs(np.fft.rfft(samples[f * config.hop : f * config.hop + config.window] * window, config.fft)) ** 2
        rows.append(np.log(np.maximum(power @ mel, config.floor)) @ dct)
    normal = lambda x: (x - x.mean(0)) / np.sqrt(x.var(0) + 1e-5)
    x = normal(np.array(rows))
    padded = np.concatenate([x[:1], x[:1], x, x[-1:], x[-1:]])
    delta = sum(k * padded[2 + k : 2 + k + count] for k in range(-2, 3)) / 10
    x = np.concatenate([x, normal(delta)], 1)
    x = np.concatenate([x, np.repeat(x[-1:], -count % config.stack, 0)])
    return x.reshape(-1, config.width)


@pytest.mark.parametrize("seconds", [0.025, 0.1, 1.3, 2.0, 2.5])
def test_features_equal_reference(seconds):
    config = log_mel.LogMelConfig()
    samples = sound(seconds)
    got, want = encoded(samples, config), reference(samples, config)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_a_louder_recording_has_the_same_features():
    config = log_mel.LogMelConfig()
    np.testing.assert_allclose(encoded(sound(), config), encoded(2 * sound(), config), atol=1e-2)


def test_too_short_is_an_error():
    with pytest.raises(UserError, match="too short"):
        encoded(np.zeros(399, np.float32), log_mel.LogMelConfig())


def test_mel_filters_are_triangles_on_the_scale_of_htk():
    """Centres and edges are equally spaced in 1127.01 ln(1 + f / 700), another form of the scale; between them a filter is two lines."""
    config = log_mel.LogMelConfig()
    mel = lambda f: 1127.01048 * np.log1p(np.asarray(f) / 700)
    points = 700 * np.expm1(np.linspace(mel(20), mel(8000), config.mel_bins + 2) / 1127.01048)
    frequencies = np.arange(config.fft // 2 + 1) * 16_000 / config.fft
    filters = log_mel.mel_filters(config)
    for k in range(config.mel_bins):
        want = np.interp(frequencies, points[k : k + 3], [0, 1, 0])
        np.testing.assert_allclose(filters[:, k], want, atol=1e-4)


def test_dct_is_that_of_scipy():
    config = log_mel.LogMelConfig()
    want = scipy.fft.dct(np.eye(config.mel_bins), norm="ortho")[:, : config.cepstra]
    np.testing.assert_allclose(log_mel.dct_matrix(config), want, atol=1e-6)
