"""The verbs, where their parts live, and their flags. Imports nothing heavy: `--help` is quick."""

import argparse
import difflib

from xretrieval.errors import UserError

# gin name -> where it lives. A verb registers its own and lets a run file's bindings for the others pass.
CONFIGURABLES = {
    "corpus": "xretrieval.demo.corpus:generate",
    "fit_units": "xretrieval.units.fit:fit",
    "LogMelConfig": "xretrieval.units.encoders.log_mel:LogMelConfig",
    "extract_units": "xretrieval.verbs:extract_units",
    "text_tokenizer": "xretrieval.data.build:text_tokenizer",
    "mixture": "xretrieval.verbs:mixture",
    "build": "xretrieval.verbs:build",
    "inspect_task": "xretrieval.verbs:inspect_task",
    "train": "xretrieval.train.loop:train",
    "training_data": "xretrieval.verbs:training_data",
    "plan_batches": "xretrieval.verbs:plan_batches",
    "validation": "xretrieval.verbs:validation",
    "TowerConfig": "xretrieval.model.tower:TowerConfig",
    "OptimizerConfig": "xretrieval.train.optimizer:OptimizerConfig",
    "LossConfig": "xretrieval.train.step:LossConfig",
    "ComputeConfig": "xretrieval.model.tower:ComputeConfig",
    "TrainableConfig": "xretrieval.train.trainable:TrainableConfig",
    "UnitInit": "xretrieval.model.unit_rows:UnitInit",
    "export": "xretrieval.verbs:export",
    "evaluate": "xretrieval.verbs:evaluate",
    "index": "xretrieval.verbs:index",
}

# Where the verbs write whose functions say nothing.
WRITES = {"corpus": "corpus.out_dir", "units fit": "fit_units.out_dir", "data tokenizer": "text_tokenizer.out_file"}
TRAIN = (
    *("train", "training_data", "validation", "mixture", "TowerConfig", "OptimizerConfig", "LossConfig", "ComputeConfig"),
    *("TrainableConfig", "UnitInit"),
)
CORPORA = ("covost2", "common_voice", "fleurs", "wikimatrix", "moses")
# Verbs that read no gin file -> their functions in commands.py.
COMMANDS = {
    "data manifest": "manifest",
    "data check": "check",
    "units import-encoder": "import_encoder",
    "units import-codebook": "import_codebook",
    "import-llm": "import_llm",
    "search": "search",
}
# A root function whose parameters are bound as those of the same name of another.
BORROWS = {"plan_batches": "train", "inspect_task": "build"}
# Flags of a verb that bind parameters of its root function.
BINDING_FLAGS = {"data inspect": ("task", "split", "shown", "sample", "out_dir")}
SET_HELP = "as --gin.KEY=VALUE, but a string needs no quotes; the last of both counts"
VERBS = {
    "demo": ("the whole system on a small spoken corpus, from nothing", "xretrieval demo --workdir demo_run", ()),
    "corpus": ("speak the polyglot corpus of the demo", "xretrieval corpus --gin_file=gin_configs/runs/polyglot.gin", ("corpus",)),
    "data manifest": (
        "a corpus as it lies on disk to a manifest",
        "xretrieval data manifest covost2 common_voice --languages de,fr --split train --out corpora/covost2/train.jsonl",
        (),
    ),
    "data check": ("say what is wrong with a manifest, by line", "xretrieval data check recordings/train.jsonl", ()),
    "units import-encoder": (
        "a released speech encoder to a folder that `units fit` takes",
        "xretrieval units import-encoder mhubert-147 --layer 9 --average 2 --out encoders/mhubert",
        (),
    ),
    "units import-codebook": (
        "a published codebook and its encoder to a unit tokenizer",
        "xretrieval units import-codebook km.npy --encoder encoders/mhubert --made_for mhubert-147 --layer 9 --check train.jsonl --out unit_tokenizer",
        (),
    ),
    "units fit": ("fit the unit tokenizer", "xretrieval units fit --gin_file=gin_configs/runs/polyglot.gin", ("fit_units", "LogMelConfig")),
    "units extract": (
        "recordings to unit records",
        "xretrieval units extract --gin_file=gin_configs/runs/polyglot.gin",
        ("extract_units",),
    ),
    "data tokenizer": (
        "train the text tokenizer",
        "xretrieval data tokenizer --gin_file=gin_configs/runs/polyglot.gin",
        ("text_tokenizer",),
    ),
    "import-llm": ("a released LLM to a model directory to train from", "xretrieval import-llm gemma-3-270m --out llm", ()),
    "data build": (
        "unit records to token records, by SeqIO",
        "xretrieval data build --gin_file=gin_configs/runs/polyglot.gin",
        ("build", "mixture"),
    ),
    "data inspect": (
        "what a task's examples are like; without a task, which there are",
        "xretrieval data inspect polyglot.speech_to_text.de_de --gin_file=gin_configs/runs/polyglot.gin --out pictures",
        ("inspect_task", "build", "mixture"),
    ),
    "data plan": (
        "the shape of a run's packed batches, and how much of them is padding",
        "xretrieval data plan --gin_file=gin_configs/runs/polyglot.gin",
        ("plan_batches", *TRAIN),
    ),
    "train": (
        "train, or go on training",
        "xretrieval train --gin_file=gin_configs/runs/polyglot.gin --gin.train.num_steps=200",
        TRAIN,
    ),
    "export": ("a checkpoint to a model directory", "xretrieval export --gin_file=gin_configs/runs/polyglot.gin", ("export",)),
    "evaluate": ("retrieval metrics and their report", "xretrieval evaluate --gin_file=gin_configs/runs/polyglot.gin", ("evaluate",)),
    "index": ("an index of recordings and texts", "xretrieval index --gin_file=gin_configs/runs/polyglot.gin", ("index",)),
    "search": (
        "find recordings or texts",
        "xretrieval search demo_run/model demo_run/index.db --text 'Montag, Juli und Euro' --language de",
        (),
    ),
}


def usage(argv: list[str]) -> int:
    """What there is, the version, or the nearest verb to one that is not there."""
    from xretrieval import __version__

    if argv and argv[0] not in ("-h", "--help", "--version"):
        close = difflib.get_close_matches(" ".join(argv[:2]), VERBS, 1, 0.3)
        raise UserError(f"no verb {argv[0]!r}" + (f"; did you mean `xretrieval {close[0]}`?" if close else "; see `xretrieval --help`"))
    if argv and argv[0] == "--version":
        print(__version__)
        return 0
    print("usage: xretrieval VERB [flags]\n\nRetrieval across speech and text. The verbs, in the order of the data:\n")
    for name, (what, *_) in VERBS.items():
        print(f"  {name:16}{what}")
    print(
        "\n`xretrieval VERB --help` shows its flags and an example. Settings: --gin_file=FILE, --gin.NAME.KEY=VALUE, --set NAME.KEY=VALUE"
    )
    return 0


def add_flags(parser: argparse.ArgumentParser, verb: str) -> None:
    """The flags of a verb."""
    if VERBS[verb][2]:
        parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="a gin file; may be given several times")
    if verb == "data inspect":
        parser.add_argument("task", nargs="?", metavar="TASK", help="as polyglot.speech_to_text.de_de; without one, the tasks are listed")
        parser.add_argument("--split", help="of the task (train)")
        parser.add_argument("--shown", type=int, metavar="N", help="examples to show behind every step (3)")
        parser.add_argument("--sample", type=int, metavar="N", help="of a larger task, about so many examples are looked at (20000)")
        parser.add_argument("--out", dest="out_dir", metavar="DIR", help="folder for a picture of the lengths")
    elif verb == "demo":
        parser.add_argument("--workdir", default="demo_run", help="everything goes there (demo_run)")
        parser.add_argument("--languages", default=None, help="trained languages, as de,fr,ru (English comes along), or `all`")
        parser.add_argument(
            "--minutes", type=float, default=None, help="train about so long, measured over 20 steps, instead of the set number of steps"
        )
        parser.add_argument("--seed", type=int, default=0, help="of the corpus, the units, the parameters and the order of the data")
    elif verb == "data manifest":
        parser.add_argument("corpus", choices=CORPORA)
        parser.add_argument("source", help="its folder, as it was downloaded")
        parser.add_argument("--out", required=True, metavar="FILE", help="the manifest, SPLIT.jsonl; its summary goes beside it")
        parser.add_argument("--languages", default=None, help="as de,fr (all that are there)")
        parser.add_argument("--split", dest="splits", action="append", default=None, help="may be given several times (all)")
        parser.add_argument("--into", default=None, metavar="LANGUAGE", help="language of the translations (en)")
        parser.add_argument("--threshold", type=float, default=None, help="least margin score of a WikiMatrix pair (1.04)")
        parser.add_argument("--text", default=None, help="FLEURS: raw_transcription, or transcription without capitals and punctuation")
        parser.add_argument(
            "--audio_dir", default=None, metavar="DIR", help="FLEURS: where sound from archives is written (audio beside FILE)"
        )
    elif verb == "data check":
        parser.add_argument("manifest", help="a JSONL or TSV manifest")
    elif verb == "units import-encoder":
        parser.add_argument("source", help="a Hugging Face folder: config.json, preprocessor_config.json, *.safetensors")
        parser.add_argument("--layer", type=int, default=None, help="the layer whose output is taken, as hidden_states[LAYER] (the last)")
        parser.add_argument("--average", type=int, default=1, help="so many frames are averaged to one; 2 makes 25 Hz of 50 Hz (1)")
        parser.add_argument("--out", required=True, metavar="DIR", help="folder of the encoder")
    elif verb == "units import-codebook":
        parser.add_argument("codebook", help=".npy, .safetensors, or a flat index of faiss")
        parser.add_argument("--encoder", required=True, metavar="DIR", help="as `units import-encoder` wrote it")
        parser.add_argument("--made_for", required=True, metavar="NAME", help="the encoder it was made for: its name, or its fingerprint")
        parser.add_argument("--layer", required=True, type=int, help="the layer it was made for")
        parser.add_argument("--check", required=True, metavar="MANIFEST", help="recordings on whose features it is tried")
        parser.add_argument("--recordings", type=int, default=20, help="of each language of the manifest (20)")
        parser.add_argument("--keep_repeats", action="store_true", help="a run of one unit counts as often as it is long")
        parser.add_argument("--out", required=True, metavar="DIR", help="folder of the unit tokenizer")
    elif verb == "import-llm":
        parser.add_argument("source", help="a Hugging Face folder: config.json, *.safetensors, tokenizer.json or tokenizer.model")
        parser.add_argument("--out", required=True, metavar="DIR", help="the model directory; an imported LLM that is there is replaced")
    elif verb == "search":
        parser.add_argument("model", help="a model directory")
        parser.add_argument("index", help="an index file, or a cluster's URI")
        parser.add_argument("--text", help="a typed query")
        parser.add_argument("--speech", metavar="FILE", help="a spoken query")
        parser.add_argument("--language", required=True, help="language of the query, as de or de_de")
        parser.add_argument("--in_language", default=None, help="only results in this language")
        parser.add_argument("--kind", choices=("speech", "text"), default=None, help="only recordings, or only texts")
        parser.add_argument("--top_k", type=int, default=5, help="results (5)")
