"""Writes tests/data/parity/: tiny models, their reference hidden states and embeddings, and tokenizers. `make parity` runs it.

Running it again gives the same bytes on the same machine. Torch and transformers are in the environment of `make parity` only, so no test
imports this folder.
"""

import pathlib
import shutil
import sys

import codebooks
import hubert_encoders
import languages
import numpy as np
import torch
import transformers
import usm_encoders
import w2v_bert_encoders
from families import FAMILIES, Family
from mechanisms import assert_visible
from reference import build, hidden_states, random_tokens
from released import write_released
from safetensors import safe_open
from safetensors.numpy import save_file
from sentence_directory import PROMPTS, by_hand, embedding, load, write_modules
from sentences import TEXTS
from tokenizer_directories import write_gemma, write_json, write_qwen, write_tokenizers

OUT = pathlib.Path(__file__).parents[1] / "data" / "parity"
# What the directory has beside both of "tokenizer.model" and "tokenizer.json", as Gemma's releases have.
FILES = {"gemma1": ("model",), "gemma2": ("json",)}


def save_model(family: Family, model: torch.nn.Module, directory: pathlib.Path) -> None:
    """A Hugging Face directory, whose names of layers must begin as the family says."""
    model.save_pretrained(directory, max_shard_size=family.shard_size)
    names = []
    for path in sorted(directory.glob("*.safetensors")):
        with safe_open(path, "np") as file:
            names += file.keys()
    assert f"{family.prefix}layers.0.mlp.up_proj.weight" in names, names


def write_tokenizer(family: Family, directory: pathlib.Path) -> transformers.PreTrainedTokenizerBase:
    if family.tokenizer == "qwen":
        write_qwen(directory, end=family.pooling != "")
    else:
        write_gemma(directory, FILES.get(family.name, ("model", "json")), end=family.pooling != "")
    return transformers.AutoTokenizer.from_pretrained(directory)


def sequences(family: Family, tokenizer: transformers.PreTrainedTokenizerBase) -> tuple[list[np.ndarray], list[dict]]:
    """Random tokens, then texts with what the tokenizer puts around them, and which of the sequences came from which text."""
    texts = [{"text": TEXTS["mixed scripts"], "prompt_name": None}]
    if family.pooling:
        texts += [{"text": TEXTS[name], "prompt_name": "query"} for name in ("Latin", "Devanagari")]
    prompts = PROMPTS.get(family.name, {})
    found = random_tokens(family)
    for entry in texts:
        entry["index"] = len(found)
        found.append(np.array(tokenizer(prompts.get(entry["prompt_name"], "") + entry["text"])["input_ids"], np.int32))
    return found, texts


def write(family: Family) -> None:
    directory = OUT / family.name
    shutil.rmtree(directory, ignore_errors=True)
    model = build(family)
    save_model(family, model, directory)
    tokens, texts = sequences(family, write_tokenizer(family, directory))
    tensors = {}
    for i, tokens_L in enumerate(tokens):
        states, final = hidden_states(model, tokens_L)
        tensors |= {f"tokens.{i}": tokens_L, f"hidden.{i}": states, f"final.{i}": final}
    if family.pooling:
        write_modules(family, directory)
        whole = load(directory)
        tensors |= {f"embedding.{i}": embedding(whole, tokens_L) for i, tokens_L in enumerate(tokens)}
        for i in range(len(tokens)):
            assert np.abs(by_hand(family, directory, tensors[f"final.{i}"]) - tensors[f"embedding.{i}"]).max() < 1e-5
        for entry in texts:
            encoded = whole.encode(entry["text"], prompt_name=entry["prompt_name"], normalize_embeddings=False)
            assert np.abs(encoded - tensors[f"embedding.{entry['index']}"]).max() < 1e-6
    save_file({name: np.ascontiguousarray(value) for name, value in tensors.items()}, directory / "reference.safetensors")
    write_json(directory / "reference_texts.json", texts)
    write_released(family, model, directory, tokens[3])
    least = min(assert_visible(family, model, tokens[3]).items(), key=lambda pair: pair[1])
    size = sum(path.stat().st_size for path in directory.rglob("*") if path.is_file())
    print(f"{family.name}: {size / 1e3:.0f} kB; least of the mechanisms: {least[0]}, {least[1]:.2g} of the largest value")


def main() -> None:
    torch.set_num_threads(1)  # sums in one order
    transformers.logging.set_verbosity_error()
    transformers.utils.logging.disable_progress_bar()
    wanted = sys.argv[1:]
    for make in FAMILIES:
        family = make()
        if not wanted or family.name in wanted:
            write(family)
    if not wanted or "tokenizers" in wanted:
        write_tokenizers(OUT / "tokenizers")
    others = (hubert_encoders, w2v_bert_encoders, usm_encoders, codebooks, languages)
    for name, module in zip(("hubert", "w2v_bert", "usm", "codebooks", "languages"), others, strict=True):
        if not wanted or name in wanted:
            module.write(OUT)


if __name__ == "__main__":
    main()
