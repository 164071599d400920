"""HuBERT and wav2vec 2.0 from a Hugging Face folder of transformers' `HubertModel` or `Wav2Vec2Model`, or of a model with a head on it.

What `add_adapter` adds comes after the last layer: it is left out, as heads are. So is the norm after the last layer of a stable model, which
`hidden_states` of transformers 5 do not include (those of transformers 4 did, in the last one).
"""

import pathlib
import re
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Fields, Found, read_fields, take
from xretrieval.units.encoders.encoder import SAMPLING_RATE
from xretrieval.units.encoders.hubert_network import HubertConfig

_DEFAULTS = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
    "hidden_act": "gelu",
    "layer_norm_eps": 1e-5,
    "do_stable_layer_norm": False,
    "feat_extract_norm": "group",
    "feat_extract_activation": "gelu",
    "conv_dim": [512, 512, 512, 512, 512, 512, 512],
    "conv_kernel": [10, 3, 3, 3, 3, 2, 2],
    "conv_stride": [5, 2, 2, 2, 2, 2, 2],
    "conv_bias": False,
    "feat_proj_layer_norm": True,
    "num_conv_pos_embeddings": 128,
    "num_conv_pos_embedding_groups": 16,
    "conv_pos_batch_norm": False,
    "adapter_attn_dim": None,
}
# What the network does, and what is refused: another value would be other features.
_ONLY = {
    "hidden_act": ("gelu", "only gelu is supported, that of released models"),
    "feat_extract_activation": ("gelu", "only gelu is supported, that of released models"),
    "conv_pos_batch_norm": (False, "a batch norm before the convolution of positions is not supported; give a model with its weight norm"),
    "adapter_attn_dim": (None, "adapters for one language within the layers are not supported; give the model without them"),
}
# What the extractor must say, and what transformers takes where it says nothing.
_EXTRACTOR = {
    "feature_extractor_type": "Wav2Vec2FeatureExtractor",
    "sampling_rate": SAMPLING_RATE,
    "feature_size": 1,
    "padding_side": "right",
}
# Where models with a head keep the encoder.
_PREFIXES = ("hubert.", "wav2vec2.")
_OUTSIDE = ("masked_spec_embed", "adapter.", "final_proj.")
_HEADS = (
    "lm_head.",
    "quantizer.",
    "project_hid.",
    "project_q.",
    "projector.",
    "classifier.",
    "layer_weights",
    "tdnn.",
    "feature_extractor.",
    "objective.",
)
# The two spellings of a weight norm's length and direction.
_WEIGHT_NORMS = (("parametrizations.weight.original0", "parametrizations.weight.original1"), ("weight_g", "weight_v"))


class _Source(NamedTuple):
    """Tensors of the source that make one of ours: names (of a layer's, within the layer), shapes, and how."""

    members: tuple[tuple[str, tuple[int, ...]], ...]
    make: Callable[..., np.ndarray]


def from_huggingface(
    root: pathlib.Path, fields: dict[str, Any], found: dict[str, Found], layer: int | None
) -> tuple[HubertConfig, dict[str, np.ndarray], list[str]]:
    """Reads the layers up to the tapped one; see `pretrained.import_encoder`.

    Returns:
      (config, float32 arrays by dotted name, names of the tensors left out).
    """
    config, layers = _config(root, Fields(root / "config.json", fields, _DEFAULTS), layer)
    prefix = next((prefix for prefix in _PREFIXES if any(name.startswith(prefix) for name in found)), "")
    params: dict[str, np.ndarray] = {}
    used: set[str] = set()

    def made(source: _Source, place: str) -> np.ndarray:
        members = [take(root, found, place + name, shape) for name, shape in source.members]
        used.update(place + name for name, _ in source.members)
        return source.make(*(tensors.read(*member).astype(np.float32) for member in members))

    for ours, source in _outer(config, found, prefix):
        params[ours] = made(source, prefix)
    for ours, source in _of_layer(config):
        for i in range(config.layer):
            values = made(source, f"{prefix}encoder.layers.{i}.")
            # Filled layer by layer, so that no layer is held twice.
            if not i:
                params[ours] = np.empty((config.layer, *values.shape), np.float32)
            params[ours][i] = values
    return config, params, _left_out(root, config, layers, prefix, found.keys() - used)


def _config(root: pathlib.Path, fields: Fields, layer: int | None) -> tuple[HubertConfig, int]:
    """The numbers of the network, and the layers of the source."""
    for name, (wanted, why) in _ONLY.items():
        if fields.get(name) != wanted:
            raise fields.error(name, why)
    if fields.get("feat_extract_norm") not in ("group", "layer"):
        raise fields.error("feat_extract_norm", "group and layer are supported")
    layers, width = fields.whole("num_hidden_layers"), fields.whole("hidden_size")
    for name in ("num_attention_heads", "num_conv_pos_embedding_groups"):
        if width % fields.whole(name):
            raise fields.error(name, f"hidden_size = {width} must be a multiple of it; copy the file again")
    tapped = layers if layer is None else layer
    if type(tapped) is not int or not 0 <= tapped <= layers:
        raise UserError(f"layer = {layer!r}: {fields.path} has {layers} layers; tap one of 0 to {layers}")
    widths = _wholes(fields, "conv_dim")
    config = HubertConfig(
        layer=tapped,
        model_width=width,
        heads=fields.whole("num_attention_heads"),
        mlp_width=fields.whole("intermediate_size"),
        stable=_flag(fields, "do_stable_layer_norm"),
        normalise=_normalise(root / "preprocessor_config.json"),
        group_norm=fields.get("feat_extract_norm") == "group",
        conv_widths=widths,
        conv_kernels=_wholes(fields, "conv_kernel", len(widths)),
        conv_strides=_wholes(fields, "conv_stride", len(widths)),
        conv_bias=_flag(fields, "conv_bias"),
        # wav2vec 2.0 has it whatever the field says.
        input_norm=fields.get("model_type") == "wav2vec2" or _flag(fields, "feat_proj_layer_norm"),
        position_kernel=fields.whole("num_conv_pos_embeddings"),
        position_groups=fields.whole("num_conv_pos_embedding_groups"),
        norm_epsilon=fields.number("layer_norm_eps"),
    )
    return config, layers


def _flag(fields: Fields, name: str) -> bool:
    value = fields.get(name)
    if type(value) is not bool:
        raise fields.error(name, "true or false is needed; copy the file again")
    return value


def _wholes(fields: Fields, name: str, count: int | None = None) -> tuple[int, ...]:
    values = fields.get(name)
    if not isinstance(values, list) or not values or not all(type(value) is int and value > 0 for value in values):
        raise fields.error(name, "a list of whole numbers above 0 is needed; copy the file again")
    if count is not None and len(values) != count:
        raise fields.error(name, f"{count} numbers are needed, as in conv_dim; copy the file again")
    return tuple(values)


def _normalise(path: pathlib.Path) -> bool:
    """Whether the extractor normalises the samples."""
    if not path.exists():
        raise UserError(f"{path}: not there; it says how the model takes sound: copy it too")
    fields = Fields(path, read_fields(path), _EXTRACTOR | {"do_normalize": True})
    for name, wanted in _EXTRACTOR.items():
        if fields.get(name) != wanted:
            raise fields.error(name, f"only {wanted} is supported")
    return _flag(fields, "do_normalize")


def _same(values: np.ndarray) -> np.ndarray:
    return values


def _turned(*values: np.ndarray) -> np.ndarray:
    """[out, in, …] to […, in, out], of several beside one another."""
    return np.concatenate([value.T for value in values], axis=-1)


def _weight_norm(length_11P: np.ndarray, direction_FDP: np.ndarray) -> np.ndarray:
    """The weights whose length, tap by tap, is a parameter of its own (arXiv 1602.07868)."""
    direction_FDP = direction_FDP.astype(np.float64)
    norm_11P = np.sqrt(np.sum(np.square(direction_FDP), axis=(0, 1), keepdims=True))
    return _turned((length_11P * direction_FDP / norm_11P).astype(np.float32))


def _linear(ours: str, theirs: tuple[str, ...], into: int, out: int) -> Iterator[tuple[str, _Source]]:
    yield f"{ours}.weight_DF", _Source(tuple((f"{name}.weight", (out, into)) for name in theirs), _turned)
    yield f"{ours}.bias_F", _Source(tuple((f"{name}.bias", (out,)) for name in theirs), _turned)


def _norm(ours: str, theirs: str, width: int) -> Iterator[tuple[str, _Source]]:
    yield f"{ours}.scale_D", _Source(((f"{theirs}.weight", (width,)),), _same)
    yield f"{ours}.bias_D", _Source(((f"{theirs}.bias", (width,)),), _same)


def _outer(config: HubertConfig, found: dict[str, Found], prefix: str) -> Iterator[tuple[str, _Source]]:
    """Our name and what makes it, of the parameters outside the layers."""
    into = 1
    for i, (width, kernel) in enumerate(zip(config.conv_widths, config.conv_kernels, strict=True)):
        ours, theirs = f"frontend.convolutions.{i}", f"feature_extractor.conv_layers.{i}"
        yield f"{ours}.weight_PDF", _Source(((f"{theirs}.conv.weight", (width, into, kernel)),), _turned)
        if config.conv_bias and (i or not config.group_norm):
            yield f"{ours}.bias_F", _Source(((f"{theirs}.conv.bias", (width,)),), _same)
        if not config.group_norm:
            yield from _norm(f"{ours}.norm", f"{theirs}.layer_norm", width)
        elif not i:
            yield from _norm("frontend.utterance_norm", f"{theirs}.layer_norm", width)
        into = width
    if config.input_norm:
        yield from _norm("input_norm", "feature_projection.layer_norm", into)
    width, kernel = config.model_width, config.position_kernel
    yield from _linear("input", ("feature_projection.projection",), into, width)
    place = "encoder.pos_conv_embed.conv."
    length, direction = next((names for names in _WEIGHT_NORMS if prefix + place + names[0] in found), _WEIGHT_NORMS[0])
    shapes = (1, 1, kernel), (width, width // config.position_groups, kernel)
    yield "positions.weight_PDF", _Source(((place + length, shapes[0]), (place + direction, shapes[1])), _weight_norm)
    yield "positions.bias_F", _Source(((f"{place}bias", (width,)),), _same)
    if not config.stable:
        yield from _norm("norm", "encoder.layer_norm", width)


def _of_layer(config: HubertConfig) -> Iterator[tuple[str, _Source]]:
    """Our name and what makes it, of the parameters of a layer."""
    width = config.model_width
    yield from _norm("layers.attention_norm", "layer_norm", width)
    yield from _norm("layers.mlp_norm", "final_layer_norm", width)
    yield from _linear("layers.attention.qkv", ("attention.q_proj", "attention.k_proj", "attention.v_proj"), width, width)
    yield from _linear("layers.attention.out", ("attention.out_proj",), width, width)
    yield from _linear("layers.up", ("feed_forward.intermediate_dense",), width, config.mlp_width)
    yield from _linear("layers.down", ("feed_forward.output_dense",), config.mlp_width, width)


def _left_out(root: pathlib.Path, config: HubertConfig, layers: int, prefix: str, names: set[str]) -> list[str]:
    """The tensors that are no part of the network.

    Raises:
      UserError: one of them is unknown.
    """
    of_layer = {name for _, source in _of_layer(config) for name, _ in source.members}
    outside: tuple[str, ...] = _OUTSIDE
    if config.stable:
        outside += ("encoder.layer_norm.",)
    if config.group_norm and config.conv_bias:
        outside += ("feature_extractor.conv_layers.0.conv.bias",)
    for name in sorted(names):
        inside = name.removeprefix(prefix) if name.startswith(prefix) else ""
        above = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", inside)
        known = inside.startswith(outside) or (prefix and name.startswith(_HEADS))
        if above:
            known = config.layer <= int(above[1]) < layers and above[2] in of_layer
        if not known:
            raise UserError(f"{root}: tensor {name} is not one of a HuBERT or wav2vec 2.0 model of this config.json; copy all files again")
    return sorted(names)
