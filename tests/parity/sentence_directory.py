"""What makes a model's directory one of sentence-transformers: pooling, dense heads, prompts; and the embeddings it gives."""

import pathlib
import zlib

import numpy as np
import sentence_transformers
import torch
from families import WIDTH, Family
from safetensors.numpy import load_file, save_file
from tokenizer_directories import write_json

PROMPTS = {
    "embeddinggemma": {"query": "task: search result | query: ", "document": "title: none | text: "},
    "qwen3_embedding": {"query": "Instruct: Given a question, find the sentences that answer it\nQuery:", "document": ""},
}


def write_modules(family: Family, directory: pathlib.Path) -> None:
    """Writes the files in the dialect of the released models' directories, which sentence-transformers 6 reads as well as its own."""
    dense = {f"{i}_Dense": pair for i, pair in enumerate(zip((WIDTH, *family.dense), family.dense, strict=False), start=2)}
    folders = ["", "1_Pooling", *dense, f"{len(dense) + 2}_Normalize"]
    kinds = ["Transformer", *(folder.split("_")[1] for folder in folders[1:])]
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(zip(folders, kinds, strict=True))
    ]
    write_json(directory / "modules.json", modules)
    write_json(directory / "sentence_bert_config.json", {"max_seq_length": 512, "do_lower_case": False})
    described = {
        "model_type": "SentenceTransformer",
        "prompts": PROMPTS[family.name],
        "default_prompt_name": None,
        "similarity_fn_name": "cosine",
    }
    write_json(directory / "config_sentence_transformers.json", described)
    (directory / "1_Pooling").mkdir()
    modes = ("cls_token", "mean_tokens", "max_tokens", "mean_sqrt_len_tokens", "weightedmean_tokens", "lasttoken")
    pooling = {f"pooling_mode_{mode}": mode.startswith(family.pooling) and "sqrt" not in mode for mode in modes}
    write_json(directory / "1_Pooling" / "config.json", {"word_embedding_dimension": WIDTH, **pooling, "include_prompt": True})
    for folder, (fan_in, fan_out) in dense.items():
        (directory / folder).mkdir()
        identity = "torch.nn.modules.linear.Identity"
        described = {"in_features": fan_in, "out_features": fan_out, "bias": False, "activation_function": identity}
        write_json(directory / folder / "config.json", described)
        random = np.random.default_rng(zlib.crc32(folder.encode()))
        weight = (random.standard_normal((fan_out, fan_in)) * 1.5 / np.sqrt(fan_in)).astype(np.float32)
        save_file({"linear.weight": weight}, directory / folder / "model.safetensors", {"format": "pt"})


def load(directory: pathlib.Path) -> sentence_transformers.SentenceTransformer:
    options = {"attn_implementation": "eager", "dtype": torch.float32}
    return sentence_transformers.SentenceTransformer(str(directory), device="cpu", local_files_only=True, model_kwargs=options).eval()


def embedding(model: sentence_transformers.SentenceTransformer, tokens_L: np.ndarray) -> np.ndarray:
    """float32 [E], of unit norm: what the directory's modules make of one sequence of token IDs, alone and unpadded."""
    ids = torch.from_numpy(tokens_L.astype(np.int64))[None]
    with torch.no_grad():
        found = model({"input_ids": ids, "attention_mask": torch.ones_like(ids)})["sentence_embedding"][0].numpy()
    assert abs(np.linalg.norm(found) - 1) < 1e-5
    return found


def by_hand(family: Family, directory: pathlib.Path, final_LD: np.ndarray) -> np.ndarray:
    """The same from the states after the final norm: a library that runs the model another way than we recorded it would differ."""
    pooled = final_LD[-1] if family.pooling == "lasttoken" else final_LD.mean(axis=0)
    for path in sorted(directory.glob("*_Dense/model.safetensors")):
        pooled = load_file(path)["linear.weight"] @ pooled
    return pooled / np.linalg.norm(pooled)
