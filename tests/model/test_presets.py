"""gin_configs/models/ against the released files: their config.json, the names and shapes of their tensors, their parameter counts."""

import dataclasses
import pathlib
import re

import gin
import huggingface_folders as hf
import jax
import pytest

from xretrieval import main
from xretrieval import mesh as mesh_lib
from xretrieval.model import pretrained, tower
from xretrieval.model.huggingface_weights import count
from xretrieval.train.trainable import TrainableConfig, split

ROOT = pathlib.Path(__file__).parents[2]
TOKENS = {"bos_token_id": 2, "eos_token_id": 1, "pad_token_id": 0, "initializer_range": 0.02, "use_cache": True, "attention_dropout": 0.0}
COMMON = {**TOKENS, "attention_bias": False, "rms_norm_eps": 1e-06, "head_dim": 256}
GEMMA2 = {
    **COMMON,
    "architectures": ["Gemma2ForCausalLM"],
    "attn_logit_softcapping": 50.0,
    "cache_implementation": "hybrid",
    "final_logit_softcapping": 30.0,
    "hidden_act": "gelu_pytorch_tanh",
    "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192,
    "model_type": "gemma2",
    "query_pre_attn_scalar": 256,
    "rope_theta": 10000.0,
    "sliding_window": 4096,
    "torch_dtype": "float32",
    "vocab_size": 256000,
}
GEMMA3 = {
    **COMMON,
    "attn_logit_softcapping": None,
    "final_logit_softcapping": None,
    "hidden_activation": "gelu_pytorch_tanh",
    "model_type": "gemma3_text",
    "query_pre_attn_scalar": 256,
    "rope_local_base_freq": 10000,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": 512,
    "torch_dtype": "bfloat16",
    "vocab_size": 262144,
}
QWEN3 = {
    "architectures": ["Qwen3ForCausalLM"],
    "attention_bias": False,
    "attention_dropout": 0.0,
    "bos_token_id": 151643,
    "eos_token_id": 151645,
    "head_dim": 128,
    "hidden_act": "silu",
    "hidden_size": 1024,
    "initializer_range": 0.02,
    "intermediate_size": 3072,
    "max_position_embeddings": 40960,
    "max_window_layers": 28,
    "model_type": "qwen3",
    "num_attention_heads": 16,
    "num_hidden_layers": 28,
    "num_key_value_heads": 8,
    "rms_norm_eps": 1e-06,
    "rope_scaling": None,
    "rope_theta": 1000000,
    "sliding_window": None,
    "tie_word_embeddings": True,
    "torch_dtype": "bfloat16",
    "use_cache": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def sizes(width, hidden, layers, heads, kv_heads):
    return {
        "hidden_size": width,
        "intermediate_size": hidden,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
    }


def pattern(layers):
    return {"_sliding_window_pattern": 6, "layer_types": ["full_attention" if i % 6 == 5 else "sliding_attention" for i in range(layers)]}


# Preset -> config.json as released, prefix of the names of its tensors, and the parameters that its authors count.
RELEASED = {
    "gemma_2b": (
        {
            **COMMON,
            **sizes(2048, 16384, 18, 8, 1),
            "architectures": ["GemmaForCausalLM"],
            "hidden_act": "gelu",
            "max_position_embeddings": 8192,
            "model_type": "gemma",
            "rope_scaling": None,
            "rope_theta": 10000.0,
            "torch_dtype": "bfloat16",
            "vocab_size": 256000,
        },
        "model.",
        2_506_172_416,
    ),
    "gemma2_2b": ({**GEMMA2, **sizes(2304, 9216, 26, 8, 4)}, "model.", 2_614_341_888),
    "gemma2_9b": ({**GEMMA2, **sizes(3584, 14336, 42, 16, 8), "sliding_window_size": 4096}, "model.", 9_241_705_984),
    "gemma3_270m": (
        {**GEMMA3, **sizes(640, 2048, 18, 4, 1), **pattern(18), "max_position_embeddings": 32768, "use_bidirectional_attention": False},
        "model.",
        268_098_176,
    ),
    "gemma3_1b": (
        {
            **GEMMA3,
            **sizes(1152, 6912, 26, 4, 1),
            "max_position_embeddings": 32768,
            "sliding_window_pattern": 6,
            "cache_implementation": "hybrid",
        },
        "model.",
        999_885_952,
    ),
    "gemma3_4b": (
        {
            "architectures": ["Gemma3ForConditionalGeneration"],
            "boi_token_index": 255999,
            "eoi_token_index": 256000,
            "eos_token_id": [1, 106],
            "image_token_index": 262144,
            "initializer_range": 0.02,
            "mm_tokens_per_image": 256,
            "model_type": "gemma3",
            "text_config": {
                "hidden_size": 2560,
                "intermediate_size": 10240,
                "model_type": "gemma3_text",
                "num_hidden_layers": 34,
                "rope_scaling": {"factor": 8.0, "rope_type": "linear"},
                "sliding_window": 1024,
            },
            "torch_dtype": "bfloat16",
            "vision_config": {"hidden_size": 1152, "image_size": 896, "model_type": "siglip_vision_model", "num_hidden_layers": 27},
        },
        "language_model.model.",
        # 4,300,079,472, less 416,866,032 of the vision tower and 2,950,272 of the projector.
        3_880_263_168,
    ),
    "embeddinggemma_300m": (
        {
            **GEMMA3,
            **sizes(768, 1152, 24, 3, 1),
            **pattern(24),
            "architectures": ["Gemma3TextModel"],
            "dtype": "float32",
            "max_position_embeddings": 2048,
            "use_bidirectional_attention": True,
        },
        "",
        302_863_104 + 2 * 768 * 3072,
    ),
    "qwen3_0p6b": (QWEN3, "model.", 596_049_920),
    "qwen3_embedding_0p6b": ({**QWEN3, "eos_token_id": 151643, "max_position_embeddings": 32768, "vocab_size": 151669}, "", 595_776_512),
}


def preset(name):
    main.configure("train", [f"gin_configs/models/{name}.gin"], [], [])
    return gin.get_configurable("TowerConfig")()


def whole_text_config(config):
    """With the sizes that a file leaves to the class."""
    text = config.get("text_config", config)
    return {"vocab_size": 262208, "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, **text}


def test_each_preset_has_its_release():
    assert sorted(RELEASED) == sorted(path.stem for path in (ROOT / "gin_configs/models").iterdir())


@pytest.mark.parametrize("name", RELEASED)
def test_a_preset_is_what_the_release_is_imported_as(tmp_path, name):
    config, prefix, parameters = RELEASED[name]
    hf.write_json(tmp_path / "config.json", config)
    tensors = hf.shapes(whole_text_config(config), prefix)
    if name == "gemma3_4b":
        tensors |= {"vision_tower.vision_model.embeddings.patch_embedding.weight": (1152, 3, 14, 14)}
        tensors |= {"multi_modal_projector.mm_soft_emb_norm.weight": (1152,)}
    hf.write_empty(tmp_path / "model.safetensors", tensors)
    if name == "embeddinggemma_300m":
        hf.write_modules(tmp_path, 768, (3072, 768))
    if name == "qwen3_embedding_0p6b":
        hf.write_modules(tmp_path, 1024, (), {"word_embedding_dimension": 1024, "pooling_mode_lasttoken": True, "include_prompt": True})
    llm = pretrained.open_llm(str(tmp_path))
    assert llm.config == preset(name)
    assert count(llm.weights.params, llm.config) == parameters
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        abstract = jax.eval_shape(lambda: tower.init(llm.config, 0))
    assert {name: blocks.shape for name, blocks in llm.weights.params.items()} == {name: x.shape for name, x in abstract.items()}


def test_qwen3_base_differs_in_length_alone(tmp_path):
    hf.write_json(tmp_path / "config.json", {**QWEN3, "eos_token_id": 151643, "max_position_embeddings": 32768})
    hf.write_empty(tmp_path / "model.safetensors", hf.shapes(QWEN3))
    assert pretrained.open_llm(str(tmp_path)).config == dataclasses.replace(preset("qwen3_0p6b"), max_positions=32768)


@pytest.mark.parametrize("name", RELEASED)
def test_a_preset_says_what_it_costs(name):
    comment = (ROOT / f"gin_configs/models/{name}.gin").read_text().split("\n\n")[0]
    parameters = RELEASED[name][2]
    assert f"({parameters:,})" in comment
    figures = [
        float(figure) for figure in re.search(r"float32: (\S+) GB of parameters and (\S+) GB of Adam's moments, (\S+) GB", comment).groups()
    ]
    assert figures == [float(f"{parameters * width / 1e9:.1f}") for width in (4, 8, 12)]
    assert "xretrieval import-llm " in comment
    assert "Licence: " in comment


IN_README = {
    "gemma3_270m": "Gemma 3 270M",
    "gemma3_1b": "Gemma 3 1B",
    "gemma3_4b": "Gemma 3 4B (text)",
    "embeddinggemma_300m": "EmbeddingGemma 300M",
    "gemma_2b": "Gemma 1 2B",
    "gemma2_2b": "Gemma 2 2B",
    "gemma2_9b": "Gemma 2 9B",
    "qwen3_0p6b": "Qwen3 0.6B",
    "qwen3_embedding_0p6b": "Qwen3-Embedding 0.6B",
}


@pytest.mark.parametrize("name", RELEASED)
def test_readme_says_what_each_way_of_training_costs(name):
    """Four bytes for each parameter and eight of moments for each that trains, with 1,024 units."""
    line = next(line for line in (ROOT / "README.md").read_text().splitlines() if line.startswith(f"| {IN_README[name]} |"))
    config = dataclasses.replace(preset(name), num_units=1024)
    figures = []
    with jax.set_mesh(mesh_lib.make_mesh(devices=jax.devices()[:1])):
        params = jax.eval_shape(lambda: tower.init(config, 0))
        for trainable in (TrainableConfig(), TrainableConfig("lora", lora_rank=8), TrainableConfig("units")):
            trained, frozen = jax.eval_shape(lambda params, t=trainable: split(t, config, params, 0), params)
            size, still = (sum(x.size for x in part.values()) for part in (trained, frozen))
            figures.append(f"{(12 * size + 4 * still) / 1e9:.1f} GB")
    total = sum(x.size for x in params.values())
    assert [cell.strip() for cell in line.split("|")[3:-1]] == [f"{total / 1e6:,.0f} M", *figures]
