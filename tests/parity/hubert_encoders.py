"""Tiny HuBERT and wav2vec 2.0 models, utterances, and what transformers computes of them: folders of tests/data/parity/encoders/.

Every mechanism, changed or removed one at a time, must show in the last hidden state, or a test against these files proves nothing.
"""

import contextlib
import functools
import pathlib
import shutil
import zlib
from collections.abc import Iterator
from typing import NamedTuple

import numpy as np
import torch
import transformers
from safetensors.numpy import load_file, save_file
from transformers.models.hubert import modeling_hubert
from transformers.models.wav2vec2 import modeling_wav2vec2

OUT = pathlib.Path(__file__).parents[1] / "data" / "parity"
# Of the largest value of the last hidden state; the tests allow 1e-4.
VISIBLE = 5e-3
# Samples: 21 frames to the sample; one sample less than 34; 43; 47. Odd and even numbers of them.
LENGTHS = (400 + 20 * 320, 400 + 33 * 320 - 1, 14_013, 15_269)
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_dim": [6, 8, 8, 8, 8, 8, 10],
    "num_conv_pos_embeddings": 16,
    "num_conv_pos_embedding_groups": 4,
    # So large that it shows; the norms of the convolutions have 1e-5 nevertheless.
    "layer_norm_eps": 0.03,
}
STABLE = {"do_stable_layer_norm": True, "feat_extract_norm": "layer", "conv_bias": True}


class Family(NamedTuple):
    """A fixture: its name, the models of transformers, fields that differ from SIZES, and how it is stored.

    Attributes:
      model: with whatever head released ones have.
      prefix: where that keeps the encoder.
      old: weight norms are spelled as in files of PyTorch 1.
    """

    name: str
    modeling: object
    model: type
    prefix: str
    fields: dict
    normalise: bool = True
    half: bool = False
    old: bool = False


FAMILIES = (
    # Without the norm of the projection's input, as distilled models are, and an odd number of taps.
    Family("hubert_base", modeling_hubert, transformers.HubertModel, "", {"feat_proj_layer_norm": False, "num_conv_pos_embeddings": 15}),
    Family("hubert_large", modeling_hubert, transformers.HubertForCTC, "hubert", STABLE | {"vocab_size": 11}, half=True),
    Family(
        "wav2vec2_base",
        modeling_wav2vec2,
        transformers.Wav2Vec2ForPreTraining,
        "wav2vec2",
        {"codevector_dim": 8, "proj_codevector_dim": 8, "num_codevectors_per_group": 4, "num_attention_heads": 4},
        old=True,
    ),
    Family(
        "xlsr", modeling_wav2vec2, transformers.Wav2Vec2Model, "", STABLE | {"add_adapter": True, "num_adapter_layers": 1}, normalise=False
    ),
)


def utterances() -> list[np.ndarray]:
    """Chirps in noise that swells, of several loudnesses and offsets."""
    sounds = []
    for i, (length, loudness, offset) in enumerate(zip(LENGTHS, (0.7, 0.05, 0.3, 0.004), (0.02, -0.003, 0.11, 0.0), strict=True)):
        random = np.random.default_rng([zlib.crc32(b"hubert"), i])
        seconds = np.arange(length) / 16_000
        phase = 2 * np.pi * (110 + 50 * i) * (seconds + 0.1 * seconds**2)
        swell = 0.15 + np.abs(np.sin(2 * np.pi * (1.3 + 0.7 * i) * seconds))
        sound = swell * (sum(np.sin(k * phase) / k for k in range(1, 9)) + 0.3 * random.standard_normal(length))
        sounds.append((loudness * sound / np.abs(sound).max() + offset).astype(np.float32))
    return sounds


def randomise(model: torch.nn.Module, seed: str) -> None:
    """Sets each parameter from its name: matrices N(0, 1.5² / fan-in), lengths of weight norms 1 to 2, other vectors N(0, 0.3²) around no effect."""
    for name, parameter in model.named_parameters():
        random = np.random.default_rng([zlib.crc32(seed.encode()), zlib.crc32(name.encode())])
        values = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
        if "original0" in name:
            values = 1 + np.abs(np.tanh(values))
        elif parameter.ndim >= 2:
            values *= 1.5 / np.sqrt(parameter[0].numel())
        else:
            values = values * np.float32(0.3) + np.float32("norm" in name and name.endswith("weight"))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def build(family: Family, changes: dict | None = None) -> torch.nn.Module:
    """The family's model, for evaluation."""
    fields = SIZES | family.fields | (changes or {})
    model = family.model(family.model.config_class(**fields, attn_implementation="eager")).eval()
    randomise(model, family.name)
    return model


def encoder_of(model: torch.nn.Module, family: Family) -> torch.nn.Module:
    return getattr(model, family.prefix) if family.prefix else model


def extract(samples_T: np.ndarray, normalise: bool) -> torch.Tensor:
    extractor = transformers.Wav2Vec2FeatureExtractor(do_normalize=normalise)
    return extractor(samples_T, sampling_rate=16_000, return_tensors="pt")["input_values"]


def hidden_states(encoder: torch.nn.Module, inputs_BT: torch.Tensor) -> np.ndarray:
    """float32 [layers + 1, F, D] of an utterance alone."""
    with torch.no_grad():
        states = encoder(inputs_BT, output_hidden_states=True).hidden_states
    assert len(states) == encoder.config.num_hidden_layers + 1
    return torch.cat(states).numpy()


@contextlib.contextmanager
def replaced(owner, name: str, value) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def weight_changes(weights: dict[str, torch.Tensor], stable: bool) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What was changed, and the weights: each kind of norm and bias without effect, and the convolution of positions."""
    kinds: dict[str, list[str]] = {}
    for name in weights:
        if (name.endswith("bias") or "norm" in name) and not name.startswith(("adapter.", "lm_head.")):
            kinds.setdefault(name.split(".", 3)[-1] if ".layers." in name else name, []).append(name)
    # A bias of keys adds the same number to all scores of a query, which softmax takes away; the norm after a stable model's last layer comes after its
    # last hidden state.
    for kind in ("attention.k_proj.bias", *(("encoder.layer_norm.weight", "encoder.layer_norm.bias") if stable else ())):
        del kinds[kind]
    for kind, names in sorted(kinds.items()):
        neutral = torch.ones_like if kind.endswith("weight") else torch.zeros_like
        yield kind, weights | {name: neutral(weights[name]) for name in names}
    length, direction = (f"encoder.pos_conv_embed.conv.parametrizations.weight.original{i}" for i in (0, 1))
    yield "positions", weights | {length: torch.zeros_like(weights[length])}
    yield "length of a tap", weights | {length: torch.ones_like(weights[length])}
    yield "direction's own length", weights | {length: weights[length] * weights[direction].norm(dim=(0, 1), keepdim=True)}
    yield "order of taps", weights | {name: weights[name].flip(-1) for name in (length, direction)}


def code_changes(encoder: torch.nn.Module, modeling) -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    """What is changed in the network, and where it is so."""
    relu, layers = torch.nn.ReLU(), encoder.encoder.layers

    def all_of(owners, name: str, value) -> contextlib.ExitStack:
        stack = contextlib.ExitStack()
        for owner in owners:
            stack.enter_context(replaced(owner, name, value))
        return stack

    convolutions = encoder.feature_extractor.conv_layers
    for i, convolution in enumerate(convolutions):
        yield f"activation of convolution {i}", replaced(convolution, "activation", relu)
    yield "activation of positions", replaced(encoder.encoder.pos_conv_embed, "activation", relu)
    yield "activation of MLPs", all_of([layer.feed_forward for layer in layers], "intermediate_act_fn", relu)
    yield "scale of scores", all_of([layer.attention for layer in layers], "scaling", 1.2 * layers[0].attention.scaling)
    norms = [convolution.layer_norm for convolution in convolutions if hasattr(convolution, "layer_norm")]
    yield "epsilon of convolutions", all_of(norms, "eps", encoder.config.layer_norm_eps)
    norms = [module for module in encoder.modules() if isinstance(module, torch.nn.LayerNorm) and module not in norms]
    yield "epsilon of other norms", all_of(norms, "eps", 1e-5)
    if getattr(encoder.config, "feat_proj_layer_norm", True):
        yield "norm of the projection's input", replaced(encoder.feature_projection, "layer_norm", torch.nn.Identity())
    if encoder.config.num_conv_pos_embeddings % 2 == 0:
        name = "HubertSamePadLayer" if modeling is modeling_hubert else "Wav2Vec2SamePadLayer"
        yield "the dropped frame", replaced(getattr(modeling, name), "forward", lambda self, x_BDF: x_BDF[:, :, 1:])


def input_changes(samples_T: np.ndarray, normalise: bool) -> Iterator[tuple[str, torch.Tensor]]:
    inputs_BT = extract(samples_T, normalise)
    yield "normalised samples", extract(samples_T, not normalise)
    yield "statistics and attention over the padding", torch.nn.functional.pad(inputs_BT, (0, 3_200))


def assert_visible(family: Family, sounds: list[np.ndarray]) -> dict[str, float]:
    """Largest difference of the last hidden state of any utterance that each change makes."""
    encoder = encoder_of(build(family), family)
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    last = [hidden_states(encoder, extract(samples_T, family.normalise))[-1] for samples_T in sounds]
    seen: dict[str, float] = {}

    def see(what: str, i: int, encoder: torch.nn.Module, inputs_BT: torch.Tensor) -> None:
        changed_FD = hidden_states(encoder, inputs_BT)[-1][: last[i].shape[0]]
        seen[what] = max(seen.get(what, 0.0), float(np.abs(changed_FD - last[i]).max() / np.abs(last[i]).max()))

    def see_all(what: str, encoder: torch.nn.Module) -> None:
        for i, samples_T in enumerate(sounds):
            see(what, i, encoder, extract(samples_T, family.normalise))

    for what, changed in weight_changes(weights, encoder.config.do_stable_layer_norm):
        encoder.load_state_dict(changed)
        see_all(what, encoder)
    encoder.load_state_dict(weights)
    for what, change in code_changes(encoder, family.modeling):
        with change:
            see_all(what, encoder)
    for i, samples_T in enumerate(sounds):
        for what, inputs_BT in input_changes(samples_T, family.normalise):
            see(what, i, encoder, inputs_BT)
    other = encoder_of(build(family, {"do_stable_layer_norm": not encoder.config.do_stable_layer_norm}), family)
    other.load_state_dict(weights, strict=False)
    see_all("place of a layer's norms", other)
    return seen


def write_family(out: pathlib.Path, family: Family, sounds: list[np.ndarray]) -> None:
    """A Hugging Face folder, with the states of each utterance."""
    shutil.rmtree(out, ignore_errors=True)
    model = build(family)
    if family.half:
        model = model.half()
    model.save_pretrained(out)
    transformers.Wav2Vec2FeatureExtractor(do_normalize=family.normalise).save_pretrained(out)
    if family.old:
        tensors = load_file(out / "model.safetensors")
        spelling = {"parametrizations.weight.original0": "weight_g", "parametrizations.weight.original1": "weight_v"}
        renamed = {functools.reduce(lambda name, new: name.replace(*new), spelling.items(), name): tensors[name] for name in tensors}
        save_file(renamed, out / "model.safetensors", {"format": "pt"})
    encoder = encoder_of(model.float(), family)
    tensors = {}
    for i, samples_T in enumerate(sounds):
        tensors |= {f"samples.{i}": samples_T, f"hidden.{i}": hidden_states(encoder, extract(samples_T, family.normalise))}
    save_file(tensors, out / "reference.safetensors")
    print(f"{out.name}: {sum(path.stat().st_size for path in out.iterdir()) / 1e3:.0f} kB")


def write(out: pathlib.Path) -> None:
    """Writes the folders under `out`/encoders."""
    sounds = utterances()
    for family in FAMILIES:
        write_family(out / "encoders" / family.name, family, sounds)
        seen = assert_visible(family, sounds)
        least = min(seen, key=seen.__getitem__)
        print(f"{len(seen)} mechanisms; least: {least}, {seen[least]:.2g} of the largest value")
        hidden = {what: size for what, size in seen.items() if size < VISIBLE}
        assert not hidden, f"{family.name}: the fixture does not show {hidden}"


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in one order
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write(OUT)
