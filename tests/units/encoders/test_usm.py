"""What is particular to the audio towers of Gemma 3n and Gemma 4: their features, their mechanisms, their frames. Parity is in test_encoder_parity.py."""

import dataclasses
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders import files, usm_network
from xretrieval.units.encoders.pretrained import import_encoder
from xretrieval.units.encoders.usm_frontend import log_mel

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"
NAMES = ("gemma3n_audio", "gemma4_audio")


@functools.cache
def imported(name, layer=None):
    return import_encoder(FIXTURES / name, layer).encoder


@functools.cache
def reference(name):
    return safetensors.numpy.load_file(FIXTURES / name / "reference.safetensors")


def log_mel_64(samples_T, config):
    """The features in float64, window by window, from the definitions; [N, W]."""
    low, high = (2595 * np.log10(1 + hertz / 700) for hertz in (config.lowest_hertz, config.highest_hertz))
    edges = 700 * (10 ** (np.linspace(low, high, config.mel_bins + 2) / 2595) - 1)
    hertz = np.arange(config.fft // 2 + 1) * 16_000 / config.fft
    filters = np.array([np.interp(hertz, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(config.mel_bins)])
    x_T = np.append(np.zeros(config.lead), samples_T.astype(np.float64) * config.scale)
    rows = []
    for start in range(0, len(x_T) - config.window, config.hop):
        y_T = x_T[start : start + config.window]
        y_T = (y_T - config.preemphasis * np.append(y_T[0], y_T[:-1])) * np.hanning(config.window + 1)[:-1]
        rows.append(filters @ np.abs(np.fft.rfft(y_T, config.fft)))
    mel_NW = np.array(rows)
    x_NW = np.log(mel_NW + config.floor if config.floor_added else np.maximum(mel_NW, config.floor))
    return (x_NW - np.array(config.mean or 0.0)) / np.array(config.deviation or 1.0)


@pytest.mark.parametrize("name", [*NAMES, "gemma4"])
def test_features_equal_those_of_the_published_extractor(name):
    samples_T, want_NW = reference(name)["samples.0"], reference(name)["features.0"]
    got_NW = np.asarray(log_mel(samples_T[None], imported(name).config))[0]
    # The published one transforms in float32.
    np.testing.assert_allclose(got_NW, want_NW, atol=1e-4)
    np.testing.assert_allclose(got_NW, log_mel_64(samples_T, imported(name).config), atol=5e-6)


@pytest.mark.parametrize("name", NAMES)
def test_quiet_bins_beside_loud_ones_are_those_of_float64(name):
    # As of a telephone: nothing above 3.4 kHz but roundings of the samples, which float32 would drown in its own.
    seconds, hertz, random = np.arange(9_000) / 16_000, np.linspace(100, 3400, 40), np.random.default_rng(0)
    tones = np.sin(2 * np.pi * (hertz[:, None] * seconds + random.random((40, 1))))
    sound = (tones * (1 + np.sin(2 * np.pi * random.uniform(2, 5, (40, 1)) * seconds))).sum(0)
    samples_T = (sound / np.abs(sound).max() * 0.5).astype(np.float32)
    got_NW = np.asarray(log_mel(samples_T[None], imported(name).config))[0]
    np.testing.assert_allclose(got_NW, log_mel_64(samples_T, imported(name).config), atol=5e-6)


def last_state(name, params, config):
    """Of the third utterance, without compiling the whole: a change costs milliseconds."""
    samples_T = reference(name)["samples.2"]
    with jax.disable_jit():
        return np.asarray(lib.merge(config, params)(jnp.asarray(samples_T[None]), jnp.array([len(samples_T)]), False)[0])[0]


def assert_shows(name, changed_FD, layer=-1):
    want_FD = reference(name)["hidden.2"][layer]
    frames = min(len(changed_FD), len(want_FD))
    assert np.abs(changed_FD[:frames] - want_FD[:frames]).max() > 1e-3 * np.abs(want_FD).max()


# Every number but those of sizes, which shapes of tensors tell, and `block`, which changes nothing.
CHANGES = {
    "window": lambda x: x - 20,
    "hop": lambda x: x - 1,
    "fft": lambda x: 2 * x,
    "lead": lambda x: x + 80,
    "lowest_hertz": lambda x: x + 50.0,
    "highest_hertz": lambda x: x - 500.0,
    "preemphasis": lambda x: 0.97 - x,
    "scale": lambda x: 1.2 * x,
    "floor": lambda x: 10 * x,
    "floor_added": lambda x: not x,
    "mean": lambda x: () if x else (1.0,) * 128,
    "deviation": lambda x: () if x else (2.0,) * 128,
    "frames_before": lambda x: 1 - x,
    "cumulative_norm": lambda x: not x,
    "frontend_epsilon": lambda x: 0.01 * x,
    "lookback": lambda x: x - 1,
    "soft_cap": lambda x: 2 * x,
    "key_scale": lambda x: 1.2 * x,
    "residual_weight": lambda x: 1.2 * x,
    "clamp": lambda x: 1.2 * x,
    "convolution_epsilon": lambda x: 0.01 * x,
    "norm_epsilon": lambda x: 0.1 + x,
}


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_each_number_shows(name):
    encoder = imported(name, layer=1)
    numbers = {field.name for field in dataclasses.fields(encoder.config)}
    assert numbers - CHANGES.keys() == {"layer", "model_width", "heads", "block", "kernel", "mel_bins", "channels", "bounded"}
    for number, change in CHANGES.items():
        config = dataclasses.replace(encoder.config, **{number: change(getattr(encoder.config, number))})
        assert_shows(name, last_state(name, encoder.params, config), layer=1)


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_shows(name):
    encoder, samples_BT = imported(name), reference(name)["samples.2"][None]
    lengths_B = np.array([samples_BT.shape[1]], np.int32)
    for parameter, values in encoder.params.items():
        changed = np.zeros_like(values)
        if parameter.endswith("_bounds_2"):
            changed = np.broadcast_to(np.array([-np.inf, np.inf], np.float32), values.shape)
        features_BFD, _ = lib.states({**encoder.params, parameter: changed}, samples_BT, lengths_B, encoder.config, keep=False)
        assert_shows(name, np.asarray(features_BFD)[0])


@pytest.mark.parametrize("owner,function,value", [(jax.nn, "silu", jax.nn.gelu), (jax.nn, "sigmoid", jnp.ones_like), (jax.nn, "relu", abs)])
def test_each_activation_shows(monkeypatch, owner, function, value):
    monkeypatch.setattr(owner, function, value)
    encoder = imported("gemma4_audio", layer=1)
    assert_shows("gemma4_audio", last_state("gemma4_audio", encoder.params, encoder.config), layer=1)


def test_direction_of_distances_shows(monkeypatch):
    sinusoids = usm_network.sinusoids
    monkeypatch.setattr(usm_network, "sinusoids", lambda config: sinusoids(config)[::-1])
    encoder = imported("gemma3n_audio", layer=1)
    assert_shows("gemma3n_audio", last_state("gemma3n_audio", encoder.params, encoder.config), layer=1)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_of_queries_change_nothing(name):
    encoder, want_FD = imported(name, layer=1), reference(name)["hidden.2"][1]
    for block in (4, 100):
        got_FD = last_state(name, encoder.params, dataclasses.replace(encoder.config, block=block))
        np.testing.assert_allclose(got_FD, want_FD, atol=1e-4 * np.abs(want_FD).max())


def test_memory_grows_with_length_not_with_its_square():
    encoder = imported("gemma3n_audio", layer=1)
    config, params = encoder.config, {name: jax.ShapeDtypeStruct(x.shape, x.dtype) for name, x in encoder.params.items()}
    taken = []
    for seconds in (60, 240):
        samples_BT, lengths_B = jax.ShapeDtypeStruct((1, seconds * 16_000), jnp.float32), jax.ShapeDtypeStruct((1,), jnp.int32)
        compiled = lib.states.lower(params, samples_BT, lengths_B, config, keep=False).compile()
        taken.append(compiled.memory_analysis().temp_size_in_bytes)
    assert taken[1] < 4.5 * taken[0]


@pytest.mark.parametrize("name,first", [("gemma3n_audio", 513), ("gemma4_audio", 161)])
def test_frames_of_short_utterances(name, first):
    encoder = imported(name)
    # A frame begins with every fourth mel window.
    lengths = (0, 1, first - 1, first, first + 640 - 1, first + 640, first + 1280 - 1, first + 1280)
    assert [encoder.config.frames(n) for n in lengths] == [0, 0, 0, 1, 1, 2, 2, 3]
    assert encoder.frame_rate == 25
    with pytest.raises(UserError, match="too short"):
        encoder.features([np.zeros(first - 1, np.float32)])
    for samples_T in (np.random.default_rng(0).standard_normal(first).astype(np.float32), np.zeros(9_000, np.float32)):
        features_FD = encoder.features([samples_T])[0]
        assert features_FD.shape == (encoder.config.frames(len(samples_T)), 16)
        assert np.isfinite(features_FD).all()


def test_features_are_the_same_in_each_load_and_after_saving(tmp_path):
    first, second = (import_encoder(FIXTURES / "gemma4_audio").encoder for _ in range(2))
    files.save(first, tmp_path)
    third = files.load(tmp_path)
    sounds = [reference("gemma4_audio")["samples.2"]]
    for encoder in (second, third):
        assert encoder.config == first.config
        assert encoder.fingerprint == first.fingerprint
        assert encoder.features(sounds)[0].tobytes() == first.features(sounds)[0].tobytes()
    assert import_encoder(FIXTURES / "gemma4_audio", layer=2).encoder.fingerprint != first.fingerprint
