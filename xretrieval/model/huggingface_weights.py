"""The tensors of a Hugging Face folder as a tower's parameters, each made while it is written.

Every tensor of the source becomes a parameter, is on the list of what is left out, or is an error.
"""

import collections
import math
import pathlib
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Found, open_folder, take
from xretrieval.model.embedding import padded_rows
from xretrieval.model.huggingface_modules import DenseFolder
from xretrieval.model.tower import TowerConfig
from xretrieval.tensors import Blocks

_TABLE = "embed_tokens.weight"
# Where the text model of a checkpoint may be: of a causal LM, of Gemma 3 with vision as released and as transformers 5 saves it, and bare.
_PREFIXES = ("model.", "language_model.model.", "model.language_model.", "language_model.", "")
# A retriever has no output layer, whether tied or not.
_OUTPUT = "lm_head.weight"
# Family -> what reads other than text.
_OTHER_SENSES = {"gemma3": ("vision_tower.", "multi_modal_projector.")}
_BLOCK_ROWS = 4096  # rows of the text table that are read at a time


class Weights(NamedTuple):
    """A source's tensors as parameters.

    Attributes:
      params: by the tower's names, in the source's dtype.
      left_out: names of tensors that are no part of the tower.
      ignored: files of tensors that are not read: pickles, and safetensors beside those that the model is in.
      files: the files that were read.
    """

    params: dict[str, Blocks]
    left_out: tuple[str, ...]
    ignored: tuple[pathlib.Path, ...]
    files: tuple[pathlib.Path, ...]


def read_weights(root: pathlib.Path, family: str, config: TowerConfig, dense: Sequence[DenseFolder] = ()) -> Weights:
    """Looks at every header below `root` and in the folders of dense heads; reads no tensor yet.

    Raises:
      UserError: no safetensors; a file that is damaged, missing or not in the index; a tensor that is missing, unknown, of a wrong shape, or
        of a dtype that parameters do not have.
    """
    found, files, ignored = open_folder(root)
    prefix = _prefix(root, found)
    params: dict[str, Blocks] = {}
    used = set()
    for name, (pattern, shape, layers) in _layout(config).items():
        members = [take(root, found, prefix + pattern.format(i), shape) for i in range(layers or 1)]
        used |= {member.name for member in members}
        params[name] = _text_table(members[0], config) if pattern == _TABLE else _stack(members, bool(layers))
    for i, head in enumerate(dense):
        inside, head_files, head_ignored = open_folder(head.folder)
        member = take(head.folder, inside, "linear.weight", (head.fan_out, head.fan_in))
        params[f"dense.{i}.kernel_DE"] = _stack([member], False)
        files, ignored = files + head_files, ignored + head_ignored
        _refuse(inside, inside.keys() - {"linear.weight"}, "a dense head has linear.weight alone")
    left_out = {name for name in found.keys() - used if _is_left_out(name, family)}
    _refuse(found, found.keys() - used - left_out, f"the tower of a {family} with {config.layers} layers has no place for it")
    return Weights(params, tuple(sorted(left_out)), ignored, files)


def _refuse(found: dict[str, Found], names: set[str], why: str) -> None:
    if names:
        name = min(names)
        raise UserError(f"{found[name].path}: tensor {name} ({len(names)} such): {why}; give another model")


def _is_left_out(name: str, family: str) -> bool:
    for prefix in ("model.", "language_model."):
        name = name.removeprefix(prefix)
    return name == _OUTPUT or name.startswith(_OTHER_SENSES.get(family, ()))


def left_out_kinds(names: Sequence[str]) -> list[str]:
    """["lm_head.weight", "vision_tower.* (437 tensors)"]: what was left out, in short."""
    parts = [part for kinds in _OTHER_SENSES.values() for part in kinds]
    counts = collections.Counter(next((name[: name.index(part) + len(part)] for part in parts if part in name), name) for name in names)
    return [f"{name}* ({count} tensors)" if name.endswith(".") else name for name, count in sorted(counts.items())]


def _prefix(root: pathlib.Path, found: dict[str, Found]) -> str:
    prefixes = [prefix for prefix in _PREFIXES if prefix + _TABLE in found]
    if len(prefixes) != 1:
        what = "is there more than once, as " if prefixes else "is missing under each of the names "
        names = ", ".join(prefix + _TABLE for prefix in prefixes or _PREFIXES)
        raise UserError(f"{root}: tensor {_TABLE} {what}{names}; give another model")
    return prefixes[0]


def _layout(config: TowerConfig) -> dict[str, tuple[str, tuple[int, ...], int]]:
    """Parameter -> name of the source's tensor (with {} for the layer), its shape there, and the number of layers (0: not of a layer)."""
    width, query, value = config.width, config.heads * config.head_dim, config.kv_heads * config.head_dim
    shapes = {
        "attention.q.weight_DF": ("self_attn.q_proj", (query, width)),
        "attention.k.weight_DF": ("self_attn.k_proj", (value, width)),
        "attention.v.weight_DF": ("self_attn.v_proj", (value, width)),
        "attention.o.weight_DF": ("self_attn.o_proj", (width, query)),
        "mlp.gate.weight_DF": ("mlp.gate_proj", (config.mlp_hidden, width)),
        "mlp.up.weight_DF": ("mlp.up_proj", (config.mlp_hidden, width)),
        "mlp.down.weight_DF": ("mlp.down_proj", (width, config.mlp_hidden)),
        "pre_attention_norm.scale_D": ("input_layernorm", (width,)),
    }
    # The same name is what follows attention where there are such norms, and what precedes the MLP where there are not.
    if config.post_norms:
        shapes["post_attention_norm.scale_D"] = ("post_attention_layernorm", (width,))
        shapes["pre_mlp_norm.scale_D"] = ("pre_feedforward_layernorm", (width,))
        shapes["post_mlp_norm.scale_D"] = ("post_feedforward_layernorm", (width,))
    else:
        shapes["pre_mlp_norm.scale_D"] = ("post_attention_layernorm", (width,))
    if config.qk_norm:
        shapes["attention.q_norm.scale_D"] = ("self_attn.q_norm", (config.head_dim,))
        shapes["attention.k_norm.scale_D"] = ("self_attn.k_norm", (config.head_dim,))
    layout = {f"blocks.{name}": (f"layers.{{}}.{theirs}.weight", shape, config.layers) for name, (theirs, shape) in shapes.items()}
    return {
        "embedding.text_VD": (_TABLE, (config.text_size, width), 0),
        **layout,
        "final_norm.scale_D": ("norm.weight", (width,), 0),
    }


def _stack(members: Sequence[Found], stacked: bool) -> Blocks:
    """Layers one behind another; matrices [out, in] become [in, out]."""
    dtypes = [tensors.parameter_dtype(*member) for member in members]
    for member, dtype in zip(members, dtypes, strict=True):
        if dtype != dtypes[0]:
            raise UserError(
                f"{member.path}: tensor {member.name} is {dtype}, {members[0].name} is {dtypes[0]}; save the model in one dtype"
            )
    shape = members[0].entry.shape[::-1]
    return Blocks(dtypes[0], (len(members), *shape) if stacked else shape, lambda: (tensors.read(*member).T for member in members))


def _text_table(member: Found, config: TowerConfig) -> Blocks:
    """The rows as they are, and rows of zeros up to the tower's multiple."""
    dtype, (rows, width) = tensors.parameter_dtype(*member), member.entry.shape
    padded = padded_rows(rows, config.row_multiple)

    def parts() -> Iterator[np.ndarray]:
        for first in range(0, rows, _BLOCK_ROWS):
            yield tensors.read(*member, first=first, rows=_BLOCK_ROWS)
        yield np.zeros((padded - rows, width), dtype)

    return Blocks(dtype, (padded, width), parts)


def count(params: dict[str, Blocks], config: TowerConfig) -> int:
    """Parameters, without the padding rows of the text table."""
    return (
        sum(math.prod(blocks.shape) for blocks in params.values())
        - (padded_rows(config.text_size, config.row_multiple) - config.text_size) * config.width
    )
