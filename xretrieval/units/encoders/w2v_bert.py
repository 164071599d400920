"""w2v-BERT 2.0 from a Hugging Face folder of transformers' `Wav2Vec2BertModel`, or of a model with a head on it.

Adapters and the MLP before them (`add_adapter`, `use_intermediate_ffn_before_adapter`) come after the last layer: they are left out, as heads are.
"""

import pathlib
import re
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Fields, Found, read_fields, take
from xretrieval.units.encoders.encoder import SAMPLING_RATE
from xretrieval.units.encoders.w2v_bert_network import MEL_BINS, STACK, W2vBertConfig

_DEFAULTS = {
    "hidden_size": 1024,
    "num_hidden_layers": 24,
    "num_attention_heads": 16,
    "intermediate_size": 4096,
    "feature_projection_input_dim": 160,
    "hidden_act": "swish",
    "layer_norm_eps": 1e-5,
    "position_embeddings_type": "relative_key",
    "left_max_position_embeddings": 64,
    "right_max_position_embeddings": 8,
    "conv_depthwise_kernel_size": 31,
}
# What the extractor must say, and what transformers takes where it says nothing.
_EXTRACTOR = {
    "feature_extractor_type": "SeamlessM4TFeatureExtractor",
    "sampling_rate": SAMPLING_RATE,
    "feature_size": MEL_BINS,
    "num_mel_bins": MEL_BINS,
    "stride": STACK,
    "padding_side": "right",
    "return_attention_mask": True,
}
# Where models with a head keep the encoder.
_PREFIX = "wav2vec2_bert."
_OUTSIDE = ("masked_spec_embed", "adapter.", "intermediate_ffn.")
_HEADS = ("lm_head.", "projector.", "classifier.", "layer_weights", "tdnn.", "feature_extractor.", "objective.")


class _Source(NamedTuple):
    """A tensor of the source.

    Attributes:
      name: of a layer's tensor, within the layer.
      shape: of it.
      turned: our shape, where ours has its axes in reverse, less those of one element; None where it is taken as it is.
    """

    name: str
    shape: tuple[int, ...]
    turned: tuple[int, ...] | None = None


def from_huggingface(
    root: pathlib.Path, fields: dict[str, Any], found: dict[str, Found], layer: int | None
) -> tuple[W2vBertConfig, dict[str, np.ndarray], list[str]]:
    """Reads the layers up to the tapped one; see `pretrained.import_encoder`.

    Returns:
      (config, float32 arrays by dotted name, names of the tensors left out).
    """
    config, layers = _config(Fields(root / "config.json", fields, _DEFAULTS), layer)
    _check_extractor(root / "preprocessor_config.json")
    prefix = _PREFIX if any(name.startswith(_PREFIX) for name in found) else ""
    params: dict[str, np.ndarray] = {}
    for ours, source in _outer(config):
        params[ours] = _read(take(root, found, prefix + source.name, source.shape), source)
    used = {prefix + source.name for _, source in _outer(config)}
    for ours, source in _of_layer(config):
        names = [f"{prefix}encoder.layers.{i}.{source.name}" for i in range(config.layer)]
        members = [take(root, found, name, source.shape) for name in names]
        used.update(names)
        if members:
            # Filled layer by layer, so that no layer is held twice.
            stacked = np.empty((config.layer, *(source.turned or source.shape)), np.float32)
            for i, member in enumerate(members):
                stacked[i] = _read(member, source)
            params[ours] = stacked
    return config, params, _left_out(root, config, layers, prefix, found.keys() - used)


def _config(fields: Fields, layer: int | None) -> tuple[W2vBertConfig, int]:
    """The numbers of the network, and the layers of the source."""
    if fields.get("position_embeddings_type") != "relative_key":
        raise fields.error(
            "position_embeddings_type", "only relative_key is supported, that of w2v-BERT 2.0", fields.get("position_embeddings_type")
        )
    if fields.get("hidden_act") not in ("swish", "silu"):
        raise fields.error("hidden_act", "only swish (silu) is supported, that of w2v-BERT 2.0")
    if fields.get("feature_projection_input_dim") != MEL_BINS * STACK:
        raise fields.error("feature_projection_input_dim", f"only {MEL_BINS * STACK} is supported, {STACK} windows of {MEL_BINS} mel bins")
    layers, width, heads = (fields.whole(name) for name in ("num_hidden_layers", "hidden_size", "num_attention_heads"))
    if width % heads:
        raise fields.error("num_attention_heads", f"hidden_size = {width} must be a multiple of it; copy the file again")
    tapped = layers if layer is None else layer
    if type(tapped) is not int or not 0 <= tapped <= layers:
        raise UserError(f"layer = {layer!r}: {fields.path} has {layers} layers; tap one of 0 to {layers}")
    config = W2vBertConfig(
        layer=tapped,
        model_width=width,
        heads=heads,
        mlp_width=fields.whole("intermediate_size"),
        kernel=fields.whole("conv_depthwise_kernel_size"),
        left=fields.whole("left_max_position_embeddings"),
        right=fields.whole("right_max_position_embeddings"),
        norm_epsilon=fields.number("layer_norm_eps"),
    )
    return config, layers


def _check_extractor(path: pathlib.Path) -> None:
    if not path.exists():
        raise UserError(f"{path}: not there; it says how the model takes sound: copy it too")
    fields = Fields(path, read_fields(path), _EXTRACTOR)
    for name, wanted in _EXTRACTOR.items():
        if type(fields.get(name)) is not type(wanted) or fields.get(name) != wanted:
            raise fields.error(name, f"only {wanted} is supported, as w2v-BERT 2.0 has it")


def _linear(ours: str, theirs: str, into: int, out: int) -> Iterator[tuple[str, _Source]]:
    yield f"{ours}.weight_DF", _Source(f"{theirs}.weight", (out, into), (into, out))
    yield f"{ours}.bias_F", _Source(f"{theirs}.bias", (out,))


def _norm(ours: str, theirs: str, width: int) -> Iterator[tuple[str, _Source]]:
    yield f"{ours}.scale_D", _Source(f"{theirs}.weight", (width,))
    yield f"{ours}.bias_D", _Source(f"{theirs}.bias", (width,))


def _outer(config: W2vBertConfig) -> Iterator[tuple[str, _Source]]:
    """Our name and the source's, of the parameters before the layers."""
    yield from _norm("input_norm", "feature_projection.layer_norm", STACK * MEL_BINS)
    yield from _linear("input", "feature_projection.projection", STACK * MEL_BINS, config.model_width)


def _of_layer(config: W2vBertConfig) -> Iterator[tuple[str, _Source]]:
    """Our name and the source's, of the parameters of a layer."""
    width = config.model_width
    for ours, theirs in (
        ("mlp1_norm", "ffn1_layer_norm"),
        ("attention_norm", "self_attn_layer_norm"),
        ("convolution_norm", "conv_module.layer_norm"),
        ("convolution.norm", "conv_module.depthwise_layer_norm"),
        ("mlp2_norm", "ffn2_layer_norm"),
        ("final_norm", "final_layer_norm"),
    ):
        yield from _norm(f"layers.{ours}", theirs, width)
    for ours, theirs in (("mlp1", "ffn1"), ("mlp2", "ffn2")):
        yield from _linear(f"layers.{ours}.up", f"{theirs}.intermediate_dense", width, config.mlp_width)
        yield from _linear(f"layers.{ours}.down", f"{theirs}.output_dense", config.mlp_width, width)
    for ours in ("q", "k", "v", "out"):
        yield from _linear(f"layers.attention.{ours}", f"self_attn.linear_{ours}", width, width)
    distances = (config.left + config.right + 1, width // config.heads)
    yield "layers.attention.distances_PC", _Source("self_attn.distance_embedding.weight", distances)
    # Convolutions of one tap, and the depthwise one: [out, in, taps].
    yield "layers.convolution.up_DF", _Source("conv_module.pointwise_conv1.weight", (2 * width, width, 1), (width, 2 * width))
    yield "layers.convolution.taps_PD", _Source("conv_module.depthwise_conv.weight", (width, 1, config.kernel), (config.kernel, width))
    yield "layers.convolution.down_DF", _Source("conv_module.pointwise_conv2.weight", (width, width, 1), (width, width))


def _read(member: Found, source: _Source) -> np.ndarray:
    values = tensors.read(*member).astype(np.float32)
    return values if source.turned is None else np.ascontiguousarray(values.T.reshape(source.turned))


def _left_out(root: pathlib.Path, config: W2vBertConfig, layers: int, prefix: str, names: set[str]) -> list[str]:
    """The tensors that are no part of the network.

    Raises:
      UserError: one of them is unknown.
    """
    of_layer = {source.name for _, source in _of_layer(config)}
    for name in sorted(names):
        inside = name.removeprefix(prefix) if name.startswith(prefix) else ""
        above = re.fullmatch(r"encoder\.layers\.(\d+)\.(.+)", inside)
        known = inside.startswith(_OUTSIDE) or (prefix and name.startswith(_HEADS))
        if above:
            known = config.layer <= int(above[1]) < layers and above[2] in of_layer
        if not known:
            raise UserError(f"{root}: tensor {name} is not one of a wav2vec2-bert model of this config.json; copy all files again")
    return sorted(names)
