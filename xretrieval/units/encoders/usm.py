"""The audio towers of Gemma 3n and Gemma 4 from a Hugging Face folder: of the whole model, or of the tower as transformers saves it alone."""

import pathlib
import re
from typing import Any

import numpy as np

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Fields, Found, take
from xretrieval.units.encoders import usm_gemma3n, usm_gemma4
from xretrieval.units.encoders.encoder import shapes
from xretrieval.units.encoders.usm_folder import Source
from xretrieval.units.encoders.usm_network import UsmConfig

# Where the tower's tensors are: alone, in the model, in the model with a language head.
_PREFIXES = ("", "audio_tower.", "model.audio_tower.")
_MARK = "subsample_conv_projection.input_proj_linear.weight"
# What the whole model has beside it.
_OTHERS = re.compile(r"(model\.)?(language_model|vision_tower|embed_vision|embed_audio)\..+|lm_head\.weight")


def from_huggingface(
    root: pathlib.Path, fields: dict[str, Any], found: dict[str, Found], layer: int | None
) -> tuple[UsmConfig, dict[str, np.ndarray], list[str]]:
    """Reads the layers up to the tapped one; see `pretrained.import_encoder`.

    Returns:
      (config, float32 arrays by dotted name, names of the tensors left out).
    """
    kind = fields["model_type"]
    source = usm_gemma4 if kind.startswith("gemma4") else usm_gemma3n
    config, layers = source.read_config(root, _audio_fields(root / "config.json", fields, source.DEFAULTS), layer)
    prefix = next((prefix for prefix in _PREFIXES if prefix + _MARK in found), _PREFIXES[0])
    wanted = shapes(config)
    params: dict[str, np.ndarray] = {}
    used: set[str] = set()

    def members(tensor: Source, inside: str) -> list[Found]:
        names = [prefix + inside + name for name in tensor.names]
        used.update(names)
        return [take(root, found, name, tensor.shape) for name in names]

    for ours, tensor in source.outer(config):
        params[ours] = _read(members(tensor, ""), tensor, wanted[ours])
    for ours, tensor in source.of_layer(config):
        every = [members(tensor, f"{source.LAYERS}.{i}.") for i in range(config.layer)]
        if every:
            # Filled layer by layer, so that no layer is held twice.
            params[ours] = np.empty(wanted[ours], np.float32)
            for i, of_one in enumerate(every):
                params[ours][i] = _read(of_one, tensor, wanted[ours][1:])
    of_layer = {name for _, tensor in source.of_layer(config) for name in tensor.names}
    outside = set(source.OUTSIDE) | {f"{source.LAYERS}.{i}.{name}" for i in range(config.layer, layers) for name in of_layer}
    for name in sorted(found.keys() - used):
        inside = name.startswith(prefix) and name.removeprefix(prefix) in outside
        if not inside and not (prefix and _OTHERS.fullmatch(name)):
            raise UserError(f"{found[name].path}: tensor {name} is not one of a {kind} model of this config.json; copy all files again")
    return config, params, sorted(found.keys() - used)


def _audio_fields(path: pathlib.Path, fields: dict[str, Any], defaults: dict[str, Any]) -> Fields:
    """The fields of the tower, those of the whole model aside."""
    if fields["model_type"].endswith("_audio"):
        return Fields(path, fields, defaults)
    inside = fields.get("audio_config")
    if not isinstance(inside, dict):
        raise UserError(f"{path}: audio_config = {inside!s:.100}: this model has no audio tower; give one that takes sound, as E2B or E4B")
    return Fields(path, inside, defaults, "audio_config.")


def _read(members: list[Found], source: Source, shape: tuple[int, ...]) -> np.ndarray:
    values = [tensors.read(*member).astype(np.float32) for member in members]
    stacked = values[0] if len(values) == 1 else np.stack(values)
    return np.ascontiguousarray(stacked.transpose(source.axes).reshape(shape))
