"""A run small enough for a test: three languages, some hundred recordings, by the command line's own functions."""

import pathlib
import subprocess
import sys

from xretrieval import main

ROOT = pathlib.Path(__file__).parent.parent
GIN = ["gin_configs/runs/polyglot.gin"]
SIZES = [
    "corpus.seen_languages=('en_us','de_de')",
    "UNSEEN_LANGUAGES=('nl_nl',)",
    "corpus.train_sentences=100",
    "corpus.validation_sentences=8",
    "corpus.test_sentences=20",
    "fit_units.num_units=64",
    "fit_units.utterances_per_language=40",
    "extract_units.num_shards=2",
    "extract_units.num_workers=1",
    "text_tokenizer.vocab_size=150",
    "train.batch_size=32",
    "train.num_steps=30",
    "train.log_every=10",
    "train.checkpoint_every=10",
    "TowerConfig.width=64",
    "TowerConfig.layers=1",
    "TowerConfig.head_dim=32",
    "TowerConfig.mlp_hidden=128",
]


def settings(root):
    places = {
        "CORPUS": "corpus",
        "UNIT_TOKENIZER": "unit_tokenizer",
        "UNITS": "units",
        "TOKENIZER": "tokenizer.model",
        "RECORDS": "records",
    }
    places |= {"WORKDIR": "train", "MODEL": "model", "REPORT": ".", "INDEX": "index.db", "fit_units.manifest": "corpus/train.jsonl"}
    manifests = (str(root / "corpus/train.jsonl"), str(root / "corpus/text_unseen_train.jsonl"))
    return [*SIZES, f"TOKENIZER_MANIFESTS={manifests!r}", *(f"{name}={root / place}" for name, place in places.items())]


def run(root: pathlib.Path) -> pathlib.Path:
    """Every verb, in the order of the data."""
    for verb in ("corpus", "units fit", "units extract", "data tokenizer", "data build", "train", "export", "evaluate", "index"):
        main.run_verb(verb, GIN, settings(root))
    return root


def command(verb, root, *more):
    overrides = [flag for setting in [*settings(root), *more] for flag in ("--set", setting)]
    return [sys.executable, "-m", "xretrieval", *verb.split(), *(f"--gin_file={file}" for file in GIN), *overrides]


def start(verb, root, *more):
    return subprocess.Popen(command(verb, root, *more), cwd=ROOT, start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
