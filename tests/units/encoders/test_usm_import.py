"""What the importers of the audio towers of Gemma 3n and Gemma 4 take, leave out and refuse."""

import collections
import json
import math
import pathlib
import shutil

import numpy as np
import pytest
import safetensors.numpy

from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Fields
from xretrieval.units.encoders import encoder as lib
from xretrieval.units.encoders import usm_gemma3n, usm_gemma4
from xretrieval.units.encoders.pretrained import import_encoder

FIXTURES = pathlib.Path(__file__).parents[2] / "data/parity/encoders"


@pytest.fixture
def copied(tmp_path):
    """Copies a fixture's model, to damage."""

    def copy(name):
        shutil.copytree(FIXTURES / name, tmp_path / name, ignore=shutil.ignore_patterns("reference.safetensors"))
        return tmp_path / name

    return copy


def change_json(path, **changes):
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def change_tensors(root, change):
    path = root / "model.safetensors"
    safetensors.numpy.save_file(change(safetensors.numpy.load_file(path)), path)


def assert_equal(encoder, other):
    assert encoder.config == other.config
    assert encoder.params.keys() == other.params.keys()
    assert all((x == other.params[name]).all() for name, x in encoder.params.items())


@pytest.mark.parametrize("name,kind", [("gemma3n_audio", "gemma3n"), ("gemma4_audio", "gemma4")])
@pytest.mark.parametrize("prefix", ["audio_tower.", "model.audio_tower."])
def test_a_tower_in_a_whole_model_is_the_tower_alone(copied, name, kind, prefix):
    root = copied(name)
    config = json.loads((root / "config.json").read_text())
    (root / "config.json").write_text(json.dumps({"model_type": kind, "audio_config": config, "text_config": {"hidden_size": 7}}))
    beside = ["language_model.embed_tokens.weight", "vision_tower.timm_model.blocks.0.0.bn1.weight", "embed_audio.embedding.weight"]
    others = {prefix.removesuffix("audio_tower.") + other: np.zeros(3, np.int8) for other in beside}
    change_tensors(root, lambda found: {prefix + tensor: x for tensor, x in found.items()} | others)
    whole, alone = import_encoder(root), import_encoder(FIXTURES / name)
    assert_equal(whole.encoder, alone.encoder)
    assert set(whole.left_out) == others.keys() | {prefix + tensor for tensor in alone.left_out}


def test_what_is_left_out():
    assert import_encoder(FIXTURES / "gemma3n_audio").left_out == ()
    assert import_encoder(FIXTURES / "gemma4_audio").left_out == ("output_proj.bias", "output_proj.weight")
    above = import_encoder(FIXTURES / "gemma3n_audio", layer=1).left_out
    assert collections.Counter(".".join(name.split(".")[:2]) for name in above) == {"conformer.1": 22, "conformer.2": 22}
    whole = import_encoder(FIXTURES / "gemma4", layer=1)
    kinds = collections.Counter(".".join(name.split(".")[:2]) for name in whole.left_out)
    assert kinds.keys() == {"model.audio_tower", "model.embed_audio", "model.embed_vision", "model.language_model", "model.vision_tower"}
    assert kinds["model.audio_tower"] == 62 + 2
    assert {x.dtype for x in whole.encoder.params.values()} == {np.dtype(np.float32)}


def test_settings_of_the_extractor_come_from_where_transformers_takes_them(copied):
    root = copied("gemma4_audio")
    alone = import_encoder(root).encoder
    settings = json.loads((root / "preprocessor_config.json").read_text())
    (root / "processor_config.json").write_text(json.dumps({"processor_class": "Gemma4Processor"}))
    assert_equal(import_encoder(root).encoder, alone)
    # Those inside the processor's come first.
    (root / "processor_config.json").write_text(json.dumps({"feature_extractor": settings}))
    change_json(root / "preprocessor_config.json", mel_floor=0.5)
    assert_equal(import_encoder(root).encoder, alone)
    (root / "preprocessor_config.json").unlink()
    assert_equal(import_encoder(root).encoder, alone)
    (root / "processor_config.json").unlink()
    with pytest.raises(UserError, match=r"preprocessor_config\.json: not there.*copy it too"):
        import_encoder(root)


@pytest.mark.parametrize(
    "source,kind,width,parameters,tensors",
    # As transformers counts them; Gemma 4's without its output_proj, 1024 × 1536 + 1536, and with 480 scalars of bounds.
    [
        (usm_gemma3n, "Gemma3nAudioFeatureExtractor", 1536, 681_348_640, 269),
        (usm_gemma4, "Gemma4AudioFeatureExtractor", 1024, 304_824_608 - 1_574_400 + 480, 751 - 2),
    ],
)
def test_released_models_have_these_shapes(tmp_path, source, kind, width, parameters, tensors):
    # What is left out of a config.json has the values of the released models.
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"feature_extractor_type": kind}))
    config, layers = source.read_config(tmp_path, Fields(tmp_path / "config.json", {}, source.DEFAULTS), None)
    assert (layers, config.layer, config.width, config.frame_rate) == (12, 12, width, 25.0)
    assert sum(map(math.prod, lib.shapes(config).values())) == parameters
    outer, of_layer = list(source.outer(config)), list(source.of_layer(config))
    assert sum(len(s.names) for _, s in outer) + layers * sum(len(s.names) for _, s in of_layer) == tensors
    assert config.frames(160_000) == 250
    assert config.lookback == (12 if source is usm_gemma3n else 11)


ATTENTION3N, UP4 = "conformer.1.attention.attn", "layers.1.feed_forward1.ffw_layer_1"


@pytest.mark.parametrize(
    "name,change,message",
    [
        ("gemma3n_audio", {f"{ATTENTION3N}.per_dim_scale": None}, r"per_dim_scale is missing"),
        ("gemma3n_audio", {"subsample_conv_projection.input_proj_linear.weight": None}, r"input_proj_linear\.weight is missing"),
        ("gemma3n_audio", {f"{ATTENTION3N}.q_proj.weight": np.zeros((16, 8), np.float32)}, r"shape \[16, 8\], .* \[16, 16\]"),
        ("gemma3n_audio", {"conformer.3.norm.weight": np.zeros(16, np.float32)}, r"conformer\.3\.norm\.weight is not one of"),
        ("gemma3n_audio", {f"{ATTENTION3N}.q_proj.bias": np.zeros(16, np.float32)}, r"q_proj\.bias is not one of"),
        ("gemma3n_audio", {"language_model.norm.weight": np.zeros(3, np.float32)}, r"language_model\.norm\.weight is not one of"),
        ("gemma3n_audio", {f"{ATTENTION3N}.per_dim_scale": np.zeros(8, np.int32)}, r"per_dim_scale is I32"),
        ("gemma4_audio", {f"{UP4}.output_max": None}, r"output_max is missing"),
        ("gemma4_audio", {f"{UP4}.input_min": np.zeros(1, np.float32)}, r"input_min has shape \[1\]"),
        ("gemma4", {"model.audio_tower.pooler.weight": np.zeros(3, np.float32)}, r"pooler\.weight is not one of"),
        ("gemma4", {"model.projector.weight": np.zeros(3, np.float32)}, r"model\.projector\.weight is not one of"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(copied, name, change, message):
    root = copied(name)
    change_tensors(root, lambda found: {tensor: x for tensor, x in (found | change).items() if x is not None})
    with pytest.raises(UserError, match=message):
        import_encoder(root)


def test_bounds_that_config_does_not_name_are_refused(copied):
    root = copied("gemma4_audio")
    change_json(root / "config.json", use_clipped_linears=False)
    with pytest.raises(UserError, match=r"input_max is not one of"):
        import_encoder(root)
    change_tensors(root, lambda found: {name: x for name, x in found.items() if not name.endswith(("_min", "_max"))})
    without = import_encoder(root).encoder
    assert not any("bounds" in name for name in without.params)
    sounds = [safetensors.numpy.load_file(FIXTURES / "gemma4_audio/reference.safetensors")["samples.0"]]
    assert np.abs(without.features(sounds)[0] - import_encoder(FIXTURES / "gemma4_audio").encoder.features(sounds)[0]).max() > 0.1


@pytest.mark.parametrize(
    "name,changes",
    [
        ("gemma3n_audio", {"sscp_conv_kernel_size": [[5, 3], [3, 3]]}),
        ("gemma3n_audio", {"sscp_conv_stride_size": [[2, 2], [1, 2]]}),
        ("gemma3n_audio", {"sscp_conv_channel_size": [8]}),
        ("gemma3n_audio", {"input_feat_size": 80}),
        ("gemma3n_audio", {"conf_attention_context_right": 1}),
        ("gemma3n_audio", {"conf_attention_context_left": 0}),
        ("gemma3n_audio", {"conf_num_hidden_layers": 0}),
        ("gemma3n_audio", {"gradient_clipping": -1.0}),
        ("gemma4_audio", {"hidden_act": "gelu"}),
        ("gemma4_audio", {"hidden_size": 15}),
        ("gemma4_audio", {"attention_context_left": 13}),
        ("gemma4_audio", {"attention_context_right": 1}),
        ("gemma4_audio", {"attention_invalid_logits_value": -10.0}),
        ("gemma4_audio", {"use_clipped_linears": None}),
        ("gemma4_audio", {"subsampling_conv_channels": [64, 6]}),
        ("gemma4", {"audio_config": None}),
    ],
    ids=str,
)
def test_fields_that_cannot_be_followed_are_refused(copied, name, changes):
    root = copied(name)
    change_json(root / "config.json", **changes)
    with pytest.raises(UserError, match=rf"config\.json: {next(iter(changes))} = "):
        import_encoder(root)


@pytest.mark.parametrize(
    "changes",
    [
        {"feature_extractor_type": "Gemma4AudioFeatureExtractor"},
        {"sampling_rate": 8000},
        {"dither": 1e-4},
        {"preemphasis_htk_flavor": False},
        {"frame_length": 400},
        {"fft_length": 512},
        {"max_frequency": 8001.0},
        {"min_frequency": 7600.0, "max_frequency": 7600.0},
        {"mel_floor": 0.0},
        {"per_bin_mean": [0.0] * 127},
        {"per_bin_stddev": [0.0] * 128},
        {"per_bin_mean": "mean"},
    ],
    ids=str,
)
def test_an_extractor_that_cannot_be_followed_is_refused(copied, changes):
    root = copied("gemma3n_audio")
    change_json(root / "preprocessor_config.json", **changes)
    with pytest.raises(UserError, match=rf"preprocessor_config\.json: {list(changes)[-1]} = "):
        import_encoder(root)


@pytest.mark.parametrize("layer", [-1, 4, 1.0, True])
def test_a_layer_that_is_not_there_is_refused(layer):
    with pytest.raises(UserError, match="has 3 layers; tap one of 0 to 3"):
        import_encoder(FIXTURES / "gemma3n_audio", layer)
