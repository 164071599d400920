"""A released speech encoder, as a Hugging Face folder, to an `Encoder` with the layers up to the tapped one."""

import importlib
import os
import pathlib
from typing import NamedTuple

from xretrieval.errors import UserError
from xretrieval.huggingface_folder import model_name, open_folder, read_fields
from xretrieval.licence import read_licence
from xretrieval.units.encoders.encoder import Encoder

# model_type of config.json -> the file of its family.
FAMILIES = {
    "hubert": "hubert",
    "wav2vec2": "hubert",
    "wav2vec2-bert": "w2v_bert",
    "gemma3n": "usm",
    "gemma3n_audio": "usm",
    "gemma4": "usm",
    "gemma4_audio": "usm",
}


class Imported(NamedTuple):
    """An encoder, and the names of the source's tensors that are no part of it."""

    encoder: Encoder
    left_out: tuple[str, ...]


def import_encoder(source: str | os.PathLike, layer: int | None = None, average: int = 1) -> Imported:
    """Reads a folder with `config.json`, `preprocessor_config.json` where the model has one, and `*.safetensors`.

    Args:
      source: the folder.
      layer: k taps what comes out of the k-th layer (0: what goes into the first), as `hidden_states[k]` of transformers; None is the last.
      average: see `Encoder`.

    Raises:
      UserError: not a folder of a supported encoder, a damaged file, a tensor missing, unknown or of a wrong shape, a field that the network cannot
        follow, or a layer that the model has not.
    """
    root = pathlib.Path(source)
    fields = read_fields(root / "config.json")
    kind = fields.get("model_type")
    if kind not in FAMILIES:
        raise UserError(f"{root / 'config.json'}: model_type = {kind!r}: speech encoders of {', '.join(FAMILIES)} can be imported")
    found, _, _ = open_folder(root)
    family = importlib.import_module(f"xretrieval.units.encoders.{FAMILIES[kind]}")
    config, params, left_out = family.from_huggingface(root, fields, found, layer)
    licence = read_licence(root, kind)
    origin = {"name": model_name(root), "model_type": kind, "licence": licence.name, "terms": licence.terms}
    return Imported(Encoder(config, params, average, origin), tuple(sorted(left_out)))
