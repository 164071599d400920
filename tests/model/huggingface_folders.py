"""Hugging Face folders as releases have them, written without torch: config.json, tensors, tokenizer."""

import json
import math
import struct

import numpy as np
import safetensors.numpy
from tokenizers import Tokenizer, models, pre_tokenizers, processors

ROWS = 300  # of the text table: more than the 258 tokens of the tokenizer
SIZES = {"hidden_size": 16, "intermediate_size": 24, "num_hidden_layers": 3, "num_attention_heads": 4, "num_key_value_heads": 2}
SIZES |= {"head_dim": 8, "vocab_size": ROWS, "rms_norm_eps": 1e-6, "max_position_embeddings": 64}
GEMMA = {**SIZES, "model_type": "gemma", "hidden_act": "gelu", "rope_theta": 100.0}
GEMMA2 = {**SIZES, "model_type": "gemma2", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 12, "sliding_window": 4}
GEMMA2 |= {"attn_logit_softcapping": 1.5, "final_logit_softcapping": 30.0, "rope_theta": 100.0}
GEMMA3 = {**SIZES, "model_type": "gemma3_text", "hidden_activation": "gelu_pytorch_tanh", "query_pre_attn_scalar": 12, "sliding_window": 4}
GEMMA3 |= {
    "sliding_window_pattern": 3,
    "rope_theta": 1000.0,
    "rope_local_base_freq": 10.0,
    "rope_scaling": {"rope_type": "linear", "factor": 4.0},
}
GEMMA3_NEW = {k: v for k, v in GEMMA3.items() if not k.startswith("rope") and k != "sliding_window_pattern"}
GEMMA3_NEW |= {
    "layer_types": ["sliding_attention", "sliding_attention", "full_attention"],
    "dtype": "bfloat16",
    "rope_parameters": {
        "full_attention": {"rope_type": "linear", "factor": 4.0, "rope_theta": 1000.0},
        "sliding_attention": {"rope_type": "default", "rope_theta": 10.0},
    },
}
QWEN3 = {**SIZES, "model_type": "qwen3", "hidden_act": "silu", "rope_theta": 1000.0, "attention_bias": False, "tie_word_embeddings": False}
QWEN3 |= {"use_sliding_window": False, "sliding_window": None, "max_window_layers": 3, "rope_scaling": None}
LAYER = {
    "self_attn.q_proj": lambda c: (c["num_attention_heads"] * c["head_dim"], c["hidden_size"]),
    "self_attn.k_proj": lambda c: (c["num_key_value_heads"] * c["head_dim"], c["hidden_size"]),
    "self_attn.v_proj": lambda c: (c["num_key_value_heads"] * c["head_dim"], c["hidden_size"]),
    "self_attn.o_proj": lambda c: (c["hidden_size"], c["num_attention_heads"] * c["head_dim"]),
    "mlp.gate_proj": lambda c: (c["intermediate_size"], c["hidden_size"]),
    "mlp.up_proj": lambda c: (c["intermediate_size"], c["hidden_size"]),
    "mlp.down_proj": lambda c: (c["hidden_size"], c["intermediate_size"]),
    "input_layernorm": lambda c: (c["hidden_size"],),
    "post_attention_layernorm": lambda c: (c["hidden_size"],),
}
POST_NORMS = {name: lambda c: (c["hidden_size"],) for name in ("pre_feedforward_layernorm", "post_feedforward_layernorm")}
QK_NORMS = {f"self_attn.{name}": lambda c: (c["head_dim"],) for name in ("q_norm", "k_norm")}
IDENTITY = "torch.nn.modules.linear.Identity"


def shapes(config, prefix="model."):
    """Tensor -> shape, of the text model that a config with every size in it describes."""
    kind = config["model_type"]
    layer = LAYER | (POST_NORMS if kind in ("gemma2", "gemma3_text") else {}) | (QK_NORMS if kind in ("gemma3_text", "qwen3") else {})
    found = {
        f"{prefix}embed_tokens.weight": (config["vocab_size"], config["hidden_size"]),
        f"{prefix}norm.weight": (config["hidden_size"],),
    }
    for i in range(config["num_hidden_layers"]):
        found |= {f"{prefix}layers.{i}.{name}.weight": shape(config) for name, shape in layer.items()}
    return found


def random_tensors(shapes, dtype=np.float32, seed=0):
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items()}


def write_json(path, content):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))


def write_tokenizer(path, begin="", end="<eos>"):
    """Bytes as tokens, then <bos> 256 and <eos> 257."""
    vocabulary = {letter: i for i, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    tokenizer = Tokenizer(models.BPE({**vocabulary, "<bos>": 256, "<eos>": 257}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.add_special_tokens(["<bos>", "<eos>"])
    template = " ".join(part for part in (begin, "$A", end) if part)
    tokenizer.post_processor = processors.TemplateProcessing(template, special_tokens=[("<bos>", 256), ("<eos>", 257)])
    tokenizer.save(str(path))


def write_folder(folder, config, tensors, shards=1):
    """config.json, tensors in one file or in several with their index, tokenizer.json."""
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / "config.json", config)
    write_tokenizer(folder / "tokenizer.json", begin="<bos>", end="")
    if shards == 1:
        safetensors.numpy.save_file(tensors, folder / "model.safetensors", {"format": "pt"})
        return folder
    places = {}
    for k in range(shards):
        name = f"model-{k + 1:05}-of-{shards:05}.safetensors"
        part = {tensor: tensors[tensor] for tensor in sorted(tensors)[k::shards]}
        places |= dict.fromkeys(part, name)
        safetensors.numpy.save_file(part, folder / name, {"format": "pt"})
    write_json(folder / "model.safetensors.index.json", {"metadata": {}, "weight_map": places})
    return folder


def write_modules(folder, width, dense=(), pooling=None):
    """What sentence-transformers adds; `dense` are widths."""
    kinds = ["Transformer", "Pooling", *["Dense"] * len(dense), "Normalize"]
    paths = ["", *(f"{i}_{kind}" for i, kind in enumerate(kinds[1:], 1))]
    modules = [
        {"idx": i, "name": str(i), "path": p, "type": f"sentence_transformers.models.{k}"}
        for i, (k, p) in enumerate(zip(kinds, paths, strict=True))
    ]
    write_json(folder / "modules.json", modules)
    write_json(folder / "1_Pooling/config.json", pooling or {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True})
    heads = {}
    for i, (fan_in, fan_out) in enumerate(zip((width, *dense), dense, strict=False), 2):
        write_json(
            folder / f"{i}_Dense/config.json",
            {"in_features": fan_in, "out_features": fan_out, "bias": False, "activation_function": IDENTITY},
        )
        heads[f"dense.{i - 2}"] = random_tensors({"linear.weight": (fan_out, fan_in)}, seed=i)
        safetensors.numpy.save_file(heads[f"dense.{i - 2}"], folder / f"{i}_Dense/model.safetensors")
    write_json(
        folder / "config_sentence_transformers.json", {"prompts": {"query": "query: ", "document": ""}, "similarity_fn_name": "cosine"}
    )
    return heads


def write_empty(path, shapes, dtype="BF16", width=2):
    """A file with this header and nothing but a hole in it: the sizes of a release, on no disk."""
    record, place = {}, 0
    for name, shape in shapes.items():
        end = place + math.prod(shape) * width
        record[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [place, end]}
        place = end
    head = json.dumps(record).encode()
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(head)) + head)
        file.truncate(8 + len(head) + place)
