"""Importing an LLM: which tensor goes where, in both dialects, from one file or many."""

import dataclasses
import json

import huggingface_folders as hf
import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xretrieval import mesh as mesh_lib
from xretrieval.main import main
from xretrieval.model import directory, pretrained, tower
from xretrieval.model.huggingface_config import read_config

NEW_FLAT = {"rope_parameters": {"rope_type": "default", "rope_theta": 100.0}, "dtype": "float32"}
CONFIGS = {
    "gemma": hf.GEMMA,
    "gemma in new words": {k: v for k, v in hf.GEMMA.items() if k != "rope_theta"} | {"hidden_act": "gelu_pytorch_tanh"} | NEW_FLAT,
    "gemma2": hf.GEMMA2,
    "gemma2 in new words": {k: v for k, v in hf.GEMMA2.items() if k != "rope_theta"}
    | {"layer_types": ["sliding_attention", "full_attention", "sliding_attention"]}
    | NEW_FLAT,
    "gemma3": hf.GEMMA3,
    "gemma3 in new words": hf.GEMMA3_NEW,
    "qwen3": hf.QWEN3,
}
PLACES = {
    "blocks.attention.q.weight_DF": "self_attn.q_proj",
    "blocks.attention.k.weight_DF": "self_attn.k_proj",
    "blocks.attention.v.weight_DF": "self_attn.v_proj",
    "blocks.attention.o.weight_DF": "self_attn.o_proj",
    "blocks.mlp.gate.weight_DF": "mlp.gate_proj",
    "blocks.mlp.up.weight_DF": "mlp.up_proj",
    "blocks.mlp.down.weight_DF": "mlp.down_proj",
    "blocks.attention.q_norm.scale_D": "self_attn.q_norm",
    "blocks.attention.k_norm.scale_D": "self_attn.k_norm",
    "blocks.pre_attention_norm.scale_D": "input_layernorm",
    "blocks.post_mlp_norm.scale_D": "post_feedforward_layernorm",
}
# The same name stands for another norm where there are post-norms.
FOUR_NORMS = {"blocks.post_attention_norm.scale_D": "post_attention_layernorm", "blocks.pre_mlp_norm.scale_D": "pre_feedforward_layernorm"}
TWO_NORMS = {"blocks.pre_mlp_norm.scale_D": "post_attention_layernorm"}


def expected_params(config, tensors, prefix):
    """By NumPy, from the arrays that the test made."""
    places = PLACES | (FOUR_NORMS if config["model_type"] in ("gemma2", "gemma3_text") else TWO_NORMS)
    stacks = {
        ours: np.stack(
            [tensors[name].T for i in range(config["num_hidden_layers"]) if (name := f"{prefix}layers.{i}.{theirs}.weight") in tensors]
        )
        for ours, theirs in places.items()
        if f"{prefix}layers.0.{theirs}.weight" in tensors
    }
    table = tensors[f"{prefix}embed_tokens.weight"]
    table = np.concatenate([table, np.zeros((-len(table) % 128, table.shape[1]), table.dtype)])
    return stacks | {"embedding.text_VD": table, "final_norm.scale_D": tensors[f"{prefix}norm.weight"]}


def same(found, expected):
    assert found.keys() == expected.keys()
    for name, array in expected.items():
        assert found[name].dtype == array.dtype, name
        np.testing.assert_array_equal(found[name], array, err_msg=name)


def text_config(config):
    return config.get("text_config", config)


@pytest.mark.parametrize("name", CONFIGS)
@pytest.mark.parametrize("prefix,shards,dtype", [("model.", 1, jnp.bfloat16), ("", 3, np.float32)])
def test_every_tensor_is_where_it_belongs(tmp_path, name, prefix, shards, dtype):
    config = CONFIGS[name]
    tensors = hf.random_tensors(hf.shapes(config, prefix), dtype)
    hf.write_folder(tmp_path / "source", config, tensors, shards)
    pretrained.import_llm(str(tmp_path / "source"), str(tmp_path / "llm"))
    model = directory.read(tmp_path / "llm")
    same(model.params, expected_params(config, tensors, prefix))
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        abstract = jax.eval_shape(lambda: tower.init(model.config, 0))
    assert {name: x.shape for name, x in model.params.items()} == {name: x.shape for name, x in abstract.items()}
    assert model.config.pooling == ("last" if "qwen" in name else "mean")


@pytest.mark.parametrize("kind", ["gemma", "gemma2", "gemma3"])
def test_both_dialects_say_the_same_tower(tmp_path, kind):
    for name in (kind, f"{kind} in new words"):
        hf.write_json(tmp_path / f"{name}.json", CONFIGS[name])
    assert read_config(tmp_path / f"{kind}.json") == read_config(tmp_path / f"{kind} in new words.json")


def test_the_numbers_of_a_config(tmp_path):
    hf.write_json(tmp_path / "c.json", hf.GEMMA3)
    sizes = {"text_size": 300, "width": 16, "layers": 3, "heads": 4, "kv_heads": 2, "head_dim": 8, "mlp_hidden": 24, "max_positions": 64}
    gemma3 = tower.TowerConfig(**sizes, query_scale=12.0, window=4, global_every=3, rope_base=1000.0, rope_local_base=10.0, rope_factor=4.0)
    assert read_config(tmp_path / "c.json") == ("gemma3_text", gemma3)
    hf.write_json(tmp_path / "c.json", hf.GEMMA3 | {"use_bidirectional_attention": True, "sliding_window": 512})
    assert read_config(tmp_path / "c.json")[1] == dataclasses.replace(gemma3, window=257, causal=False)
    hf.write_json(tmp_path / "c.json", hf.GEMMA2)
    gemma2 = tower.TowerConfig(
        **sizes, qk_norm=False, query_scale=12.0, softcap=1.5, window=4, global_every=2, rope_base=100.0, rope_local_base=100.0
    )
    assert read_config(tmp_path / "c.json") == ("gemma2", gemma2)
    hf.write_json(tmp_path / "c.json", hf.GEMMA2 | {"attn_logit_softcapping": None, "layer_types": ["full_attention"] * 3})
    assert read_config(tmp_path / "c.json")[1] == dataclasses.replace(gemma2, softcap=0.0, window=0, global_every=1)
    hf.write_json(tmp_path / "c.json", hf.GEMMA)
    gemma = tower.TowerConfig(**sizes, qk_norm=False, post_norms=False, rope_base=100.0)
    assert read_config(tmp_path / "c.json") == ("gemma", gemma)
    hf.write_json(tmp_path / "c.json", hf.GEMMA | {"rope_scaling": {"type": "linear", "factor": 2}})
    assert read_config(tmp_path / "c.json")[1] == dataclasses.replace(gemma, rope_factor=2.0)
    hf.write_json(tmp_path / "c.json", hf.QWEN3 | {"num_key_value_heads": None})
    other = {"activation": "silu", "norm_plus_one": False, "post_norms": False, "scale_embedding": False, "pooling": "last"}
    assert read_config(tmp_path / "c.json") == ("qwen3", tower.TowerConfig(**{**sizes, "kv_heads": 4}, **other, rope_base=1000.0))


def test_fewer_layers_than_a_global_one_needs(tmp_path):
    hf.write_json(tmp_path / "c.json", hf.GEMMA3_NEW | {"layer_types": ["sliding_attention"] * 3})
    config = read_config(tmp_path / "c.json")[1]
    assert (config.global_every > 3, config.window) == (True, 4)


@pytest.mark.parametrize("prefix", ["language_model.model.", "model.language_model.", "language_model."])
def test_a_model_that_also_sees_leaves_that_out(tmp_path, capsys, prefix):
    text = hf.GEMMA3 | {"vocab_size": hf.ROWS}
    config = {"model_type": "gemma3", "text_config": text, "vision_config": {"hidden_size": 8}, "torch_dtype": "bfloat16"}
    tensors = hf.random_tensors(hf.shapes(text, prefix))
    vision = "model." if prefix.startswith("model.") else ""
    others = {f"{vision}vision_tower.vision_model.a.weight": (3,), f"{vision}vision_tower.vision_model.b.weight": (3, 4)}
    others |= {f"{vision}multi_modal_projector.mm_input_projection_weight": (3, 4), "language_model.lm_head.weight": (4, 4)}
    hf.write_folder(tmp_path / "source", config, tensors | hf.random_tensors(others))
    assert main(["import-llm", str(tmp_path / "source"), "--out", str(tmp_path / "llm")]) == 0
    printed = capsys.readouterr().out
    assert f"{vision}vision_tower.* (2 tensors)" in printed
    assert f"{vision}multi_modal_projector.* (1 tensors)" in printed
    assert "language_model.lm_head.weight" in printed
    same(directory.read(tmp_path / "llm").params, expected_params(text, tensors, prefix))
    assert json.loads((tmp_path / "llm/xretrieval.json").read_text())["source"]["family"] == "gemma3"


def test_a_sentence_transformers_folder(tmp_path):
    config = hf.GEMMA3 | {"use_bidirectional_attention": True, "sliding_window": 6}
    tensors = hf.random_tensors(hf.shapes(config, ""))
    source = hf.write_folder(tmp_path / "source", config, tensors)
    heads = hf.write_modules(source, 16, (24, 10))
    pretrained.import_llm(str(source), str(tmp_path / "llm"))
    model = directory.read(tmp_path / "llm")
    expected = {f"{name}.kernel_DE": head["linear.weight"].T for name, head in heads.items()}
    same(model.params, expected_params(config, tensors, "") | expected)
    assert (model.config.dense, model.config.embedding_width, model.config.pooling) == ((24, 10), 10, "mean")
    assert (model.config.causal, model.config.window) == (False, 4)
    assert model.prompts == {"query": "query: ", "document": ""}


@pytest.mark.parametrize(
    "pooling,expected",
    [
        ({"pooling_mode_mean_tokens": False, "pooling_mode_lasttoken": True}, "last"),
        ({"pooling_mode_mean_tokens": True, "pooling_mode_cls_token": False, "include_prompt": True}, "mean"),
        ({"pooling_mode": "lasttoken", "embedding_dimension": 16}, "last"),
        ({"pooling_mode": ["mean"]}, "mean"),
    ],
)
def test_pooling_is_what_the_folder_says(tmp_path, pooling, expected):
    config = hf.QWEN3 if expected == "mean" else hf.GEMMA
    source = hf.write_folder(tmp_path / "source", config, hf.random_tensors(hf.shapes(config)))
    hf.write_modules(source, 16, (), pooling)
    assert pretrained.open_llm(str(source)).config.pooling == expected
