"""What is particular to w2v-BERT's network: its features, its mechanisms, its frames. Parity is in test_encoder_parity.py."""

import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders import files, w2v_bert_network
from xretrieval.units.encoders.pretrained import import_encoder
from xretrieval.units.encoders.w2v_bert_network import stacked_fbank

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"
FIXTURE = FIXTURES / "w2v_bert"


@pytest.fixture(scope="module")
def reference():
    return safetensors.numpy.load_file(FIXTURE / "reference.safetensors")


def padded(sounds, length):
    samples_BT = np.zeros((len(sounds), length), np.float32)
    for row, samples_T in enumerate(sounds):
        samples_BT[row, : len(samples_T)] = samples_T
    return samples_BT, np.array([len(samples_T) for samples_T in sounds], np.int32)


def features_64(samples_T):
    """The features in float64, window by window, from Kaldi's definitions; [F, 160]."""
    edges = np.linspace(*1127 * np.log1p(np.array([20, 8000]) / 700), 82)
    mels = 1127 * np.log1p(np.arange(257) * 31.25 / 700)
    filters = np.array([np.interp(mels, edges[i : i + 3], [0, 1, 0], left=0, right=0) for i in range(80)])
    rows = []
    for start in range(0, len(samples_T) - 399, 160):
        x_T = samples_T[start : start + 400].astype(np.float64) * 32768
        x_T = x_T - x_T.mean()
        x_T = x_T - 0.97 * np.append(x_T[0], x_T[:-1])
        x_T *= (0.5 - 0.5 * np.cos(2 * np.pi * np.arange(400) / 399)) ** 0.85
        rows.append(np.log(np.maximum(filters @ np.abs(np.fft.rfft(x_T, 512)) ** 2, 1.1920929e-7)))
    x_FW = np.array(rows)
    x_FW = (x_FW - x_FW.mean(0)) / np.sqrt(x_FW.var(0, ddof=1) + 1e-7)
    return x_FW[: len(x_FW) // 2 * 2].reshape(-1, 160)


def test_features_equal_those_of_the_published_extractor(reference):
    sounds = [reference[f"samples.{i}"] for i in range(4)]
    got_BFW = np.asarray(jax.jit(stacked_fbank)(*padded(sounds, 20_000)))
    for i, samples_T in enumerate(sounds):
        want_FW = reference[f"features.{i}"]
        np.testing.assert_allclose(got_BFW[i, : len(want_FW)], want_FW, atol=1e-4)
        np.testing.assert_allclose(features_64(samples_T), want_FW, atol=1e-4)


def test_quiet_bins_beside_loud_ones_are_those_of_float64():
    # As of a telephone: nothing above 3.4 kHz but roundings of the samples, which float32 would drown in its own.
    seconds = np.arange(20_000) / 16_000
    hertz = np.linspace(100, 3400, 40)
    random = np.random.default_rng(0)
    parts = np.sin(2 * np.pi * (hertz[:, None] * seconds + random.random((40, 1)))) * (
        1 + np.sin(2 * np.pi * random.uniform(2, 5, (40, 1)) * seconds)
    )
    samples_T = (parts.sum(0) / np.abs(parts.sum(0)).max() * 0.5).astype(np.float32)
    got_FW = np.asarray(jax.jit(stacked_fbank)(*padded([samples_T], 20_000)))[0]
    np.testing.assert_allclose(got_FW, features_64(samples_T), atol=1e-3)


@pytest.mark.parametrize(
    "name,value",
    [
        ("_PREEMPHASIS", 0.9),
        ("_LOWEST_HERTZ", 0.0),
        ("_FULL_SCALE", 1.0),
        ("_FLOOR", 1e-6),
        ("povey_window", lambda: np.hanning(400)),
    ],
)
def test_each_part_of_the_filter_bank_shows(reference, monkeypatch, name, value):
    samples_T = reference["samples.2"]
    monkeypatch.setattr(f"xretrieval.units.encoders.fbank.{name}", value)
    got_FW = np.asarray(jax.jit(lambda *inputs: stacked_fbank(*inputs))(*padded([samples_T], len(samples_T))))[0]
    assert np.abs(got_FW - reference["features.2"]).max() > 1e-2


def last_state(params, reference, config):
    states_LBFD = lib.states(params, *padded([reference["samples.2"]], lib.bucket(16_000)), config)[1]
    return np.asarray(states_LBFD)[-1, 0, : reference["hidden.2"].shape[1]]


def test_each_parameter_and_clamp_shows(reference):
    encoder = import_encoder(FIXTURE).encoder
    params = dict(encoder.params)
    want_FD = last_state(params, reference, encoder.config)
    distances = params["layers.attention.distances_PC"]
    changes = {name: params | {name: np.zeros_like(params[name])} for name in params}
    changes["direction"] = params | {"layers.attention.distances_PC": distances[:, ::-1]}
    changes["left"] = params | {"layers.attention.distances_PC": np.concatenate([distances[:, 1:2], distances[:, 1:]], axis=1)}
    changes["right"] = params | {"layers.attention.distances_PC": np.concatenate([distances[:, :-1], distances[:, -2:-1]], axis=1)}
    for what, changed in changes.items():
        difference = np.abs(last_state(changed, reference, encoder.config) - want_FD).max() / np.abs(want_FD).max()
        # The bias of the keys is the same number on all scores of a query.
        assert (difference > 1e-3) == (what != "layers.attention.k.bias_F"), (what, difference)


def traced_again(encoder, samples_T):
    """The features, of the code as it is now."""
    network = lib.merge(encoder.config, encoder.params)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda *inputs: network(*inputs, False)[0])(*padded([samples_T], len(samples_T))))[0]


@pytest.mark.parametrize("name,value", [("silu", jax.nn.gelu), ("sigmoid", jnp.ones_like)])
def test_each_activation_shows(reference, monkeypatch, name, value):
    monkeypatch.setattr(jax.nn, name, value)
    got_FD = traced_again(import_encoder(FIXTURE, layer=1).encoder, reference["samples.2"])
    assert np.abs(got_FD - reference["hidden.2"][1]).max() > 1e-3 * np.abs(reference["hidden.2"][1]).max()


def test_blocks_of_queries_change_nothing(reference, monkeypatch):
    # 43 frames: six blocks, and one that is not full.
    monkeypatch.setattr(w2v_bert_network, "_QUERIES", 7)
    got_FD = traced_again(import_encoder(FIXTURE, layer=2).encoder, reference["samples.2"])
    np.testing.assert_allclose(got_FD, reference["hidden.2"][2], atol=1e-4 * np.abs(reference["hidden.2"][2]).max())


def test_frames_of_short_utterances():
    encoder = import_encoder(FIXTURE).encoder
    assert [encoder.config.frames(n) for n in (0, 399, 400, 559, 560, 719, 720, 879, 880, 16_000)] == [0, 0, 0, 0, 1, 1, 1, 1, 2, 49]
    assert encoder.frame_rate == 50
    with pytest.raises(UserError, match="too short"):
        encoder.features([np.zeros(559, np.float32)])
    for samples_T in (np.random.default_rng(0).standard_normal(560).astype(np.float32), np.zeros(9_000, np.float32)):
        features_FD = encoder.features([samples_T])[0]
        assert features_FD.shape == (encoder.config.frames(len(samples_T)), 16)
        assert np.isfinite(features_FD).all()


def test_features_are_the_same_in_each_load_and_after_saving(tmp_path, reference):
    first, second = (import_encoder(FIXTURE).encoder for _ in range(2))
    files.save(first, tmp_path)
    third = files.load(tmp_path)
    sounds = [reference["samples.2"]]
    for encoder in (second, third):
        assert encoder.fingerprint == first.fingerprint
        assert encoder.features(sounds)[0].tobytes() == first.features(sounds)[0].tobytes()
    assert import_encoder(FIXTURE, layer=2).encoder.fingerprint != first.fingerprint
