"""What w2v-BERT's importer takes, leaves out and refuses."""

import dataclasses
import json
import math
import os
import pathlib
import shutil

import jax.numpy as jnp
import numpy as np
import pytest
import safetensors.numpy

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders.pretrained import import_encoder

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
