"""Random weights in which every mechanism matters, and the hidden states that transformers computes with them."""

import copy
import zlib

import numpy as np
import torch
from families import VOCABULARY, Family

LENGTHS = (1, 7, 24, 50)


def randomise(model: torch.nn.Module, family: Family) -> None:
    """Sets each parameter from its name: rows of a table N(0, 1), matrices N(0, 1.5² / fan-in), norms N(0, 0.3²) around no effect."""
    for name, parameter in model.named_parameters():
        random = np.random.default_rng([zlib.crc32(family.name.encode()), zlib.crc32(name.encode())])
        values = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
        if "embed" in name:
            pass
        elif parameter.ndim >= 2:
            values *= 1.5 / np.sqrt(parameter[0].numel())
        elif "norm" in name and name.endswith("weight"):
            values = values * np.float32(0.3) + np.float32(not family.plus_one)
        else:
            values *= np.float32(0.3)
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def build(family: Family, changes: dict | None = None, weights: dict | None = None) -> torch.nn.Module:
    """The family's model, for evaluation, in float32.

    Args:
      changes: fields that differ from the family's configuration (of its text part, where it has parts).
      weights: of another model of the family; new ones by default.
    """
    config = copy.deepcopy(family.config)
    if changes:
        text = config.get_text_config()
        fields = text.to_dict() | changes
        changed = type(text)(**fields)
        if text is config:
            config = changed
        else:
            config.text_config = changed
    config._attn_implementation = "eager"
    model = family.model(config).to(torch.float32).eval()
    if weights is None:
        randomise(model, family)
    else:
        model.load_state_dict(weights)
    return model


def decoder(model: torch.nn.Module) -> torch.nn.Module:
    """The part that has `layers` and `norm`."""
    while not hasattr(model, "layers"):
        model = getattr(model, "language_model", None) or model.model
    return model


def hidden_states(model: torch.nn.Module, tokens_L: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Of one sequence alone, unpadded, without a cache.

    Returns:
      float32 [layers + 1, L, D]: the embedding's output, then each block's, all before the final norm; and float32 [L, D] after it.
    """
    stack, seen = decoder(model), []
    hooks = [stack.layers[0].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))]
    hooks += [layer.register_forward_hook(lambda _, inputs, output: seen.append(output)) for layer in stack.layers]
    hooks += [stack.norm.register_forward_hook(lambda _, inputs, output: seen.append(output))]
    with torch.no_grad():
        output = model(input_ids=torch.from_numpy(tokens_L.astype(np.int64))[None], use_cache=False, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    assert len(seen) == len(stack.layers) + 2
    for ours, theirs in zip(seen[:-2], output.hidden_states[:-1], strict=True):
        assert torch.equal(ours, theirs)
    states = torch.cat(seen).numpy().astype(np.float32)
    return states[:-1], states[-1]


def random_tokens(family: Family) -> list[np.ndarray]:
    """int32 sequences over the whole vocabulary, of LENGTHS."""
    random = np.random.default_rng(zlib.crc32(family.name.encode()))
    return [random.integers(0, VOCABULARY - 3, length, dtype=np.int32) for length in LENGTHS]
