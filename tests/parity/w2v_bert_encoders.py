"""Tiny w2v-BERT models, utterances, and what transformers computes of them: tests/data/parity/encoders/w2v_bert*/.

Every mechanism, changed or removed one at a time, must show in the last hidden state, or a test against these files proves nothing.
"""

import contextlib
import pathlib
import shutil
import zlib
from collections.abc import Iterator

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers.models.seamless_m4t import feature_extraction_seamless_m4t as extraction
from transformers.models.wav2vec2_bert import modeling_wav2vec2_bert as modeling

OUT = pathlib.Path(__file__).parents[1] / "data" / "parity"
# Of the largest value of the last hidden state; the tests allow 1e-4.
VISIBLE = 5e-3
# Distances are clamped on both sides within every utterance.
SIZES = {
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "intermediate_size": 24,
    "conv_depthwise_kernel_size": 7,
    "left_max_position_embeddings": 11,
    "right_max_position_embeddings": 3,
}
# What released models with a head on them may have: adapters, other bounds, numbers of 16 bits.
CTC_SIZES = SIZES | {
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "conv_depthwise_kernel_size": 5,
    "left_max_position_embeddings": 4,
    "right_max_position_embeddings": 9,
    "vocab_size": 11,
    "add_adapter": True,
    "use_intermediate_ffn_before_adapter": True,
}
# Samples. 41 windows to the sample; one sample less than 62; 86; 118. Odd and even numbers.
LENGTHS = (400 + 40 * 160, 400 + 61 * 160 - 1, 14_013, 19_171)
SILENCE = slice(5_000, 10_000)


def utterances() -> list[np.ndarray]:
    """Chirps in noise that swells, of several loudnesses and offsets; the third has a stretch of nothing but its offset."""
    sounds = []
    for i, (length, loudness, offset) in enumerate(zip(LENGTHS, (0.7, 0.05, 0.3, 0.01), (0.02, -0.003, 0.011, 0.0), strict=True)):
        random = np.random.default_rng([zlib.crc32(b"w2v_bert"), i])
        seconds = np.arange(length) / 16_000
        phase = 2 * np.pi * (120 + 40 * i) * (seconds + 0.1 * seconds**2)
        swell = 0.15 + np.abs(np.sin(2 * np.pi * (1.7 + 0.6 * i) * seconds))
        sound = swell * (sum(np.sin(k * phase) / k for k in range(1, 9)) + 0.3 * random.standard_normal(length))
        sound *= loudness / np.abs(sound).max()
        if i == 2:
            sound[SILENCE] = 0.0
        sounds.append((sound + offset).astype(np.float32))
    return sounds


def randomise(model: torch.nn.Module, seed: str) -> None:
    """Sets each parameter from its name: distances N(0, 1.5²), matrices N(0, 1.5² / fan-in), norms and biases N(0, 0.3²) around no effect."""
    for name, parameter in model.named_parameters():
        random = np.random.default_rng([zlib.crc32(seed.encode()), zlib.crc32(name.encode())])
        values = random.standard_normal(tuple(parameter.shape)).astype(np.float32)
        if "distance_embedding" in name:
            values *= 1.5
        elif parameter.ndim >= 2:
            values *= 1.5 / np.sqrt(parameter[0].numel())
        else:
            values = values * np.float32(0.3) + np.float32("norm" in name and name.endswith("weight"))
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values))


def extract(samples_T: np.ndarray, extractor: transformers.SeamlessM4TFeatureExtractor | None = None) -> dict[str, torch.Tensor]:
    extractor = extractor or transformers.SeamlessM4TFeatureExtractor()
    return dict(extractor(samples_T, sampling_rate=16_000, return_tensors="pt"))


def hidden_states(encoder: torch.nn.Module, inputs: dict[str, torch.Tensor], frames: int) -> np.ndarray:
    """float32 [layers + 1, frames, D] of an utterance alone."""
    with torch.no_grad():
        states = encoder(**inputs, output_hidden_states=True).hidden_states
    assert len(states) == encoder.config.num_hidden_layers + 1
    return torch.cat(states).numpy()[:, :frames]


@contextlib.contextmanager
def replaced(owner, name: str, value) -> Iterator[None]:
    before = getattr(owner, name)
    setattr(owner, name, value)
    try:
        yield
    finally:
        setattr(owner, name, before)


def weight_changes(weights: dict[str, torch.Tensor]) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What was changed, and the weights: each kind of norm and bias without effect, and the distances."""
    kinds: dict[str, list[str]] = {}
    for name in weights:
        if name.endswith("bias") or "norm" in name:
            kinds.setdefault(name.split(".", 3)[-1] if ".layers." in name else name, []).append(name)
    # A bias of keys adds the same number to all scores of a query, which softmax takes away.
    del kinds["self_attn.linear_k.bias"]
    for kind, names in sorted(kinds.items()):
        neutral = torch.ones_like if kind.endswith("weight") else torch.zeros_like
        yield kind, weights | {name: neutral(weights[name]) for name in names}
    distances = [name for name in weights if "distance_embedding" in name]
    for what, change in {
        "distances": torch.zeros_like,
        "direction of distances": lambda x_PC: x_PC.flip(0),
        "left bound": lambda x_PC: torch.cat([x_PC[1:2], x_PC[1:]]),
        "right bound": lambda x_PC: torch.cat([x_PC[:-1], x_PC[-2:-1]]),
    }.items():
        yield what, weights | {name: change(weights[name]) for name in distances}


def code_changes() -> Iterator[tuple[str, contextlib.AbstractContextManager]]:
    """What is changed in the published network, and where it is so."""
    functional, attention, mlp = torch.nn.functional, modeling.eager_attention_forward, modeling.Wav2Vec2BertFeedForward.forward
    pad, glu = functional.pad, functional.glu
    yield "half MLPs", replaced(modeling.Wav2Vec2BertFeedForward, "forward", lambda self, x: 2 * mlp(self, x))
    yield "causal convolution", replaced(functional, "pad", lambda x, size: pad(x, (sum(size) // 2, sum(size) // 2)))
    yield "gate", replaced(functional, "glu", lambda x, dim: x.chunk(2, dim)[0])
    yield "side of the gate", replaced(functional, "glu", lambda x, dim: glu(torch.cat(x.chunk(2, dim)[::-1], dim), dim))
    yield "activation", replaced(torch.nn.SiLU, "forward", lambda self, x: functional.gelu(x))
    yield (
        "scale of scores",
        replaced(modeling, "eager_attention_forward", lambda *args, scaling, **more: attention(*args, scaling=1.2 * scaling, **more)),
    )


def input_changes(samples_T: np.ndarray) -> Iterator[tuple[str, dict[str, torch.Tensor]]]:
    """What was changed in the published extractor, and its output; of an utterance with silence and an odd number of windows."""
    spectrogram = extraction.spectrogram
    for what, change in {
        "pre-emphasis": {"preemphasis": None},
        "offset of a window": {"remove_dc_offset": False},
        "floor": {"mel_floor": 1e-6},
        "power": {"power": 1.0},
        "logarithm": {"log_mel": None},
    }.items():
        with replaced(extraction, "spectrogram", lambda *args, change=change, **own: spectrogram(*args, **(own | change))):
            yield what, extract(samples_T)
    for what, name, value in (
        ("window", "window", np.hanning(400)),
        (
            "filters",
            "mel_filters",
            extraction.mel_filter_bank(257, 80, 0, 8000, 16_000, mel_scale="kaldi", triangularize_in_mel_space=True),
        ),
    ):
        extractor = transformers.SeamlessM4TFeatureExtractor()
        setattr(extractor, name, value)
        yield what, extract(samples_T, extractor)
    yield "full scale", extract(samples_T / 2**15)
    inputs = extract(samples_T)
    yield "statistics of the odd window", extract(samples_T[:-160])
    yield "mask of the odd window", inputs | {"attention_mask": torch.ones_like(inputs["attention_mask"])}
    features_FW = inputs["input_features"]
    yield "order of a frame's windows", inputs | {"input_features": features_FW.roll(80, -1)}
    raw = transformers.SeamlessM4TFeatureExtractor()(samples_T, sampling_rate=16_000, return_tensors="pt", do_normalize_per_mel_bins=False)
    yield "statistics", dict(raw)


def assert_visible(encoder: torch.nn.Module, samples_T: np.ndarray) -> dict[str, float]:
    """Largest difference of the last hidden state that each change makes."""
    frames = int(extract(samples_T)["attention_mask"].sum())
    last_FD = hidden_states(encoder, extract(samples_T), frames)[-1]
    weights = {name: value.clone() for name, value in encoder.state_dict().items()}
    seen = {}

    def see(what: str, inputs: dict[str, torch.Tensor]) -> None:
        seen[what] = float(np.abs(hidden_states(encoder, inputs, frames)[-1] - last_FD).max() / np.abs(last_FD).max())

    for what, changed in weight_changes(weights):
        encoder.load_state_dict(changed)
        see(what, extract(samples_T))
    encoder.load_state_dict(weights)
    for what, change in code_changes():
        with change:
            see(what, extract(samples_T))
    for what, inputs in input_changes(samples_T):
        see(what, inputs)
    hidden = {what: size for what, size in seen.items() if size < VISIBLE}
    assert not hidden, f"the fixture does not show {hidden}"
    return seen


def write_model(out: pathlib.Path, model: torch.nn.Module, sounds: list[np.ndarray], with_features: bool) -> None:
    """A Hugging Face folder, with the states and, as the extractor gives them, the features of each utterance."""
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    # The released extractor pads with ones; its mask hides them.
    extractor = transformers.SeamlessM4TFeatureExtractor(padding_value=1.0)
    extractor.save_pretrained(out)
    encoder = getattr(model, "wav2vec2_bert", model).float()
    encoder.adapter = None
    tensors = {}
    for i, samples_T in enumerate(sounds):
        inputs = extract(samples_T, extractor)
        frames = int(inputs["attention_mask"].sum())
        tensors |= {f"samples.{i}": samples_T, f"hidden.{i}": hidden_states(encoder, inputs, frames)}
        if with_features:
            tensors[f"features.{i}"] = inputs["input_features"].numpy()[0, :frames]
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, out / "reference.safetensors")
    print(f"{out.name}: {sum(path.stat().st_size for path in out.iterdir()) / 1e3:.0f} kB")


def write(out: pathlib.Path) -> None:
    """Writes the folders under `out`/encoders."""
    sounds = utterances()
    config = transformers.Wav2Vec2BertConfig(**SIZES, attn_implementation="eager")
    model = transformers.Wav2Vec2BertModel(config).eval()
    randomise(model, "w2v_bert")
    write_model(out / "encoders" / "w2v_bert", model, sounds, with_features=True)
    # Odd windows, with silence.
    seen = assert_visible(model, sounds[2][:-160])
    least = min(seen, key=seen.__getitem__)
    print(f"{len(seen)} mechanisms; least: {least}, {seen[least]:.2g} of the largest value")
    ctc = transformers.Wav2Vec2BertForCTC(transformers.Wav2Vec2BertConfig(**CTC_SIZES, attn_implementation="eager")).eval()
    randomise(ctc, "w2v_bert_ctc")
    write_model(out / "encoders" / "w2v_bert_ctc", ctc.half(), sounds[:1], with_features=False)


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in one order
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write(OUT)
