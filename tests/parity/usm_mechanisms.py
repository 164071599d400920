"""Each mechanism of Gemma's audio towers, changed or removed one at a time: it must show, or a test against the fixtures proves nothing."""

import contextlib
import functools
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import torch
from transformers.models.gemma3n import modeling_gemma3n as gemma3n
from transformers.models.gemma4 import modeling_gemma4 as gemma4

# Of the largest value of the last hidden state; the tests allow 1e-4.
VISIBLE = 5e-3


class Tower(NamedTuple):
    """One of the two, and what tells them apart.

    Attributes:
      model: a tower.
      layers: its layers.
      extractor: of its features.
      first: samples that have one mel window.
      valid: what the model's mask says of a valid window.
    """

    model: torch.nn.Module
    layers: torch.nn.ModuleList
    extractor: Any
    first: int
    valid: bool


def extract(tower: Tower, samples_T: np.ndarray) -> tuple[torch.Tensor, torch.Tensor]:
    """float32 [1, N, 128] and bool [1, N] of the utterance as it is: neither padded to a multiple of 128 samples nor cut at 30 s."""
    found = tower.extractor([samples_T], return_tensors="pt", pad_to_multiple_of=None, truncation=False)
    assert found["input_features_mask"].all()
    return found["input_features"], found["input_features_mask"]


def hidden_states(tower: Tower, features_1NW: torch.Tensor, mask_1N: torch.Tensor) -> np.ndarray:
    """float32 [layers + 1, F, D]: what goes into the first layer and comes out of each, before a reduction or projection."""
    seen: list[torch.Tensor] = []

    def keep_input(_, inputs, named):
        seen.append((inputs[0] if inputs else named["hidden_states"]).clone())

    hooks = [tower.layers[0].register_forward_pre_hook(keep_input, with_kwargs=True)]
    hooks += [layer.register_forward_hook(lambda _, inputs, output: seen.append(output.clone())) for layer in tower.layers]
    with torch.no_grad():
        tower.model(features_1NW, mask_1N == tower.valid)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(tower.layers) + 1
    return torch.cat(seen).numpy()


@contextlib.contextmanager
def replaced(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Sets attributes: (owner, name, value) each."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    for owner, name, value in changes:
        setattr(owner, name, value)
    try:
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def weight_changes(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What was changed, and the weights: each kind of norm, scale and bound without effect, and distances that are not there."""
    kinds: dict[str, list[str]] = {}
    for name in weights:
        kind = name.split(".", 2)[-1] if name.startswith(("layers.", "conformer.")) else name
        if "norm" in kind or kind.endswith(("per_dim_scale", "_min", "_max", "pos_proj.weight", "relative_k_proj.weight")):
            kinds.setdefault(kind, []).append(name)
    for kind, names in sorted(kinds.items()):
        neutral = 1.0 if "norm" in kind else -np.inf if kind.endswith("_min") else np.inf if kind.endswith("_max") else 0.0
        yield kind, weights | {name: torch.full_like(weights[name], neutral) for name in names}


def without_clamp(place: int, bound: float) -> Callable:
    """torch.clamp that leaves out the `place`-th clamp between -bound and bound of every layer, which has eight."""
    clamp, count = torch.clamp, 0

    def changed(x, *bounds, **named):
        nonlocal count
        if len(bounds) < 2 or float(bounds[1]) != bound:
            return clamp(x, *bounds, **named)
        count += 1
        return x if (count - 1) % 8 == place else clamp(x, *bounds)

    return changed


def off_centre(x, shape, weight, bias, epsilon):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + epsilon) * weight


def true_variance(self, x):
    """The cumulative norm with the variance around the mean so far."""
    count = torch.cumsum(torch.ones_like(x[:, :, :1, :1]), 1) * x[0, 0].numel()
    mean, square = (torch.cumsum(y.sum((2, 3), keepdim=True), 1) / count for y in (x, x.pow(2)))
    return (x - mean) * torch.rsqrt(square - mean.pow(2) + self.eps) * self.weight


def code_changes(tower: Tower) -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    """What is changed in the published networks, and where it is so."""
    functional, config = torch.nn.functional, tower.model.config
    pad, glu = functional.pad, functional.glu
    modules = list(tower.model.modules())

    def everywhere(name: str, value: Callable) -> contextlib.AbstractContextManager:
        return replaced(*((module, name, value(getattr(module, name))) for module in modules if hasattr(module, name)))

    for place in range(8):
        yield f"clamp {place}", replaced((torch, "clamp", without_clamp(place, config.gradient_clipping)))
    yield "soft cap", everywhere("softcap", lambda cap: cap * 100)
    yield "activation", replaced((functional, "silu", lambda x, inplace=False: functional.gelu(x)))
    yield "ReLU", replaced((functional, "relu", lambda x, inplace=False: x))
    yield "gate", replaced((functional, "glu", lambda x, dim: x.chunk(2, dim)[0]))
    yield "side of the gate", replaced((functional, "glu", lambda x, dim: glu(torch.cat(x.chunk(2, dim)[::-1], dim), dim)))

    def centred(x, size, *args, **named):
        return pad(x, (1, size[0] - 1) if len(size) == 2 and size[1] == 0 else size, *args, **named)

    yield "causal convolution", replaced((functional, "pad", centred))
    yield "residual weight", everywhere("post_layer_scale", lambda weight: weight * 1.25)
    norms = [module for module in modules if type(module).__name__.endswith("RMSNorm")]
    for what, wrong in (("epsilon of the convolution", config.rms_norm_eps), ("epsilon of other norms", 1e-6)):
        yield what, replaced(*((norm, "eps", 0.3 if norm.eps == 1e-6 else 1e-6) for norm in norms if norm.eps == wrong))
    yield "order of distances", everywhere("inv_timescales", lambda rate: -rate)
    yield "scale of queries", everywhere("q_scale", lambda scale: scale * 1.2)
    yield "halves of the distances", everywhere("inv_timescales", lambda rate: rate.flip(-1))
    yield from code_changes_3n(modules) if tower.first == 513 else code_changes_4(modules)


def code_changes_3n(modules: list) -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    masks = [module for module in modules if hasattr(module, "local_causal_valid_mask")]
    for what, change in (
        ("farthest frame", lambda mask: mask & ~torch.eye(*mask.shape, dtype=torch.bool)),
        ("a frame farther", lambda mask: mask | torch.eye(*mask.shape, dtype=torch.bool).roll(-1, 1)),
        ("own frame", lambda mask: mask & ~torch.eye(*mask.shape, dtype=torch.bool).roll(3, 1)),
    ):
        yield what, replaced(*((module, "local_causal_valid_mask", change(module.local_causal_valid_mask)) for module in masks))
    blocks = [module for module in modules if hasattr(module, "manual_padding")]
    yield "frames before", replaced(*((block, "manual_padding", (1, 1, 1, 1)) for block in blocks))
    norm = gemma3n.Gemma3nAudioCumulativeGroupNorm
    yield "cumulative statistics", replaced((torch, "cumsum", lambda x, dim: x.sum(dim, keepdim=True).expand_as(x)))
    yield "form of the variance", replaced((norm, "forward", true_variance))
    yield "epsilon of the front end", replaced(*((module, "eps", 1e-3) for module in modules if isinstance(module, norm)))


def code_changes_4(modules: list) -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    window = gemma4.sliding_window_mask_function
    for what, more in (("farthest frame", -1), ("a frame farther", 1)):
        yield what, replaced((gemma4, "sliding_window_mask_function", lambda size, more=more: window((size[0] + more, size[1]))))
    attention = [module for module in modules if hasattr(module, "k_scale")]
    yield "scale of keys", replaced(*((module, "k_scale", 1.0) for module in attention))
    convolutions = [module for module in modules if isinstance(module, torch.nn.Conv2d)]

    def later(x, module):
        return torch.nn.functional.conv2d(torch.nn.functional.pad(x, (1, 1, 0, 2)), module.weight, stride=2)

    yield "frames before", replaced(*((module, "forward", functools.partial(later, module=module)) for module in convolutions))
    yield "mean of the front end", replaced((torch.nn.functional, "layer_norm", off_centre))
    norms = [module for module in modules if isinstance(module, torch.nn.LayerNorm)]
    yield "epsilon of the front end", replaced(*((module, "eps", 1e-6) for module in norms))


def input_changes(tower: Tower, samples_T: np.ndarray) -> Iterator[tuple[str, torch.Tensor]]:
    """What was changed in the published extractor, and the features that it gives."""
    extractor = tower.extractor

    def features() -> torch.Tensor:
        return extract(tower, samples_T)[0]

    for what, name, change in (
        ("pre-emphasis", "preemphasis", lambda x: 0.97 - x),
        ("window", "window", lambda x: np.hanning(len(x)).astype(np.float32) ** 0.85),
        ("filters", "mel_filters", lambda x: np.roll(x, 1, axis=1)),
        ("floor", "mel_floor", lambda x: x * 10),
        ("scale", "input_scale_factor", lambda x: x * 1.2),
        ("length of the transform", "fft_length", lambda x: x),
    ):
        with replaced((extractor, name, change(getattr(extractor, name)))):
            if name == "fft_length":
                filters_FW = extractor.mel_filters[::2] if tower.first == 513 else np.repeat(extractor.mel_filters, 2, axis=0)[:-1]
                with replaced((extractor, name, (len(filters_FW) - 1) * 2), (extractor, "mel_filters", filters_FW)):
                    yield what, features()
            else:
                yield what, features()
    if tower.first == 513:
        with replaced((extractor, "preemphasis_htk_flavor", False)):
            yield "first sample of a window", features()
    else:
        for name in ("per_bin_mean", "per_bin_stddev"):
            with replaced((extractor, name, None)):
                yield name, features()
        yield "silence before", extract(tower, samples_T[160:])[0]
    for what, name, change in (("power", "abs", lambda x: np.square(np.absolute(x))), ("logarithm", "log", lambda x: x)):
        with replaced((np, name, change)):
            yield what, features()


def assert_visible(tower: Tower, samples_T: np.ndarray) -> dict[str, float]:
    """Largest difference of the last hidden state that each change makes."""
    inputs = extract(tower, samples_T)
    last_FD = hidden_states(tower, *inputs)[-1]
    weights = {name: value.clone() for name, value in tower.model.state_dict().items()}
    seen = {}

    def see(what: str, features_1NW: torch.Tensor) -> None:
        found_FD = hidden_states(tower, features_1NW, torch.ones(features_1NW.shape[:2], dtype=torch.bool))[-1]
        frames = min(len(found_FD), len(last_FD))
        seen[what] = float(np.abs(found_FD[:frames] - last_FD[:frames]).max() / np.abs(last_FD).max())

    for what, changed in weight_changes(weights):
        tower.model.load_state_dict(changed)
        see(what, inputs[0])
    tower.model.load_state_dict(weights)
    for what, change in code_changes(tower):
        with change:
            see(what, inputs[0])
    for what, features_1NW in input_changes(tower, samples_T):
        see(what, features_1NW)
    see("nothing", inputs[0])
    assert seen.pop("nothing") == 0
    hidden = {what: size for what, size in seen.items() if not size >= VISIBLE}
    assert not hidden, f"the fixture does not show {hidden}"
    return seen
