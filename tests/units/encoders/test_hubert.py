"""What is particular to the network of HuBERT and wav2vec 2.0: its statistics, its blocks, its mechanisms, its frames. Parity is in test_encoder_parity.py."""

import functools
import math
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy
from flax import nnx

from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders import files, hubert_frontend, hubert_network
from xretrieval.units.encoders.hubert_network import HubertConfig
from xretrieval.units.encoders.pretrained import import_encoder

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"
NAMES = ("hubert_base", "hubert_large", "wav2vec2_base", "xlsr")
LENGTH = 16_000


@functools.cache
def imported(name, layer=None):
    return import_encoder(FIXTURES / name, layer).encoder


@functools.cache
def reference(name):
    """Samples and hidden states of an utterance with a number of frames that its blocks do not divide."""
    found = safetensors.numpy.load_file(FIXTURES / name / "reference.safetensors")
    return found["samples.2"], found["hidden.2"]


def padded(samples_T):
    samples_BT = np.zeros((1, LENGTH), np.float32)
    samples_BT[0, : len(samples_T)] = samples_T
    return samples_BT, np.array([len(samples_T)], np.int32)


def difference(got_FD, want_FD):
    """As part of the largest value."""
    return np.abs(got_FD[: len(want_FD)] - want_FD).max() / np.abs(want_FD).max()


def traced_again(encoder, samples_T):
    """The features, padded, of the code as it is now."""
    network = lib.merge(encoder.config, encoder.params)
    with jax.default_matmul_precision("highest"):
        return np.asarray(jax.jit(lambda *inputs: network(*inputs, False)[0])(*padded(samples_T)))[0]


@pytest.mark.parametrize("name", NAMES)
def test_blocks_change_nothing(name, monkeypatch):
    # 43 frames: seven blocks of convolutions and five of queries, the last ones not full, and blocks of statistics wholly beyond the end.
    monkeypatch.setattr(hubert_frontend, "_BLOCK", 7)
    monkeypatch.setattr(hubert_network, "_QUERIES", 9)
    samples_T, hidden_LFD = reference(name)
    assert difference(traced_again(imported(name), samples_T), hidden_LFD[-1]) < 1e-4


@pytest.mark.parametrize("name", NAMES)
def test_each_parameter_shows(name):
    encoder = imported(name)
    samples_T, hidden_LFD = reference(name)
    for ours in encoder.params:
        changed = dict(encoder.params) | {ours: np.zeros_like(encoder.params[ours])}
        got_FD = np.asarray(lib.states(changed, *padded(samples_T), encoder.config, keep=False)[0])[0]
        assert difference(got_FD, hidden_LFD[-1]) > 1e-3, ours


_moments, _attend, _positions = hubert_frontend.Frontend._moments, hubert_network.Attention.__call__, hubert_network.Positions.__call__
CHANGES = {
    "activation of convolutions": ("hubert_base", hubert_frontend, "gelu", jax.nn.relu),
    "activation of MLPs": ("hubert_base", hubert_network, "gelu", jax.nn.relu),
    "normalised samples": ("hubert_large", hubert_frontend, "normalised", lambda samples_BT, lengths_B: samples_BT),
    "variance 0 of samples": ("hubert_large", hubert_frontend, "_SAMPLES_EPSILON", 0.1),
    "variance 0 of channels": ("hubert_base", hubert_frontend, "_CONVOLUTION_EPSILON", 0.03),
    "variance 0 of frames": ("xlsr", hubert_frontend, "_CONVOLUTION_EPSILON", 0.03),
    "statistics of the utterance alone": (
        "hubert_base",
        hubert_frontend.Frontend,
        "_moments",
        lambda self, samples_BT, lengths_B: _moments(self, samples_BT, jnp.full_like(lengths_B, LENGTH)),
    ),
    "attention to the utterance alone": (
        "xlsr",
        hubert_network.Attention,
        "__call__",
        lambda self, x_BFD, valid_BF: _attend(self, x_BFD, jnp.ones_like(valid_BF)),
    ),
    "zeros beyond the end": ("xlsr", hubert_network.Positions, "__call__", lambda self, x_BFD: _positions(self, x_BFD + (x_BFD == 0.0))),
}


@pytest.mark.parametrize("what", CHANGES)
def test_each_mechanism_shows(what, monkeypatch):
    name, *change = CHANGES[what]
    samples_T, hidden_LFD = reference(name)
    monkeypatch.setattr(*change)
    assert difference(traced_again(imported(name), samples_T), hidden_LFD[-1]) > 1e-3


@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_statistics_equal_those_of_float64(offset):
    # An offset that float32 sums of squares would drown in.
    config = released("hubert-base", layer=0)
    samples_T = (offset + 0.1 * np.random.default_rng(0).standard_normal(50_007)).astype(np.float32)
    frontend = hubert_frontend.Frontend(config, nnx.Rngs(params=0))
    padded_BT = np.zeros((1, 64_000), np.float32)
    padded_BT[0, : len(samples_T)] = samples_T
    mean_BD, variance_BD = jax.jit(frontend._moments)(padded_BT, np.array([len(samples_T)]))
    windows_FP = np.lib.stride_tricks.sliding_window_view(samples_T.astype(np.float64), 10)[::5]
    x_FD = windows_FP @ np.asarray(frontend.convolutions[0].weight_PDF[...], np.float64)[:, 0]
    np.testing.assert_allclose(mean_BD[0], x_FD.mean(0), atol=1e-6 * max(1.0, np.abs(x_FD).max()))
    # A sum of ten products of numbers of this offset is off by 1e-7 of them, each its own way.
    np.testing.assert_allclose(variance_BD[0], x_FD.var(0), rtol=1e-5 if not offset else 1e-2)


def released(name, layer):
    """The numbers of the config.json of released models."""
    base = {"model_width": 768, "heads": 12, "mlp_width": 3072, "stable": False, "group_norm": True, "conv_bias": False}
    large = {"model_width": 1024, "heads": 16, "mlp_width": 4096, "stable": True, "group_norm": False, "conv_bias": True}
    billion = large | {"model_width": 1280, "mlp_width": 5120}
    return HubertConfig(
        **{"hubert-base": base, "hubert-large": large, "xls-r-300m": large, "xls-r-1b": billion}[name],
        layer=layer,
        normalise=True,
        conv_widths=(512,) * 7,
        conv_kernels=(10, 3, 3, 3, 3, 2, 2),
        conv_strides=(5, 2, 2, 2, 2, 2, 2),
        input_norm=True,
        position_kernel=128,
        position_groups=16,
        norm_epsilon=1e-5,
    )


# Of transformers' models, less the embedding of masked frames, the norm after the last layer of stable ones, and the 128 lengths of the weight norm.
@pytest.mark.parametrize(
    "name,layers,parameters",
    [
        ("hubert-base", 12, 94_371_712 - 768 - 128),
        ("hubert-large", 24, 315_438_720 - 3 * 1024 - 128),
        ("xls-r-300m", 24, 315_438_720 - 3 * 1024 - 128),
        ("xls-r-1b", 48, 962_497_408 - 3 * 1280 - 128),
    ],
)
def test_released_models_have_their_parameters_and_frames(name, layers, parameters):
    config = released(name, layers)
    assert sum(math.prod(shape) for shape in lib.shapes(config).values()) == parameters
    assert config.frame_rate == 50
    assert [config.frames(n) for n in (0, 399, 400, 719, 720, 16_000, 160_000)] == [0, 0, 1, 1, 2, 49, 499]
    assert [config.reach(n) for n in (1, 2, 49)] == [400, 720, 400 + 48 * 320]


@pytest.mark.parametrize("name", ["hubert_base", "xlsr"])
def test_frames_of_short_and_silent_utterances(name):
    encoder = imported(name, 1)
    with pytest.raises(UserError, match="too short"):
        encoder.features([np.zeros(399, np.float32)])
    for samples_T in (np.random.default_rng(0).standard_normal(400).astype(np.float32), np.full(9_000, 0.3, np.float32)):
        features_FD = encoder.features([samples_T])[0]
        assert features_FD.shape == (encoder.config.frames(len(samples_T)), 16)
        assert np.isfinite(features_FD).all()


def test_features_are_the_same_in_each_load_and_after_saving(tmp_path):
    first, second = (import_encoder(FIXTURES / "xlsr", 1).encoder for _ in range(2))
    files.save(first, tmp_path)
    for encoder in (second, files.load(tmp_path)):
        assert encoder.fingerprint == first.fingerprint
        assert encoder.features([reference("xlsr")[0]])[0].tobytes() == first.features([reference("xlsr")[0]])[0].tobytes()
    assert import_encoder(FIXTURES / "xlsr", 2).encoder.fingerprint != first.fingerprint
