"""Every imported encoder beside `transformers`, at every layer: alone, padded to its bucket, and in a batch with neighbours.

`make parity` made the fixtures: random tiny models, and what `transformers` computes for each utterance alone, unpadded, in float32.
"""

import functools
import pathlib

import jax
import numpy as np
import pytest
import safetensors.numpy

from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders.pretrained import import_encoder

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"
NAMES = sorted(path.parent.name for path in FIXTURES.glob("*/reference.safetensors"))
# Of the layer's largest value, in float32.
TOLERANCE = 1e-4


@functools.cache
def imported(name):
    return import_encoder(FIXTURES / name).encoder


@functools.cache
def reference(name):
    """(samples float32 [T], hidden states float32 [layers + 1, F, D]) of each utterance."""
    found = safetensors.numpy.load_file(FIXTURES / name / "reference.safetensors")
    count = sum(key.startswith("samples.") for key in found)
    return [(found[f"samples.{i}"], found[f"hidden.{i}"]) for i in range(count)]


def batch(sounds, length):
    samples_BT = np.zeros((len(sounds), length), np.float32)
    for row, samples_T in enumerate(sounds):
        samples_BT[row, : len(samples_T)] = samples_T
    return samples_BT, np.array([len(samples_T) for samples_T in sounds], np.int32)


def worst(encoder, sounds, wanted, length):
    """The largest difference at any layer, as part of the layer's largest value."""
    _, states_LBFD = lib.states(encoder.params, *batch(sounds, length), encoder.config)
    found = []
    for row, hidden_LFD in enumerate(wanted):
        got_LFD = np.asarray(states_LBFD)[:, row, : hidden_LFD.shape[1]]
        assert got_LFD.shape == hidden_LFD.shape
        found += [np.abs(a - b).max() / np.abs(b).max() for a, b in zip(got_LFD, hidden_LFD, strict=True)]
    return max(found)


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_equals_the_reference(name):
    encoder, utterances = imported(name), reference(name)
    for number, (samples_T, hidden_LFD) in enumerate(utterances):
        assert encoder.config.frames(len(samples_T)) == hidden_LFD.shape[1]
        # Without padding, one of them: each shape is compiled anew, and the product never makes this one.
        for length in {lib.bucket(len(samples_T)), *([] if number else [len(samples_T)])}:
            assert worst(encoder, [samples_T], [hidden_LFD], length) < TOLERANCE
    longest = max(len(samples_T) for samples_T, _ in utterances)
    print(f"{name}: {worst(encoder, *zip(*utterances, strict=True), lib.bucket(longest)):.1e}")
    assert worst(encoder, *zip(*utterances, strict=True), lib.bucket(longest)) < TOLERANCE


@pytest.mark.parametrize("name", NAMES)
def test_features_do_not_depend_on_neighbours_or_their_number(name):
    encoder = imported(name)
    sounds = [samples_T for samples_T, _ in reference(name)]
    alone = [encoder.features([samples_T])[0] for samples_T in sounds]
    for got, want in zip(encoder.features([*sounds, *sounds[::-1]]), [*alone, *alone[::-1]], strict=True):
        assert (got == want).all()
    for got, want, (_, hidden_LFD) in zip(encoder.features(sounds, rows=4), alone, reference(name), strict=True):
        np.testing.assert_allclose(got, want, atol=1e-5 * np.abs(hidden_LFD).max())


@pytest.mark.parametrize("name", NAMES)
def test_a_tapped_layer_is_that_layer_and_no_more_is_imported(name):
    whole = imported(name)
    hidden = reference(name)[0][1]
    for layer in range(hidden.shape[0]):
        tapped = import_encoder(FIXTURES / name, layer).encoder
        got = tapped.features([reference(name)[0][0]])[0]
        assert np.abs(got - hidden[layer]).max() < TOLERANCE * np.abs(hidden[layer]).max()
    first = import_encoder(FIXTURES / name, 1).encoder
    assert sum(x.size for x in first.params.values()) < sum(x.size for x in whole.params.values())


@pytest.mark.parametrize("name", NAMES)
def test_random_parameters_have_the_names_and_shapes_of_imported_ones(name):
    encoder = imported(name)
    random = lib.Encoder(encoder.config, lib.init(encoder.config, 0))
    assert np.isfinite(random.features([reference(name)[0][0]])[0]).all()
    assert jax.tree.map(np.shape, dict(random.params)) == jax.tree.map(np.shape, dict(encoder.params))
