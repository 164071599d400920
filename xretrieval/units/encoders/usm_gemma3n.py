"""Gemma 3n's audio tower: its fields and the names of its tensors. It is tapped before its reduction of frames, `conf_reduction_factor`."""

import pathlib
from typing import Any

from xretrieval.huggingface_folder import Fields
from xretrieval.units.encoders.usm_folder import (
    Sources,
    as_it_is,
    attention_numbers,
    check_layer,
    convolution,
    depthwise,
    extractor_fields,
    frontend_numbers,
    linear,
    pair_of_whole,
)
from xretrieval.units.encoders.usm_frontend import STRIDE, TAPS
from xretrieval.units.encoders.usm_network import UsmConfig

DEFAULTS: dict[str, Any] = {
    "input_feat_size": 128,
    "hidden_size": 1536,
    "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10,
    "conf_attention_chunk_size": 12,
    "conf_attention_context_left": 13,
    "conf_attention_context_right": 0,
    "conf_attention_logit_cap": 50.0,
    "conf_num_attention_heads": 8,
    "conf_num_hidden_layers": 12,
    "conf_conv_kernel_size": 5,
    "conf_residual_weight": 0.5,
    "sscp_conv_channel_size": [128, 32],
    "sscp_conv_group_norm_eps": 1e-3,
    "sscp_conv_kernel_size": [[TAPS, TAPS]] * 2,
    "sscp_conv_stride_size": [[STRIDE, STRIDE]] * 2,
}
_EXTRACTOR = {
    "frame_length_ms": 32.0,
    "min_frequency": 125.0,
    "max_frequency": 7600.0,
    "preemphasis": 0.97,
    "fft_overdrive": True,
    "mel_floor": 1e-5,
}
LAYERS = "conformer"
OUTSIDE: tuple[str, ...] = ()


def read_config(root: pathlib.Path, fields: Fields, layer: int | None) -> tuple[UsmConfig, int]:
    """The numbers of the network, and the layers of the source."""
    extractor = extractor_fields(root, "Gemma3nAudioFeatureExtractor", _EXTRACTOR)
    for name in ("sscp_conv_kernel_size", "sscp_conv_stride_size"):
        if fields.get(name) != DEFAULTS[name]:
            raise fields.error(name, f"only {DEFAULTS[name]} is supported, that of Gemma 3n")
    tapped, layers = check_layer(fields, "conf_num_hidden_layers", layer)
    numbers = frontend_numbers(extractor)
    if fields.get("input_feat_size") != numbers["mel_bins"]:
        raise fields.error("input_feat_size", f"{extractor.path} has feature_size = {numbers['mel_bins']}; copy both again")
    config = UsmConfig(
        lead=0,
        floor_added=False,
        channels=pair_of_whole(fields, "sscp_conv_channel_size"),
        frames_before=0,
        cumulative_norm=True,
        frontend_epsilon=fields.number("sscp_conv_group_norm_eps"),
        layer=tapped,
        lookback=fields.whole("conf_attention_context_left") - 1,
        key_scale=1.0,
        bounded=False,
        **numbers,
        **attention_numbers(fields, "conf_"),
    )
    return config, layers


def outer(config: UsmConfig) -> Sources:
    """Our name and the source's, of the parameters before the layers."""
    first, second = config.channels
    yield from convolution("frontend.convolution1", "subsample_conv_projection.conv_0", 1, first)
    yield from convolution("frontend.convolution2", "subsample_conv_projection.conv_1", first, second)
    yield from linear("input_DF", "subsample_conv_projection.input_proj_linear", config.frontend_width, config.model_width)


def of_layer(config: UsmConfig) -> Sources:
    """Our name and the source's, of the parameters of a layer."""
    width = config.model_width
    for ours, theirs in (
        ("mlp1.before", "ffw_layer_start.pre_layer_norm"),
        ("mlp1.after", "ffw_layer_start.post_layer_norm"),
        ("before_attention", "attention.pre_attn_norm"),
        ("after_attention", "attention.post_norm"),
        ("convolution.before", "lconv1d.pre_layer_norm"),
        ("convolution.norm", "lconv1d.conv_norm"),
        ("mlp2.before", "ffw_layer_end.pre_layer_norm"),
        ("mlp2.after", "ffw_layer_end.post_layer_norm"),
        ("final_norm", "norm"),
    ):
        yield from as_it_is(f"layers.{ours}.scale_D", f"{theirs}.weight", width)
    for ours, theirs, into, out in (
        ("mlp1.up", "ffw_layer_start.ffw_layer_1", width, 4 * width),
        ("mlp1.down", "ffw_layer_start.ffw_layer_2", 4 * width, width),
        ("attention.q", "attention.attn.q_proj", width, width),
        ("attention.k", "attention.attn.k_proj", width, width),
        ("attention.v", "attention.attn.v_proj", width, width),
        ("attention.distances", "attention.attn.relative_position_embedding.pos_proj", width, width),
        ("attention.out", "attention.post", width, width),
        ("convolution.up", "lconv1d.linear_start", width, 2 * width),
        ("convolution.down", "lconv1d.linear_end", width, width),
        ("mlp2.up", "ffw_layer_end.ffw_layer_1", width, 4 * width),
        ("mlp2.down", "ffw_layer_end.ffw_layer_2", 4 * width, width),
    ):
        yield from linear(f"layers.{ours}.weight_DF", theirs, into, out)
    yield from as_it_is("layers.attention.channel_scale_C", "attention.attn.per_dim_scale", width // config.heads)
    yield from depthwise("layers.convolution.weight_PD", "lconv1d.depthwise_conv1d", config.kernel, width)
