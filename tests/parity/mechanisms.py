"""Each mechanism of a family, changed or removed one at a time: the fixtures must show it, or a test against them proves nothing."""

import numpy as np
import torch
from families import Family
from reference import build, decoder, hidden_states

# Of the layer's largest value; the tests allow 1e-4.
VISIBLE = 5e-3


def without_norms(model: torch.nn.Module, family: Family, kind: str) -> None:
    """Sets the weights of one kind of norm to no effect."""
    with torch.no_grad():
        for name, parameter in decoder(model).named_parameters():
            if f".{kind}." in f".{name}":
                parameter.fill_(0.0 if family.plus_one else 1.0)


def variants(family: Family, weights: dict):
    """Yields (what was changed, the changed model)."""
    for what, changes in family.changes.items():
        yield what, build(family, changes, weights)
    first = decoder(build(family, weights=weights))
    kinds = {name.split(".")[-2] for name, _ in first.named_parameters() if "norm" in name.split(".")[-2]}
    for kind in sorted(kinds):
        model = build(family, weights=weights)
        without_norms(model, family, kind)
        yield f"weight of {kind}", model
    if "q_norm" in kinds:
        model = build(family, weights=weights)
        for layer in decoder(model).layers:
            layer.self_attn.q_norm = layer.self_attn.k_norm = torch.nn.Identity()
        yield "normalised queries and keys", model
    if hasattr(first.embed_tokens, "embed_scale"):
        model = build(family, weights=weights)
        decoder(model).embed_tokens.embed_scale.fill_(1.0)
        yield "scale of the embedding", model


def assert_visible(family: Family, model: torch.nn.Module, tokens_L: np.ndarray) -> dict[str, float]:
    """Largest difference of the states after the last block and after the final norm that each change makes."""
    states = hidden_states(model, tokens_L)
    seen = {}
    for what, changed in variants(family, model.state_dict()):
        others = hidden_states(changed, tokens_L)
        seen[what] = max(float(np.abs(a[-1] - b[-1]).max() / np.abs(a[-1]).max()) for a, b in zip(states, others, strict=True))
    hidden = {what: size for what, size in seen.items() if size < VISIBLE}
    assert not hidden, f"{family.name}: the fixture does not show {hidden}"
    return seen
