"""What trains, side by side: R@1 of unit embeddings only and of adapters beside that of all, from one LLM, on the corpus of a finished demo.

`make bench NAME=trainable JSON=trainable.json` after `make demo`. The LLM is a checkpoint that `transformers` writes with random weights: it shows
that each way trains, not what an LLM brings.
"""

import os
import pathlib
import shutil
import tempfile

import torch
import transformers

from benchmarks import rows
from xretrieval import main

ROOT = pathlib.Path(__file__).parents[1]
DEMO = os.environ.get("DEMO_DIR", "demo_run")
TOKENIZER = ROOT / "tests/data/parity/gemma3/tokenizer.json"
STEPS = 1_000
SETTINGS = (
    *(f"{name}={DEMO}/{place}" for name, place in (("CORPUS", "corpus"), ("UNITS", "units"), ("UNIT_TOKENIZER", "unit_tokenizer"))),
    *(f"train.num_steps={STEPS}", "OptimizerConfig.learning_rate=3e-3", "OptimizerConfig.unit_learning_rate_multiplier=1.0"),
    *("ComputeConfig.attention=dense", "ComputeConfig.remat=False"),
)
SEARCHES = {
    "speech to transcript, trained languages": "speech_to_text_r1_seen",
    "speech to English text": "speech_to_english_r1_seen",
    "speech to transcript, languages never heard": "speech_to_text_r1_unseen",
}


def write_llm(folder: str) -> None:
    """A Gemma 3 of 0.4 million parameters with as many rows as its tokenizer has pieces."""
    config = transformers.Gemma3TextConfig(
        vocab_size=709,
        hidden_size=128,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        head_dim=64,
        query_pre_attn_scalar=64,
        layer_types=["full_attention"] * 2,
    )
    torch.manual_seed(0)
    transformers.Gemma3ForCausalLM(config).save_pretrained(folder)
    shutil.copyfile(TOKENIZER, f"{folder}/tokenizer.json")


def trained(root: str, what: str) -> dict[str, float]:
    """R@1 by kind of search."""
    places = {"LLM": "llm", "RECORDS": "records", "WORKDIR": what, "MODEL": f"{what}/model", "REPORT": f"{what}"}
    overrides = [*SETTINGS, f"TRAIN_WHAT={what}", *(f"{name}={root}/{place}" for name, place in places.items())]
    files = ["gin_configs/runs/from_llm.gin", f"{root}/llm/tower.gin"]
    for verb in ("data build", "train", "export", "evaluate"):
        found = main.run_verb(verb, files, overrides)
    return found["headline"]


def run() -> list[dict]:
    with tempfile.TemporaryDirectory() as root:
        write_llm(f"{root}/source")
        if main.main(["import-llm", f"{root}/source", "--out", f"{root}/llm"]):
            raise SystemExit(2)
        found = {what: trained(root, what) for what in ("units", "lora", "all")}
    names = {"units": "unit embeddings only", "lora": "unit embeddings and adapters of rank 8"}
    return [
        rows.row(f"R@1, {search}, {STEPS} steps: {names[what]}", found[what][key], found["all"][key], "all parameters", None, True)
        for what in names
        for search, key in SEARCHES.items()
    ]


if __name__ == "__main__":
    rows.main(run)
