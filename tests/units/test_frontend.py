"""The front end and k-means against float64 NumPy."""

import itertools

import numpy as np
import pytest
import scipy.fft

from xretrieval.errors import UserError
from xretrieval.units import frontend, kmeans
from xretrieval.units.tokenizer import UnitTokenizer


def sound(seconds=1.3, seed=0):
    rng = np.random.default_rng(seed)
    t = np.arange(int(seconds * 16_000)) / 16_000
    return (0.3 * np.sin(2 * np.pi * (200 + 300 * t) * t) + 0.05 * rng.normal(size=t.size)).astype(np.float32)


def reference(samples, config):
    """The features as a loop over frames, in float64."""
    samples = samples.astype(np.float64)
    count = (len(samples) - config.window) // config.hop + 1
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(config.window) / config.window)
    mel, dct = frontend.mel_filters(config).astype(np.float64), frontend.dct_matrix(config).astype(np.float64)
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
    config = frontend.LogMelConfig()
    samples = sound(seconds)
    got, want = frontend.features(samples, config), reference(samples, config)
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, atol=2e-3)


def test_a_louder_recording_has_the_same_features():
    config = frontend.LogMelConfig()
    np.testing.assert_allclose(frontend.features(sound(), config), frontend.features(2 * sound(), config), atol=1e-2)


def test_too_short_is_an_error():
    with pytest.raises(UserError, match="too short"):
        frontend.features(np.zeros(399, np.float32), frontend.LogMelConfig())


def test_lloyd_equals_numpy():
    rng = np.random.default_rng(0)
    x = np.concatenate([rng.normal(c, 0.3, (300, 5)) for c in (-3, 0, 3)]).astype(np.float32)
    codebook, history = kmeans.fit(x, 7, 60, seed=0)
    distance = ((x[:, None].astype(np.float64) - codebook[None]) ** 2).sum(-1)
    assert (kmeans.assign(x, codebook) == distance.argmin(1)).all()
    assert all(later <= earlier + 1e-6 for earlier, later in itertools.pairwise(history))
    # A fixed point of Lloyd's iteration, up to its stopping rule.
    again = np.stack([x[distance.argmin(1) == k].mean(0) for k in range(7)])
    assert abs(((x - again[distance.argmin(1)]) ** 2).sum(1).mean() - distance.min(1).mean()) < 1e-2 * distance.min(1).mean()


def test_assignment_does_not_depend_on_the_batch():
    rng = np.random.default_rng(1)
    x, codebook = rng.normal(size=(500, 12)).astype(np.float32), rng.normal(size=(32, 12)).astype(np.float32)
    whole = kmeans.assign(x, codebook)
    assert (whole == np.concatenate([kmeans.assign(part, codebook) for part in np.split(x, [1, 70, 333])])).all()


def test_too_few_frames_is_an_error():
    with pytest.raises(UserError, match="4 frames for 8 clusters"):
        kmeans.fit(np.zeros((4, 2), np.float32), 8, 5, 0)


def test_a_changed_codebook_is_refused(tmp_path):
    config = frontend.LogMelConfig()
    rng = np.random.default_rng(2)
    made = UnitTokenizer(config, rng.normal(size=(16, config.width)).astype(np.float32), True, {})
    made.save(tmp_path / "a")
    read = UnitTokenizer.load(tmp_path / "a")
    assert read.fingerprint == made.fingerprint
    assert (read.encode(sound()) == made.encode(sound())).all()
    UnitTokenizer(config, made.codebook_KW + 1, True, {}).save(tmp_path / "b")
    (tmp_path / "b" / "unit_tokenizer.json").write_bytes((tmp_path / "a" / "unit_tokenizer.json").read_bytes())
    with pytest.raises(UserError, match="codebook.safetensors is not the one"):
        UnitTokenizer.load(tmp_path / "b")


def test_mel_filters_are_triangles_on_the_scale_of_htk():
    """Centres and edges are equally spaced in 1127.01 ln(1 + f / 700), another form of the scale; between them a filter is two lines."""
    config = frontend.LogMelConfig()
    mel = lambda f: 1127.01048 * np.log1p(np.asarray(f) / 700)
    points = 700 * np.expm1(np.linspace(mel(20), mel(8000), config.mel_bins + 2) / 1127.01048)
    frequencies = np.arange(config.fft // 2 + 1) * 16_000 / config.fft
    filters = frontend.mel_filters(config)
    for k in range(config.mel_bins):
        want = np.interp(frequencies, points[k : k + 3], [0, 1, 0])
        np.testing.assert_allclose(filters[:, k], want, atol=1e-4)


def test_dct_is_that_of_scipy():
    config = frontend.LogMelConfig()
    want = scipy.fft.dct(np.eye(config.mel_bins), norm="ortho")[:, : config.cepstra]
    np.testing.assert_allclose(frontend.dct_matrix(config), want, atol=1e-6)
