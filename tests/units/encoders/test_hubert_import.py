"""What the importer of HuBERT and wav2vec 2.0 takes, leaves out and refuses."""

import json
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.units.encoders.pretrained import import_encoder

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"
POSITIONS = "encoder.pos_conv_embed.conv"
NEW, OLD = [f"{POSITIONS}.parametrizations.weight.original{i}" for i in (0, 1)], [f"{POSITIONS}.weight_{x}" for x in "gv"]


def copied(root, name="hubert_base"):
    """A copy of the fixture's model, to damage."""
    root.mkdir(exist_ok=True)
    for file in ("config.json", "preprocessor_config.json", "model.safetensors"):
        shutil.copy(FIXTURES / name / file, root)
    return root


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(root, change):
    found = safetensors.numpy.load_file(root / "model.safetensors")
    change(found)
    safetensors.numpy.save_file(found, root / "model.safetensors")


def same_params(first, second):
    assert first.keys() == second.keys()
    assert all((first[name] == second[name]).all() for name in first)


def test_both_spellings_of_the_weight_norm_are_one(tmp_path):
    for name, before, after in (("hubert_base", NEW, OLD), ("wav2vec2_base", OLD, [f"wav2vec2.{name}" for name in NEW])):
        before = [f"wav2vec2.{old}" for old in before] if name == "wav2vec2_base" else before
        root = copied(tmp_path / name, name)
        change_tensors(
            root, lambda found, pairs=zip(before, after, strict=True): [found.update({new: found.pop(old)}) for old, new in pairs]
        )
        same_params(import_encoder(root).encoder.params, import_encoder(FIXTURES / name).encoder.params)


def test_the_weight_norm_is_folded(tmp_path):
    root = copied(tmp_path / "model")
    found = safetensors.numpy.load_file(root / "model.safetensors")
    length_11P, direction_FDP = (found[name].astype(np.float64) for name in NEW)
    want_PDF = np.stack([length_11P[0, 0, p] * direction_FDP[:, :, p].T / np.linalg.norm(direction_FDP[:, :, p]) for p in range(15)])
    np.testing.assert_allclose(import_encoder(root).encoder.params["positions.weight_PDF"], want_PDF, rtol=1e-6)


def test_bfloat16_is_imported_as_float32(tmp_path):
    root = copied(tmp_path / "model")
    whole = safetensors.numpy.load_file(root / "model.safetensors")
    tensors.write(root / "model.safetensors", {name: x.astype(jnp.bfloat16) for name, x in whole.items()})
    rounded, exact = import_encoder(root).encoder.params, import_encoder(FIXTURES / "hubert_base").encoder.params
    assert {x.dtype for x in rounded.values()} == {np.dtype(np.float32)}
    name = "layers.up.weight_DF"
    assert (rounded[name] == exact[name].astype(jnp.bfloat16).astype(np.float32)).all()
    assert not (rounded[name] == exact[name]).all()


def test_what_is_left_out():
    assert import_encoder(FIXTURES / "hubert_base").left_out == ("masked_spec_embed",)
    above = import_encoder(FIXTURES / "hubert_base", layer=2).left_out
    assert len(above) == 1 + 16
    assert all(name.startswith(("masked_spec_embed", "encoder.layers.2.")) for name in above)
    wanted = {
        "hubert_large": {"hubert.encoder.layer_norm", "hubert.masked_spec_embed", "lm_head"},
        "wav2vec2_base": {"wav2vec2.masked_spec_embed", "project_hid", "project_q", "quantizer.codevectors", "quantizer.weight_proj"},
        "xlsr": {"encoder.layer_norm", "masked_spec_embed", "adapter.layers.0.conv"},
    }
    for name, outside in wanted.items():
        left_out = import_encoder(FIXTURES / name).left_out
        assert {inside.removesuffix(".weight").removesuffix(".bias") for inside in left_out} == outside


def test_a_config_without_fields_has_the_published_defaults(tmp_path):
    # The numbers of hubert-base-ls960 and wav2vec2-base; a tensor of theirs is asked for, which this file has in another shape.
    for kind in ("hubert", "wav2vec2"):
        root = copied(tmp_path / kind)
        (root / "config.json").write_text(json.dumps({"model_type": kind}))
        with pytest.raises(UserError, match=r"conv_layers\.0\.conv\.weight has shape \[6, 1, 10\], config.json wants \[512, 1, 10\]"):
            import_encoder(root)


def test_wav2vec2_has_the_norm_of_the_projection_whatever_the_field_says(tmp_path):
    root = copied(tmp_path / "model", "xlsr")
    change_json(root / "config.json", feat_proj_layer_norm=False)
    same_params(import_encoder(root).encoder.params, import_encoder(FIXTURES / "xlsr").encoder.params)


def test_a_bias_that_the_norm_over_the_utterance_takes_away_is_left_out(tmp_path):
    root = copied(tmp_path / "model")
    change_json(root / "config.json", conv_bias=True)
    names = [f"feature_extractor.conv_layers.{i}.conv.bias" for i in range(7)]
    widths = [6, 8, 8, 8, 8, 8, 10]
    change_tensors(root, lambda found: found.update({name: np.ones(n, np.float32) for name, n in zip(names, widths, strict=True)}))
    imported = import_encoder(root)
    assert imported.left_out == (names[0], "masked_spec_embed")
    assert all(f"frontend.convolutions.{i}.bias_F" in imported.encoder.params for i in range(1, 7))


@pytest.mark.parametrize(
    "change,message",
    [
        (lambda found: found.pop("encoder.layers.1.attention.q_proj.bias"), r"layers\.1\.attention\.q_proj\.bias is missing"),
        (lambda found: found.pop("feature_extractor.conv_layers.3.conv.weight"), r"conv_layers\.3\.conv\.weight is missing"),
        (lambda found: found.pop(NEW[0]), r"weight\.original0 is missing"),
        (lambda found: found.pop("encoder.layer_norm.bias"), r"encoder\.layer_norm\.bias is missing"),
        (lambda found: found.update({OLD[0]: np.ones((1, 1, 15), np.float32)}), r"weight_g is not one of"),
        (lambda found: found.update({"lm_head.weight": np.zeros(3, np.float32)}), r"lm_head\.weight is not one of"),
        (lambda found: found.update({"encoder.layers.3.layer_norm.bias": np.zeros(16, np.float32)}), r"layers\.3\.layer_norm"),
        (lambda found: found.update({"encoder.layers.1.adapter_layer.norm.bias": np.zeros(16, np.float32)}), r"adapter_layer"),
        (
            lambda found: found.update({"feature_projection.layer_norm.bias": np.zeros(10, np.float32)}),
            r"projection\.layer_norm\.bias is not",
        ),
        (lambda found: found.update({NEW[1]: np.zeros((16, 4, 16), np.float32)}), r"shape \[16, 4, 16\], .*\[16, 4, 15\]"),
        (lambda found: found.update({"encoder.layer_norm.bias": np.zeros(16, np.int32)}), r"layer_norm\.bias is I32"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(tmp_path, change, message):
    root = copied(tmp_path / "model")
    change_tensors(root, change)
    with pytest.raises(UserError, match=message):
        import_encoder(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"conv_pos_batch_norm": True},
        {"adapter_attn_dim": 16},
        {"hidden_act": "relu"},
        {"feat_extract_activation": "gelu_new"},
        {"feat_extract_norm": "batch"},
        {"do_stable_layer_norm": "yes"},
        {"conv_bias": None},
        {"feat_proj_layer_norm": 1},
        {"conv_dim": 512},
        {"conv_kernel": [10, 3, 3]},
        {"conv_stride": [5, 2, 2, 2, 2, 2, 0]},
        {"num_attention_heads": 3},
        {"num_conv_pos_embedding_groups": 5},
        {"layer_norm_eps": -1},
    ],
    ids=str,
)
def test_fields_that_cannot_be_followed_are_refused(tmp_path, changes):
    root = copied(tmp_path / "model")
    change_json(root / "config.json", **changes)
    with pytest.raises(UserError, match=rf"config\.json: {next(iter(changes))} = .*: "):
        import_encoder(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_extractor_type": "SeamlessM4TFeatureExtractor"},
        {"sampling_rate": 8000},
        {"feature_size": 80},
        {"padding_side": "left"},
        {"do_normalize": 1},
    ],
    ids=str,
)
def test_an_extractor_that_cannot_be_followed_is_refused(tmp_path, changes):
    root = copied(tmp_path / "model")
    change_json(root / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: {next(iter(changes))} = "):
        import_encoder(root)


def test_a_folder_without_its_extractor_is_refused(tmp_path):
    root = copied(tmp_path / "model")
    (root / "preprocessor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json: .*copy it too"):
        import_encoder(root)


@pytest.mark.parametrize("layer", [-1, 4, True, "2"])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(UserError, match=rf"layer = {layer!r}: .* has 3 layers"):
        import_encoder(FIXTURES / "hubert_base", layer=layer)
