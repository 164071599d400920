"""config.json of a released LLM to the numbers of a tower.

Two dialects are read: that of the released files (`rope_theta`, `rope_scaling`, `sliding_window_pattern`) and that of transformers 5
(`rope_parameters`, `layer_types`). A field that is not there has the value that transformers gives it. A field that the tower cannot follow
is refused by name: a model that is nearly the LLM is worse than none.
"""

import os
from typing import Any

from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Fields, read_fields
from xretrieval.model.tower import TowerConfig

_GEMMA = {"rms_norm_eps": 1e-6, "head_dim": 256, "max_position_embeddings": 8192, "rope_theta": 10_000.0, "vocab_size": 256_000}
# What transformers 5.24 takes for a field that a file leaves out: the released Gemma 3 4B, for one, has seven fields in all.
DEFAULTS: dict[str, dict[str, Any]] = {
    "gemma": {**_GEMMA, "num_attention_heads": 16, "num_key_value_heads": 16, "hidden_act": "gelu_pytorch_tanh"},
    "gemma2": {
        **_GEMMA,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "query_pre_attn_scalar": 256,
        "attn_logit_softcapping": 50.0,
        "sliding_window": 4096,
        "sliding_window_pattern": 2,
    },
    "gemma3_text": {
        **_GEMMA,
        "vocab_size": 262_208,
        "num_attention_heads": 8,
        "num_key_value_heads": 4,
        "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 131_072,
        "query_pre_attn_scalar": 256,
        "sliding_window": 4096,
        "sliding_window_pattern": 6,
        "rope_theta": 1_000_000.0,
        "rope_local_base_freq": 10_000.0,
    },
    "qwen3": {
        "vocab_size": 151_936,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "head_dim": 128,
        "hidden_act": "silu",
        "max_position_embeddings": 32_768,
        "rms_norm_eps": 1e-6,
        "rope_theta": 10_000.0,
    },
}
FAMILIES = ("gemma", "gemma2", "gemma3_text", "gemma3", "qwen3")
# Field -> the one value that the tower can follow, beside none at all.
_FIXED: dict[str, dict[str, Any]] = {
    "gemma": {"use_bidirectional_attention": False, "hidden_activation": "gelu_pytorch_tanh"},
    "gemma2": {"use_bidirectional_attention": False},
    # Modules have the field, and transformers' attention of Gemma 3 leaves it out: no model says what it would mean.
    "gemma3_text": {"attn_logit_softcapping": 0.0},
    "qwen3": {"use_sliding_window": False},
}
_FIXED_EVERYWHERE = {"attention_bias": False, "mlp_bias": False, "is_causal": True, "partial_rotary_factor": 1.0}


class _Fields(Fields):
    """Of an LLM."""

    def rope(self, name: str, fields: Any, theta: str) -> tuple[float, float]:
        """Base and factor of one kind of layer."""
        if not isinstance(fields, dict):
            raise self.error(name, "fields in braces are needed; copy the file again", fields)
        kind = fields.get("rope_type", fields.get("type", "default"))
        if kind not in ("default", "linear"):
            raise self.error(f"{name}.rope_type", "only default and linear are supported; give another model", kind)
        if fields.get("partial_rotary_factor", 1.0) != 1.0:
            raise self.error(f"{name}.partial_rotary_factor", "only 1.0 is supported; give another model", fields["partial_rotary_factor"])
        base = self.positive(f"{name}.rope_theta" if "rope_theta" in fields else theta, fields.get("rope_theta", self.get(theta)))
        return base, self.positive(f"{name}.factor", fields.get("factor")) if kind == "linear" else 1.0


def read_config(path: str | os.PathLike) -> tuple[str, TowerConfig]:
    """Family (`model_type`) and tower of a config.json; pooling is the family's own, without dense heads.

    Raises:
      UserError: not a config of a supported family, or a field that the tower cannot follow.
    """
    record = read_fields(path)
    family = record.get("model_type")
    if not isinstance(family, str):
        raise UserError(f"{path}: the field model_type is missing; give the folder of an LLM: {', '.join(FAMILIES)}")
    if family.startswith(("gemma3n", "gemma4", "embedding_gemma2")):
        raise UserError(
            f"{path}: model_type = {family}: not supported yet (its E models have two vocabulary-indexed tables); give another model"
        )
    if family not in FAMILIES:
        raise UserError(f"{path}: model_type = {family}: supported are {', '.join(FAMILIES)}; give another model")
    if record.get("quantization_config") is not None:
        raise UserError(f"{path}: quantization_config: quantised models are not supported; give the model that it was made from")
    if family != "gemma3":
        return family, _tower(family, _Fields(path, record, DEFAULTS[family]))
    text = record.get("text_config")
    if not isinstance(text, dict) or text.get("model_type", "gemma3_text") != "gemma3_text":
        raise UserError(f"{path}: text_config: fields of model_type gemma3_text are needed; copy the file again")
    return family, _tower("gemma3_text", _Fields(path, text, DEFAULTS["gemma3_text"], "text_config."))


def _tower(kind: str, fields: _Fields) -> TowerConfig:
    for name, only in {**_FIXED_EVERYWHERE, **_FIXED[kind]}.items():
        if fields.get(name) not in (None, only):
            raise fields.error(name, f"only {only} is supported; give another model")
    _check_activation(kind, fields)
    layers = fields.whole("num_hidden_layers")
    kv_heads = "num_attention_heads" if kind == "qwen3" and fields.get("num_key_value_heads") is None else "num_key_value_heads"
    shared: dict[str, Any] = {
        "text_size": fields.whole("vocab_size"),
        "width": fields.whole("hidden_size"),
        "layers": layers,
        "heads": fields.whole("num_attention_heads"),
        "kv_heads": fields.whole(kv_heads),
        "head_dim": fields.whole("head_dim"),
        "mlp_hidden": fields.whole("intermediate_size"),
        "norm_epsilon": fields.number("rms_norm_eps"),
        "max_positions": fields.whole("max_position_embeddings"),
        "qk_norm": kind in ("gemma3_text", "qwen3"),
        "post_norms": kind in ("gemma2", "gemma3_text"),
        **_rope(kind, fields),
    }
    if kind == "qwen3":
        if fields.get("layer_types") not in (None, ["full_attention"] * layers):
            raise fields.error("layer_types", f"only {layers} times full_attention is supported in qwen3; give another model")
        shared |= {"activation": "silu", "norm_plus_one": False, "scale_embedding": False, "pooling": "last"}
    if kind in ("gemma2", "gemma3_text"):
        shared |= _locality(fields, layers) | {"query_scale": fields.number("query_pre_attn_scalar")}
    if kind == "gemma2":
        shared["softcap"] = 0.0 if fields.get("attn_logit_softcapping") is None else fields.number("attn_logit_softcapping")
    return TowerConfig(**shared)


def _check_activation(kind: str, fields: _Fields) -> None:
    name = "hidden_act" if kind in ("gemma", "qwen3") else "hidden_activation"
    # "gelu" in the released files of Gemma 1 means the tanh form, and is read so; elsewhere it is another function.
    allowed = {"qwen3": ("silu",), "gemma": ("gelu_pytorch_tanh", "gelu")}.get(kind, ("gelu_pytorch_tanh",))
    if fields.get(name) not in allowed:
        raise fields.error(name, f"only {' or '.join(allowed)} is supported in {kind}; give another model")


def _rope(kind: str, fields: _Fields) -> dict[str, float]:
    by_layer, given = kind == "gemma3_text", fields.get("rope_parameters")
    if given is None:
        everywhere = ("rope_scaling", fields.get("rope_scaling") or {}, "rope_theta")
        local = ("rope_local_base_freq", {}, "rope_local_base_freq") if by_layer else everywhere
    else:
        layers = {"full_attention", "sliding_attention"}
        for old in ("rope_theta", "rope_scaling", "rope_local_base_freq"):
            if fields.given.get(old) is not None:
                raise fields.error(old, "rope_parameters say it too; remove one of them")
        if not isinstance(given, dict) or (not layers >= given.keys() if by_layer else layers & given.keys()):
            raise fields.error("rope_parameters", f"{kind} has them {'a kind of layer' if by_layer else 'once'}; copy the file again")
        everywhere = ("rope_parameters", given, "rope_theta")
        if by_layer:
            everywhere = ("rope_parameters.full_attention", given.get("full_attention") or {}, "rope_theta")
        local = (
            ("rope_parameters.sliding_attention", given.get("sliding_attention") or {}, "rope_local_base_freq") if by_layer else everywhere
        )
    base, factor = fields.rope(*everywhere)
    local_base, local_factor = fields.rope(*local)
    if local_factor != 1.0 and kind in ("gemma2", "gemma3_text"):
        raise fields.error(f"{local[0]}.factor", "positions of local layers cannot be scaled; give another model", local_factor)
    # Qwen3 and Gemma 1 have no local layers: the base of those stays as it is.
    return {"rope_base": base, "rope_factor": factor} | ({"rope_local_base": local_base} if kind in ("gemma2", "gemma3_text") else {})


def _locality(fields: _Fields, layers: int) -> dict[str, Any]:
    """Which layers are local, how far they see, and whether only to the left."""
    bidirectional = fields.get("use_bidirectional_attention") or False
    if bidirectional not in (True, False):
        raise fields.error("use_bidirectional_attention", "only true and false are supported; give another model")
    every = _global_every(fields, layers)
    if every == 1:
        return {"causal": not bidirectional}
    window = fields.whole("sliding_window")
    if bidirectional:
        if window % 2:
            # Earlier transformers saved the halved width, and halved that again when they read it; 5.24 saves the whole one.
            raise fields.error(
                "sliding_window", f"odd, so it may be half of {2 * window - 2}, as some transformers saved it; write the whole"
            )
        window = window // 2 + 1
    return {"causal": not bidirectional, "window": window, "global_every": every}


def _global_every(fields: _Fields, layers: int) -> int:
    kinds, pattern = fields.get("layer_types"), fields.whole("sliding_window_pattern")
    if kinds is None:
        return pattern
    if not isinstance(kinds, list) or len(kinds) != layers or any(kind not in ("full_attention", "sliding_attention") for kind in kinds):
        raise fields.error("layer_types", f"full_attention or sliding_attention for each of {layers} layers is needed; give another model")
    # Without a global layer, any number beyond the layers says so.
    every = kinds.index("full_attention") + 1 if "full_attention" in kinds else max(pattern, layers + 1)
    for i, name in enumerate(kinds):
        if (name == "full_attention") != ((i + 1) % every == 0):
            raise fields.error(
                "layer_types", f"layer {i} is {name}, but {every - 1} local layers precede each global one; give another model"
            )
    return every
