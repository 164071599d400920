"""Gemma 4's audio tower: its fields and the names of its tensors. It is tapped before `output_proj`.

Its frames are not reduced after the layers. Its linears come with bounds, scalars beside each weight, of what goes in and comes out.
"""

import math
import pathlib
from typing import Any

from xretrieval.huggingface_folder import Fields
from xretrieval.units.encoders.usm_folder import (
    Source,
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
from xretrieval.units.encoders.usm_network import UsmConfig

DEFAULTS: dict[str, Any] = {
    "hidden_size": 1024,
    "num_hidden_layers": 12,
    "num_attention_heads": 8,
    "hidden_act": "silu",
    "subsampling_conv_channels": [128, 32],
    "conv_kernel_size": 5,
    "residual_weight": 0.5,
    "attention_chunk_size": 12,
    "attention_context_left": 13,
    "attention_context_right": 0,
    "attention_logit_cap": 50.0,
    "attention_invalid_logits_value": -1e9,
    "use_clipped_linears": True,
    "rms_norm_eps": 1e-6,
    "gradient_clipping": 1e10,
}
_EXTRACTOR = {
    "frame_length_ms": 20.0,
    "min_frequency": 0.0,
    "max_frequency": 8000.0,
    "preemphasis": 0.0,
    "fft_overdrive": False,
    "mel_floor": 1e-3,
}
LAYERS = "layers"
OUTSIDE = ("output_proj.weight", "output_proj.bias")
# exp of less is 0 in float32, so that hidden keys count for nothing.
_NOTHING = -110.0


def read_config(root: pathlib.Path, fields: Fields, layer: int | None) -> tuple[UsmConfig, int]:
    """The numbers of the network, and the layers of the source."""
    extractor = extractor_fields(root, "Gemma4AudioFeatureExtractor", _EXTRACTOR)
    if fields.get("hidden_act") != "silu":
        raise fields.error("hidden_act", "only silu is supported, that of Gemma 4")
    if type(fields.get("use_clipped_linears")) is not bool:
        raise fields.error("use_clipped_linears", "true or false is needed; copy the file again")
    tapped, layers = check_layer(fields, "num_hidden_layers", layer)
    numbers, channels = frontend_numbers(extractor), pair_of_whole(fields, "subsampling_conv_channels")
    attention = attention_numbers(fields, "")
    config = UsmConfig(
        lead=numbers["window"] // 2,
        floor_added=True,
        channels=channels,
        frames_before=1,
        cumulative_norm=False,
        frontend_epsilon=fields.number("rms_norm_eps"),
        layer=tapped,
        lookback=_lookback(fields, attention),
        key_scale=math.log1p(math.e) / math.log(2.0),
        bounded=fields.get("use_clipped_linears"),
        **numbers,
        **attention,
    )
    if config.frontend_width != channels[0] // 4 * channels[1]:
        raise fields.error(
            "subsampling_conv_channels",
            f"a quarter of the first one must be that of feature_size = {config.mel_bins}; copy both files again",
        )
    return config, layers


def _lookback(fields: Fields, attention: dict[str, Any]) -> int:
    """Frames before its own that a query sees: transformers counts `attention_context_left` with it, and takes one less again in its mask."""
    left, block = fields.whole("attention_context_left"), attention["block"]
    if left < 2 or (block + left - 1) // 2 != left - 1:
        # Its distances begin at half of what a block sees.
        raise fields.error(
            "attention_context_left", f"must be 2 or more, and attention_chunk_size = {block} it or one less, as Gemma 4 has them"
        )
    hidden, cap = fields.get("attention_invalid_logits_value"), attention["soft_cap"]
    if type(hidden) not in (int, float) or not hidden + cap < _NOTHING:
        raise fields.error(
            "attention_invalid_logits_value", f"must be less than {_NOTHING} - attention_logit_cap, so that it hides a frame"
        )
    return left - 2


def outer(config: UsmConfig) -> Sources:
    """Our name and the source's, of the parameters before the layers."""
    first, second = config.channels
    yield from convolution("frontend.convolution1", "subsample_conv_projection.layer0", 1, first)
    yield from convolution("frontend.convolution2", "subsample_conv_projection.layer1", first, second)
    yield from linear("input_DF", "subsample_conv_projection.input_proj_linear", config.frontend_width, config.model_width)


def of_layer(config: UsmConfig) -> Sources:
    """Our name and the source's, of the parameters of a layer."""
    width = config.model_width
    for ours, theirs in (
        ("mlp1.before", "feed_forward1.pre_layer_norm"),
        ("mlp1.after", "feed_forward1.post_layer_norm"),
        ("before_attention", "norm_pre_attn"),
        ("after_attention", "norm_post_attn"),
        ("convolution.before", "lconv1d.pre_layer_norm"),
        ("convolution.norm", "lconv1d.conv_norm"),
        ("mlp2.before", "feed_forward2.pre_layer_norm"),
        ("mlp2.after", "feed_forward2.post_layer_norm"),
        ("final_norm", "norm_out"),
    ):
        yield from as_it_is(f"layers.{ours}.scale_D", f"{theirs}.weight", width)
    for ours, theirs, into, out in (
        ("mlp1.up", "feed_forward1.ffw_layer_1", width, 4 * width),
        ("mlp1.down", "feed_forward1.ffw_layer_2", 4 * width, width),
        ("attention.q", "self_attn.q_proj", width, width),
        ("attention.k", "self_attn.k_proj", width, width),
        ("attention.v", "self_attn.v_proj", width, width),
        ("attention.out", "self_attn.post", width, width),
        ("convolution.up", "lconv1d.linear_start", width, 2 * width),
        ("convolution.down", "lconv1d.linear_end", width, width),
        ("mlp2.up", "feed_forward2.ffw_layer_1", width, 4 * width),
        ("mlp2.down", "feed_forward2.ffw_layer_2", 4 * width, width),
    ):
        yield from linear(f"layers.{ours}.weight_DF", f"{theirs}.linear", into, out)
        if config.bounded:
            for end in ("input", "output"):
                yield f"layers.{ours}.{end}_bounds_2", Source((f"{theirs}.{end}_min", f"{theirs}.{end}_max"), (), (0,))
    yield from linear("layers.attention.distances.weight_DF", "self_attn.relative_k_proj", width, width)
    yield from as_it_is("layers.attention.channel_scale_C", "self_attn.per_dim_scale", width // config.heads)
    yield from depthwise("layers.convolution.weight_PD", "lconv1d.depthwise_conv1d", config.kernel, width)
