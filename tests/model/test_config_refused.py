"""A config.json that cannot be followed exactly is refused, by field."""

import huggingface_folders as hf
import pytest

from xretrieval.errors import UserError
from xretrieval.model.huggingface_config import read_config

BIDIRECTIONAL = {"use_bidirectional_attention": True}
LOCAL, GLOBAL = "sliding_attention", "full_attention"


@pytest.mark.parametrize(
    "config,message",
    [
        ({"hidden_size": 16}, "the field model_type is missing"),
        ([1], "config.json: it has no fields"),
        ({"model_type": "llama"}, "model_type = llama: supported are gemma, gemma2"),
        ({"model_type": "qwen3_moe"}, "model_type = qwen3_moe: supported are"),
        ({"model_type": "gemma3n"}, "model_type = gemma3n: not supported yet"),
        ({"model_type": "gemma4"}, "model_type = gemma4: not supported yet"),
        ({"model_type": "gemma4_text"}, "two vocabulary-indexed tables"),
        ({"model_type": "embedding_gemma2"}, "two vocabulary-indexed tables"),
        ({"model_type": "gemma3"}, "text_config: fields of model_type gemma3_text are needed"),
        ({"model_type": "gemma3", "text_config": {"model_type": "llama"}}, "text_config: fields of model_type gemma3_text"),
        (
            {"model_type": "gemma3", "text_config": {**hf.GEMMA3, "hidden_activation": "relu"}},
            "text_config.hidden_activation = relu: only gelu_pytorch_tanh",
        ),
        (hf.QWEN3 | {"quantization_config": {"bits": 4}}, "quantization_config: quantised models are not supported"),
        (hf.QWEN3 | {"attention_bias": True}, "attention_bias = True: only False is supported"),
        (hf.GEMMA | {"mlp_bias": True}, "mlp_bias = True: only False"),
        (hf.QWEN3 | {"use_sliding_window": True}, "use_sliding_window = True: only False"),
        (hf.QWEN3 | {"layer_types": [GLOBAL, GLOBAL, LOCAL]}, "layer_types = .*: only 3 times full_attention is supported in qwen3"),
        (hf.QWEN3 | {"is_causal": False}, "is_causal = False: only True"),
        (hf.QWEN3 | {"hidden_act": "gelu"}, "hidden_act = gelu: only silu is supported in qwen3"),
        (hf.GEMMA | {"hidden_act": "silu"}, "hidden_act = silu: only gelu_pytorch_tanh or gelu"),
        (hf.GEMMA | {"hidden_activation": "gelu"}, "hidden_activation = gelu: only gelu_pytorch_tanh"),
        (hf.GEMMA | BIDIRECTIONAL, "use_bidirectional_attention = True: only False"),
        (hf.GEMMA2 | BIDIRECTIONAL, "use_bidirectional_attention = True: only False"),
        (hf.GEMMA2 | {"hidden_activation": "gelu"}, "hidden_activation = gelu: only gelu_pytorch_tanh is supported in gemma2"),
        (hf.GEMMA3 | {"attn_logit_softcapping": 50.0}, "attn_logit_softcapping = 50.0: only 0.0"),
        (hf.GEMMA3 | {"use_bidirectional_attention": "vision"}, "use_bidirectional_attention = vision: only true and false"),
        (hf.GEMMA3 | BIDIRECTIONAL | {"sliding_window": 257}, "sliding_window = 257: odd, so it may be half of 512"),
        (hf.GEMMA3 | {"sliding_window": None}, "sliding_window = None: a whole number above 0 is needed"),
        (
            hf.GEMMA3 | {"layer_types": [LOCAL, GLOBAL, GLOBAL]},
            "layer_types = .*: layer 2 is full_attention, but 1 local layers precede each global one",
        ),
        (hf.GEMMA3 | {"layer_types": [GLOBAL, GLOBAL, LOCAL]}, "layer_types = .*: layer 2 is sliding_attention"),
        (hf.GEMMA3 | {"layer_types": [LOCAL, GLOBAL]}, "layer_types = .*: full_attention or sliding_attention for each of 3 layers"),
        (hf.GEMMA2 | {"layer_types": [LOCAL, "chunked_attention", LOCAL]}, "layer_types = .*chunked"),
        (hf.QWEN3 | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}}, "rope_scaling.rope_type = yarn: only default and linear"),
        (hf.GEMMA | {"rope_scaling": {"type": "llama3", "factor": 4.0}}, "rope_scaling.rope_type = llama3"),
        (hf.GEMMA | {"rope_scaling": {"type": "linear"}}, "rope_scaling.factor = None: a number above 0"),
        (hf.GEMMA | {"rope_scaling": {"type": "linear", "factor": 0}}, "rope_scaling.factor = 0: a number above 0"),
        (hf.GEMMA | {"rope_theta": None}, "rope_theta = None: a number above 0"),
        (hf.GEMMA | {"rope_scaling": 3}, "rope_scaling = 3: fields in braces"),
        (hf.GEMMA2 | {"rope_scaling": {"type": "linear", "factor": 2.0}}, "rope_scaling.factor = 2.0: positions of local layers"),
        (
            hf.GEMMA3_NEW | {"rope_parameters": {LOCAL: {"rope_type": "linear", "factor": 8.0, "rope_theta": 1e4}}},
            "rope_parameters.sliding_attention.factor = 8.0: positions of local layers",
        ),
        (hf.GEMMA3_NEW | {"rope_parameters": {GLOBAL: {"rope_type": "longrope"}}}, "rope_parameters.full_attention.rope_type = longrope"),
        (hf.GEMMA3_NEW | {"rope_parameters": {"rope_theta": 1e6}}, "rope_parameters = .*: gemma3_text has them a kind of layer"),
        (hf.GEMMA3_NEW | {"rope_theta": 1e6}, "rope_theta = 1000000.0: rope_parameters say it too"),
        (
            {**hf.SIZES, "model_type": "gemma", "rope_parameters": {GLOBAL: {"rope_theta": 1e4}}},
            "rope_parameters = .*: gemma has them once",
        ),
        (
            {**hf.SIZES, "model_type": "gemma", "rope_parameters": {"rope_theta": 1e4, "partial_rotary_factor": 0.5}},
            "partial_rotary_factor = 0.5",
        ),
        (hf.QWEN3 | {"partial_rotary_factor": 0.5}, "partial_rotary_factor = 0.5: only 1.0"),
        (hf.GEMMA | {"hidden_size": None}, "hidden_size = None: a whole number above 0"),
        (hf.GEMMA | {"num_hidden_layers": 0}, "num_hidden_layers = 0: a whole number above 0"),
        (hf.GEMMA | {"vocab_size": 2.5}, "vocab_size = 2.5: a whole number above 0"),
        (hf.GEMMA | {"vocab_size": True}, "vocab_size = True: a whole number above 0"),
        (hf.GEMMA | {"rms_norm_eps": "small"}, "rms_norm_eps = small: a number above 0"),
        (hf.GEMMA3 | {"query_pre_attn_scalar": 0}, "query_pre_attn_scalar = 0: a number above 0"),
        (hf.GEMMA | {"num_key_value_heads": 3}, "heads = 4 is not a multiple of .*kv_heads = 3"),
    ],
)
def test_a_config(tmp_path, config, message):
    hf.write_json(tmp_path / "config.json", config)
    with pytest.raises(UserError, match=message) as error:
        read_config(tmp_path / "config.json")
    assert "config.json" in str(error.value) or "TowerConfig" in str(error.value)
