"""What the importers of Gemma 3n's and Gemma 4's audio towers share: the settings of the feature extractor, and which of our tensors is which of theirs."""

import math
import pathlib
from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import numpy as np

from xretrieval.errors import UserError
from xretrieval.huggingface_folder import Fields, read_fields
from xretrieval.units.encoders.encoder import SAMPLING_RATE
from xretrieval.units.encoders.usm_frontend import TAPS

# What both extractors take where nothing is said.
EXTRACTOR: dict[str, Any] = {
    "sampling_rate": SAMPLING_RATE,
    "feature_size": 128,
    "hop_length_ms": 10.0,
    "preemphasis_htk_flavor": True,
    "dither": 0.0,
    "input_scale_factor": 1.0,
}


class Source(NamedTuple):
    """Where the values of one of our tensors are in the source.

    Attributes:
      names: of tensors; several are put side by side.
      shape: of each.
      axes: of the source in our order; those of one element may then go.
    """

    names: tuple[str, ...]
    shape: tuple[int, ...]
    axes: tuple[int, ...]


Sources = Iterator[tuple[str, Source]]


def as_it_is(ours: str, name: str, *shape: int) -> Sources:
    yield ours, Source((name,), shape, tuple(range(len(shape))))


def linear(ours: str, name: str, into: int, out: int) -> Sources:
    yield ours, Source((f"{name}.weight",), (out, into), (1, 0))


def convolution(ours: str, theirs: str, channels_in: int, channels_out: int) -> Sources:
    """One of the front end's, with the scale of its norm; theirs are [out, in, windows, bins]."""
    yield f"{ours}.weight_PPCC", Source((f"{theirs}.conv.weight",), (channels_out, channels_in, TAPS, TAPS), (2, 3, 1, 0))
    yield from as_it_is(f"{ours}.norm.scale_C", f"{theirs}.norm.weight", channels_out)


def depthwise(ours: str, name: str, taps: int, width: int) -> Sources:
    yield ours, Source((f"{name}.weight",), (width, 1, taps), (2, 1, 0))


def extractor_fields(root: pathlib.Path, kind: str, defaults: Mapping[str, Any]) -> Fields:
    """The settings of the feature extractor `kind`, from where transformers takes them.

    Raises:
      UserError: they are not there, or another extractor's.
    """
    processor, path = root / "processor_config.json", root / "preprocessor_config.json"
    given = read_fields(processor).get("feature_extractor") if processor.exists() else None
    inside = ""
    if isinstance(given, dict):
        path, inside = processor, "feature_extractor."
    elif path.exists():
        given = read_fields(path)
    else:
        raise UserError(f"{path}: not there, nor {processor.name} with a feature_extractor; it says how the model takes sound: copy it too")
    fields = Fields(path, given, {"feature_extractor_type": kind, **EXTRACTOR, **defaults}, inside)
    if fields.get("feature_extractor_type") != kind:
        raise fields.error("feature_extractor_type", f"a model of this model_type needs {kind}; copy the model's own file")
    return fields


def frontend_numbers(fields: Fields) -> dict[str, Any]:
    """Those of `FrontendConfig` that an extractor's settings give.

    Raises:
      UserError: a setting that the front end cannot follow.
    """
    if fields.get("sampling_rate") != SAMPLING_RATE:
        raise fields.error("sampling_rate", f"only {SAMPLING_RATE} is supported")
    if _at_least_zero(fields, "dither"):
        raise fields.error("dither", "noise that is drawn anew each time is not supported; set it to 0")
    preemphasis = _at_least_zero(fields, "preemphasis")
    if preemphasis and fields.get("preemphasis_htk_flavor") is not True:
        raise fields.error("preemphasis_htk_flavor", "only true is supported")
    window, hop = (round(SAMPLING_RATE * fields.number(f"{name}_length_ms") / 1000) for name in ("frame", "hop"))
    fft = 2 ** math.ceil(math.log2(window)) * (2 if fields.get("fft_overdrive") is True else 1)
    # Written by transformers, which then computes them again from the lengths in ms.
    for name, value in (("frame_length", window), ("hop_length", hop), ("fft_length", fft)):
        if fields.get(name) not in (None, value):
            raise fields.error(
                name, f"transformers takes {value}, by frame_length_ms, hop_length_ms and fft_overdrive; correct one of them"
            )
    lowest, highest = _at_least_zero(fields, "min_frequency"), fields.number("max_frequency")
    if not lowest < highest <= SAMPLING_RATE / 2:
        raise fields.error("max_frequency", f"must lie between min_frequency = {lowest} and {SAMPLING_RATE // 2}")
    return {
        "window": window,
        "hop": hop,
        "fft": fft,
        "mel_bins": fields.whole("feature_size"),
        "lowest_hertz": lowest,
        "highest_hertz": highest,
        "preemphasis": preemphasis,
        "scale": fields.number("input_scale_factor"),
        "floor": fields.number("mel_floor"),
        "mean": _of_bins(fields, "per_bin_mean"),
        "deviation": _of_bins(fields, "per_bin_stddev"),
    }


def _at_least_zero(fields: Fields, name: str) -> float:
    return 0.0 if type(fields.get(name)) in (int, float) and fields.get(name) == 0 else fields.number(name)


def _of_bins(fields: Fields, name: str) -> tuple[float, ...]:
    """One number a mel bin, however deep in lists; none where the field is null or not there."""
    value = fields.get(name)
    if value is None:
        return ()
    try:
        numbers = np.array(value, np.float64).reshape(-1)
    except (TypeError, ValueError):
        numbers = np.empty(0)
    if (
        len(numbers) != fields.whole("feature_size")
        or not np.isfinite(numbers).all()
        or (name == "per_bin_stddev" and (numbers <= 0).any())
    ):
        raise fields.error(name, "must hold one number for each of feature_size bins, deviations above 0; copy the file again")
    return tuple(numbers.tolist())


def check_layer(fields: Fields, name: str, layer: int | None) -> tuple[int, int]:
    """The tapped layer, and the layers of the source by the field `name`."""
    layers = fields.whole(name)
    tapped = layers if layer is None else layer
    if type(tapped) is not int or not 0 <= tapped <= layers:
        raise UserError(f"layer = {layer!r}: {fields.path} has {layers} layers; tap one of 0 to {layers}")
    return tapped, layers


def pair_of_whole(fields: Fields, name: str) -> tuple[int, int]:
    """A field of two whole numbers, channels of the convolutions."""
    value = fields.get(name)
    if not isinstance(value, list | tuple) or len(value) != 2 or not all(type(n) is int and n > 0 for n in value):
        raise fields.error(name, "two whole numbers above 0 are needed; copy the file again")
    return value[0], value[1]


def attention_numbers(fields: Fields, prefix: str) -> dict[str, Any]:
    """Numbers of local attention that both towers have, by fields that begin with `prefix`.

    Raises:
      UserError: attention to later frames; a width that heads or sinusoids do not divide.
    """
    right = fields.get(f"{prefix}attention_context_right")
    if type(right) is not int or right != 0:
        raise fields.error(f"{prefix}attention_context_right", "only 0 is supported, attention to earlier frames")
    width, heads = fields.whole("hidden_size"), fields.whole(f"{prefix}num_attention_heads")
    if width % heads or width % 2:
        raise fields.error("hidden_size", f"must be even and a multiple of {prefix}num_attention_heads = {heads}; copy the file again")
    return {
        "model_width": width,
        "heads": heads,
        "block": fields.whole(f"{prefix}attention_chunk_size"),
        "soft_cap": fields.number(f"{prefix}attention_logit_cap"),
        "kernel": fields.whole(f"{prefix}conv_kernel_size"),
        "residual_weight": fields.number(f"{prefix}residual_weight"),
        "clamp": min(fields.number("gradient_clipping"), float(np.finfo(np.float32).max)),
        "convolution_epsilon": fields.number("rms_norm_eps"),
        "norm_epsilon": 1e-6,
    }
