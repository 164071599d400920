"""What is particular to w2v-BERT: its features, its mechanisms, and what its importer takes and refuses. Parity is in test_encoder_parity.py."""

import dataclasses
import json
import math
import os
import pathlib
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders import files, w2v_bert_network
from xretrieval.units.encoders.pretrained import import_encoder
from xretrieval.units.encoders.w2v_bert_network import stacked_fbank

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"
FIXTURE = FIXTURES / "w2v_bert"
ATTENTION = "encoder.layers.1.self_attn"
# Names and shapes in the released file, facebook/w2v-bert-2.0: of the first tensors, and of each of its 24 layers.
RELEASED = {
    "masked_spec_embed": (1024,),
    "feature_projection.layer_norm.weight": (160,),
    "feature_projection.layer_norm.bias": (160,),
    "feature_projection.projection.weight": (1024, 160),
    "feature_projection.projection.bias": (1024,),
}
RELEASED_LAYER = {
    **{f"{norm}.{part}": (1024,) for norm in ("ffn1_layer_norm", "self_attn_layer_norm", "ffn2_layer_norm") for part in ("weight", "bias")},
    **{f"{mlp}.intermediate_dense.weight": (4096, 1024) for mlp in ("ffn1", "ffn2")},
    **{f"{mlp}.intermediate_dense.bias": (4096,) for mlp in ("ffn1", "ffn2")},
    **{f"{mlp}.output_dense.weight": (1024, 4096) for mlp in ("ffn1", "ffn2")},
    **{f"{mlp}.output_dense.bias": (1024,) for mlp in ("ffn1", "ffn2")},
    **{f"self_attn.linear_{name}.weight": (1024, 1024) for name in ("q", "k", "v", "out")},
    **{f"self_attn.linear_{name}.bias": (1024,) for name in ("q", "k", "v", "out")},
    "self_attn.distance_embedding.weight": (73, 64),
    **{f"conv_module.{norm}.{part}": (1024,) for norm in ("layer_norm", "depthwise_layer_norm") for part in ("weight", "bias")},
    "conv_module.pointwise_conv1.weight": (2048, 1024, 1),
    "conv_module.depthwise_conv.weight": (1024, 1, 31),
    "conv_module.pointwise_conv2.weight": (1024, 1024, 1),
    "final_layer_norm.weight": (1024,),
    "final_layer_norm.bias": (1024,),
}


@pytest.fixture(scope="module")
def reference():
    return safetensors.numpy.load_file(FIXTURE / "reference.safetensors")


@pytest.fixture
def folder(tmp_path):
    """A copy of the fixture's model, to damage."""
    root = tmp_path / "model"
    root.mkdir()
    for name in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copy(FIXTURE / name, root)
    return root


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(root, change):
    path = root / "model.safetensors"
    found = safetensors.numpy.load_file(path)
    change(found)
    safetensors.numpy.save_file(found, path)


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


def test_bfloat16_is_imported_as_float32(folder):
    whole = safetensors.numpy.load_file(folder / "model.safetensors")
    tensors.write(folder / "model.safetensors", {name: x.astype(jnp.bfloat16) for name, x in whole.items()})
    params = import_encoder(folder).encoder.params
    assert {x.dtype for x in params.values()} == {np.dtype(np.float32)}
    for name, x in import_encoder(FIXTURE).encoder.params.items():
        assert (params[name] == x.astype(jnp.bfloat16).astype(np.float32)).all()
        assert not (params[name] == x).all()


def test_what_is_left_out():
    assert import_encoder(FIXTURE).left_out == ("masked_spec_embed",)
    above = import_encoder(FIXTURE, layer=2).left_out
    assert len(above) == 1 + 32
    assert all(name.startswith(("masked_spec_embed", "encoder.layers.2.")) for name in above)
    outside = {
        name.split(".")[1] if name.startswith("wav2vec2_bert.") else name for name in import_encoder(FIXTURES / "w2v_bert_ctc").left_out
    }
    assert outside == {"masked_spec_embed", "adapter", "intermediate_ffn", "lm_head.weight", "lm_head.bias"}


def write_released(root):
    """The released model's folder with all of its tensors, zeros that take no space."""
    shapes = RELEASED | {f"encoder.layers.{i}.{name}": shape for i in range(24) for name, shape in RELEASED_LAYER.items()}
    header, end = {}, 0
    for name, shape in shapes.items():
        header[name] = {"dtype": "F32", "shape": shape, "data_offsets": [end, end + 4 * math.prod(shape)]}
        end += 4 * math.prod(shape)
    head = json.dumps(header).encode()
    with open(root / "model.safetensors", "wb") as file:
        file.write(len(head).to_bytes(8, "little") + head)
        os.truncate(file.fileno(), 8 + len(head) + end)
    (root / "config.json").write_text(
        json.dumps(
            {
                "model_type": "wav2vec2-bert",
                "hidden_size": 1024,
                "num_hidden_layers": 24,
                "num_attention_heads": 16,
                "intermediate_size": 4096,
                "feature_projection_input_dim": 160,
                "hidden_act": "swish",
                "layer_norm_eps": 1e-05,
                "position_embeddings_type": "relative_key",
                "left_max_position_embeddings": 64,
                "right_max_position_embeddings": 8,
                "conv_depthwise_kernel_size": 31,
                "add_adapter": False,
                "output_hidden_size": 1024,
            }
        )
    )
    shutil.copy(FIXTURE / "preprocessor_config.json", root)
    return sum(math.prod(shape) for shape in shapes.values())


def test_the_released_model_has_these_shapes(tmp_path):
    assert write_released(tmp_path) == 580_493_120
    imported = import_encoder(tmp_path, layer=1)
    config = imported.encoder.config
    assert (config.width, config.frame_rate, config.frames(160_000)) == (1024, 50.0, 499)
    assert len(imported.left_out) == 1 + 23 * 32
    whole = lib.shapes(dataclasses.replace(config, layer=24))
    assert sum(map(math.prod, whole.values())) == 580_493_120 - 1024
    # What is left out of a config.json has the values of the released model.
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "wav2vec2-bert"}))
    assert import_encoder(tmp_path, layer=0).encoder.config == dataclasses.replace(config, layer=0)


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda found: found.pop(f"{ATTENTION}.linear_q.bias"), r"self_attn\.linear_q\.bias is missing"),
        (lambda found: found.pop("feature_projection.projection.weight"), r"feature_projection\.projection\.weight is missing"),
        (lambda found: found.update({"quantizer.codevectors": np.zeros(3, np.float32)}), r"quantizer\.codevectors is not one of"),
        (lambda found: found.update({"lm_head.weight": np.zeros(3, np.float32)}), r"lm_head\.weight is not one of"),
        (lambda found: found.update({f"{ATTENTION}.pos_bias_u": np.zeros(3, np.float32)}), r"pos_bias_u is not one of"),
        (lambda found: found.update({"encoder.layers.3.ffn1.output_dense.bias": np.zeros(16, np.float32)}), r"layers\.3\.ffn1"),
        (
            lambda found: found.update({f"{ATTENTION}.distance_embedding.weight": np.zeros((14, 8), np.float32)}),
            r"shape \[14, 8\], .*\[15, 8\]",
        ),
        (lambda found: found.update({f"{ATTENTION}.linear_q.bias": np.zeros(16, np.int32)}), r"linear_q\.bias is I32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(folder, change, message):
    change_tensors(folder, change)
    with pytest.raises(UserError, match=message):
        import_encoder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"position_embeddings_type": "relative"},
        {"position_embeddings_type": "rotary"},
        {"position_embeddings_type": None},
        {"hidden_act": "gelu"},
        {"feature_projection_input_dim": 80},
        {"num_attention_heads": 3},
        {"left_max_position_embeddings": -1},
        {"layer_norm_eps": "small"},
    ],
    ids=str,
)
def test_fields_that_cannot_be_followed_are_refused(folder, changes):
    change_json(folder / "config.json", **changes)
    with pytest.raises(UserError, match=rf"config\.json: {next(iter(changes))} = {next(iter(changes.values()))}: "):
        import_encoder(folder)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_extractor_type": "Wav2Vec2FeatureExtractor"},
        {"sampling_rate": 8000},
        {"num_mel_bins": 40},
        {"stride": 1},
        {"padding_side": "left"},
        {"return_attention_mask": False},
    ],
    ids=str,
)
def test_an_extractor_that_cannot_be_followed_is_refused(folder, changes):
    change_json(folder / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: {next(iter(changes))} = "):
        import_encoder(folder)


def test_a_folder_without_its_extractor_is_refused(folder):
    (folder / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json: .*copy it too"):
        import_encoder(folder)


@pytest.mark.parametrize("layer", [-1, 4, True, "2"])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(UserError, match=rf"layer = {layer!r}: .* has 3 layers"):
        import_encoder(FIXTURE, layer=layer)
