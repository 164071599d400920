"""Tiny audio towers of Gemma 3n and Gemma 4, utterances, and what transformers computes of them: tests/data/parity/encoders/gemma*/."""

import copy
import json
import pathlib
import shutil
import zlib

import numpy as np
import torch
import transformers
from safetensors.numpy import save_file
from transformers.models.gemma3n import modeling_gemma3n as gemma3n
from transformers.models.gemma4 import modeling_gemma4 as gemma4
from usm_mechanisms import Tower, assert_visible, extract, hidden_states

OUT = pathlib.Path(__file__).parents[1] / "data" / "parity"
# Clamps and the cap bite; the norms of the light convolution have an epsilon of their own that counts.
GEMMA3N = {
    "hidden_size": 16,
    "rms_norm_eps": 0.3,
    "gradient_clipping": 1.5,
    "conf_attention_chunk_size": 5,
    "conf_attention_context_left": 4,
    "conf_attention_logit_cap": 1.5,
    "conf_num_attention_heads": 2,
    "conf_num_hidden_layers": 3,
    "conf_conv_kernel_size": 4,
    "conf_residual_weight": 0.4,
    "sscp_conv_channel_size": (8, 6),
    "sscp_conv_group_norm_eps": 0.3,
}
GEMMA4 = {
    "hidden_size": 16,
    "rms_norm_eps": 0.3,
    "gradient_clipping": 1.5,
    "attention_chunk_size": 6,
    "attention_context_left": 7,
    "attention_logit_cap": 1.5,
    "num_attention_heads": 2,
    "num_hidden_layers": 3,
    "conv_kernel_size": 4,
    "residual_weight": 0.4,
    "subsampling_conv_channels": (128, 6),
    "output_proj_dims": 6,
}
TEXT = {
    "vocab_size": 32,
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 2,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 4,
    "global_head_dim": 4,
    "vocab_size_per_layer_input": 32,
    "hidden_size_per_layer_input": 4,
    "layer_types": ["sliding_attention", "full_attention"],
}
VISION = {
    "hidden_size": 8,
    "intermediate_size": 8,
    "num_hidden_layers": 1,
    "num_attention_heads": 1,
    "num_key_value_heads": 1,
    "head_dim": 8,
    "position_embedding_size": 4,
    "patch_size": 2,
}
SILENCE = slice(5_000, 7_500)


def bins(shift: float) -> list[float]:
    return (shift + np.sin(np.arange(128) / 9.0)).round(3).tolist()


def tower3n(config: transformers.Gemma3nAudioConfig) -> Tower:
    model = gemma3n.Gemma3nAudioEncoder(config).eval()
    return Tower(model, model.conformer, transformers.Gemma3nAudioFeatureExtractor(), 513, False)


def tower4(model: torch.nn.Module) -> Tower:
    extractor = transformers.Gemma4AudioFeatureExtractor(per_bin_mean=bins(-2.0), per_bin_stddev=bins(2.5), input_scale_factor=0.8)
    return Tower(model, model.layers, extractor, 161, True)


def utterances(first: int) -> list[np.ndarray]:
    """Chirps in noise that swells, of several loudnesses and offsets; the third has a stretch of nothing but its offset.

    41 mel windows to the sample, one sample less than 63, 83 and 96: each remainder by 4, which the front end takes together.
    """
    lengths = (first + 160 * 40, first + 160 * 62 - 1, first + 160 * 82 + 77, first + 160 * 95 + 13)
    sounds = []
    for i, (length, loudness, offset) in enumerate(zip(lengths, (0.7, 0.05, 0.3, 0.01), (0.02, -0.003, 0.011, 0.0), strict=True)):
        random = np.random.default_rng([zlib.crc32(b"usm"), i])
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
    """Sets each parameter from its name: matrices N(0, 1 / fan-in), what clamps follow more, norms and scales N(0, 0.3²) around no effect."""
    for name, parameter in model.named_parameters():
        random = np.random.default_rng([zlib.crc32(seed.encode()), zlib.crc32(name.encode())])
        values = random.standard_normal(tuple(parameter.shape))
        values = values / np.sqrt(parameter[0].numel()) if parameter.ndim >= 2 else 0.3 * values + ("norm" in name)
        if name.endswith(("ffw_layer_2.linear.weight", "post.linear.weight", "linear_end.linear.weight", "depthwise_conv1d.weight")):
            values *= 3.0
        with torch.no_grad():
            parameter.copy_(torch.from_numpy(values.astype(np.float32)))


def set_bounds(tower: Tower, samples_T: np.ndarray) -> None:
    """Sets the bounds of Gemma 4's linears to quantiles of what they meet, in the order in which they meet it.

    What comes out of one may meet a clamp or the bounds of the next one: of two such, nothing meets the first one in odd layers, the second in even ones.
    """

    def bound(module: torch.nn.Module, end: str, x: torch.Tensor, share: float) -> None:
        for side, quantile in (("min", share), ("max", 1 - share)):
            value = np.quantile(x.numpy(), quantile) if share else 2 * np.abs(x.numpy()).max() * (-1 if side == "min" else 1)
            getattr(module, f"{end}_{side}").fill_(float(value.round(2)))

    hooks = []
    for name, module in tower.model.named_modules():
        if isinstance(module, gemma4.Gemma4ClippableLinear):
            odd = int(name.split(".")[1]) % 2 == 1
            output = 0.0 if odd and name.endswith(("ffw_layer_1", "ffw_layer_2", "post", "v_proj")) else 0.25
            input_ = 0.0 if not odd and name.endswith("ffw_layer_2") else 0.15
            hooks.append(module.register_forward_pre_hook(lambda module, inputs, share=input_: bound(module, "input", inputs[0], share)))
            hooks.append(
                module.linear.register_forward_hook(lambda _, inputs, y, module=module, share=output: bound(module, "output", y, share))
            )
    with torch.no_grad():
        tower.model(*extract(tower, samples_T))
    for hook in hooks:
        hook.remove()


def write_model(out: pathlib.Path, model: torch.nn.Module, tower: Tower, sounds: list[np.ndarray]) -> None:
    """A Hugging Face folder of `model`, which holds the tower, with its states of each utterance and the features of the first one."""
    shutil.rmtree(out, ignore_errors=True)
    model.save_pretrained(out)
    (out / "generation_config.json").unlink(missing_ok=True)
    tensors = {}
    for i, samples_T in enumerate(sounds):
        inputs = extract(tower, samples_T)
        tensors |= {f"samples.{i}": samples_T, f"hidden.{i}": hidden_states(tower, *inputs)}
        if i == 0:
            tensors["features.0"] = inputs[0][0].numpy()
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, out / "reference.safetensors")


def write_whole(out: pathlib.Path) -> None:
    """A whole Gemma 4 with numbers of 16 bits and the extractor's settings inside the processor's, as it is released."""
    torch.manual_seed(0)  # of what is beside the tower
    sizes = GEMMA4 | {"num_hidden_layers": 2, "hidden_size": 8, "conv_kernel_size": 5, "attention_chunk_size": 7}
    config = transformers.Gemma4Config(
        text_config=transformers.Gemma4TextConfig(**TEXT),
        vision_config=transformers.Gemma4VisionConfig(**VISION),
        audio_config=transformers.Gemma4AudioConfig(**sizes),
    )
    model = transformers.Gemma4ForConditionalGeneration(config).eval()
    tower = tower4(model.model.audio_tower)._replace(extractor=transformers.Gemma4AudioFeatureExtractor())
    sounds = utterances(tower.first)[:2]
    randomise(tower.model, "gemma4 whole")
    set_bounds(tower, sounds[0])
    model.load_state_dict({name: value.bfloat16().float() for name, value in model.state_dict().items()})
    write_model(out, copy.deepcopy(model).bfloat16(), tower, sounds)
    settings = {"feature_extractor": json.loads(tower.extractor.to_json_string()), "processor_class": "Gemma4Processor"}
    (out / "processor_config.json").write_text(json.dumps(settings, indent=2, sort_keys=True) + "\n")


def write(out: pathlib.Path) -> None:
    """Writes the folders under `out`/encoders."""
    for name, tower in (
        ("gemma3n_audio", tower3n(transformers.Gemma3nAudioConfig(**GEMMA3N))),
        ("gemma4_audio", tower4(gemma4.Gemma4AudioModel(transformers.Gemma4AudioConfig(**GEMMA4)).eval())),
    ):
        randomise(tower.model, name.removesuffix("_audio"))
        sounds = utterances(tower.first)
        set_bounds(tower, sounds[2])
        write_model(out / "encoders" / name, tower.model, tower, sounds)
        tower.extractor.save_pretrained(out / "encoders" / name)
        seen = assert_visible(tower, sounds[2])
        least = min(seen, key=seen.__getitem__)
        print(f"{name}: {len(seen)} mechanisms; least: {least}, {seen[least]:.2g} of the largest value")
    write_whole(out / "encoders" / "gemma4")
    for folder in sorted((out / "encoders").glob("gemma*")):
        print(f"{folder.name}: {sum(path.stat().st_size for path in folder.iterdir()) / 1e3:.0f} kB")


if __name__ == "__main__":
    torch.set_num_threads(1)  # sums in one order
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    write(OUT)
