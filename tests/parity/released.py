"""The configuration of a tiny model in the words of the released models' files, which differ from those that transformers 5 writes."""

import copy
import json
import pathlib

import numpy as np
import torch
from families import Family
from reference import hidden_states
from tokenizer_directories import write_json

# What transformers 5 writes and no released file has, or not in this form.
NEW = ("rope_parameters", "layer_types", "dtype", "transformers_version", "use_bidirectional_attention", "_sliding_window_pattern")
# Fields that a file may leave to the class: Gemma 3 4B's has hardly more than sizes.
DEFAULTS = (
    "attention_bias",
    "attention_dropout",
    "hidden_activation",
    "initializer_range",
    "rms_norm_eps",
    "tie_word_embeddings",
    "use_cache",
)


def in_released_words(family: Family, written: dict) -> dict:
    """The same configuration as `written`, which is what transformers 5 wrote (of the text part, where it has parts)."""
    found = {key: value for key, value in written.items() if key not in NEW}
    rope = written["rope_parameters"]
    whole = rope.get("full_attention", rope)
    found["rope_theta"] = whole["rope_theta"]
    if "full_attention" in rope:
        found["rope_local_base_freq"] = rope["sliding_attention"]["rope_theta"]
    if family.name != "gemma1":
        linear = whole["rope_type"] == "linear"
        found["rope_scaling"] = {"factor": whole["factor"], "rope_type": "linear"} if linear else None
    if family.name == "gemma1":
        found |= {"hidden_act": "gelu", "hidden_activation": None}
    if family.name == "embeddinggemma":
        # A later file: its layers are written out, its flag and its dtype are in the new words.
        found |= {"layer_types": written["layer_types"], "use_bidirectional_attention": True, "_sliding_window_pattern": 6}
        return found | {"dtype": "float32", "transformers_version": "4.57.0.dev0"}
    if family.name == "gemma3_4b":
        return {key: value for key, value in found.items() if key not in DEFAULTS}
    return found | {"torch_dtype": "float32", "transformers_version": "4.51.0"}


def write_released(family: Family, model: torch.nn.Module, directory: pathlib.Path, tokens_L: np.ndarray) -> None:
    """Writes config.released.json, from which transformers makes the same model: its states on the tokens are equal in every bit."""
    written = json.loads((directory / "config.json").read_text())
    if "text_config" in written:
        released = {key: value for key, value in written.items() if key not in NEW}
        released |= {"text_config": in_released_words(family, written["text_config"]), "torch_dtype": "float32"}
    else:
        released = in_released_words(family, written)
    write_json(directory / "config.released.json", released)
    config = type(family.config)(**copy.deepcopy(released))
    config._attn_implementation = "eager"
    again = family.model(config).to(torch.float32).eval()
    again.load_state_dict(model.state_dict())
    for ours, theirs in zip(hidden_states(model, tokens_L), hidden_states(again, tokens_L), strict=True):
        assert np.array_equal(ours, theirs), f"{family.name}: config.released.json is another model"
