"""The verbs, and where their parts live. Imports nothing heavy: `--help` is quick."""

import difflib

from xretrieval.errors import UserError

# gin name -> where it lives. A verb registers its own and lets a run file's bindings for the others pass.
CONFIGURABLES = {
    "corpus": "xretrieval.demo.corpus:generate",
    "fit_units": "xretrieval.units.fit:fit",
    "AudioLimits": "xretrieval.corpora.segments:AudioLimits",
    "LogMelConfig": "xretrieval.units.encoders.log_mel:LogMelConfig",
    "extract_units": "xretrieval.verbs:extract_units",
    "text_tokenizer": "xretrieval.data.build:text_tokenizer",
    "mixture": "xretrieval.verbs:mixture",
    "build": "xretrieval.verbs:build",
    "inspect_task": "xretrieval.verbs:inspect_task",
    "train": "xretrieval.train.run:train",
    "training_data": "xretrieval.verbs:training_data",
    "plan_batches": "xretrieval.verbs:plan_batches",
    "plan_pod": "xretrieval.plan.plan:plan_pod",
    "validation": "xretrieval.evaluate.validation:validation",
    "TowerConfig": "xretrieval.model.tower:TowerConfig",
    "OptimizerConfig": "xretrieval.train.optimizer:OptimizerConfig",
    "LossConfig": "xretrieval.train.loss:LossConfig",
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
    "units report": "report_units",
    "import-llm": "import_llm",
    "search": "search",
}
# A root function whose parameters are bound as those of the same name of another.
BORROWS = {"plan_batches": "train", "plan_pod": "train", "inspect_task": "build"}
# Flags of a verb that bind parameters of its root function.
BINDING_FLAGS = {
    "data inspect": ("task", "split", "shown", "sample", "out_dir"),
    "plan": ("topology", "slices", "find_batch", "json_file"),
    "train": ("profile",),
}
# Verbs that several processes run together.
SEVERAL_PROCESSES = ("train", "doctor")
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
        ("extract_units", "AudioLimits"),
    ),
    "units report": (
        "whether units are any good: beside phones, and as a codebook",
        "xretrieval units report demo_run/corpus/test.jsonl demo_run/unit_tokenizer --out demo_run/units_report",
        (),
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
    "plan": (
        "what a run needs on a TPU slice, compiled without one",
        "xretrieval plan --gin_file=gin_configs/runs/pod.gin --gin_file=gin_configs/models/gemma3_1b.gin --topology v5e:16x16",
        ("plan_pod", *TRAIN),
    ),
    "train": (
        "train, or go on training",
        "xretrieval train --gin_file=gin_configs/runs/polyglot.gin --gin.train.num_steps=200",
        TRAIN,
    ),
    "doctor": (
        "what would stop or spoil a run, before it starts",
        "xretrieval doctor --gin_file=gin_configs/runs/polyglot.gin",
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
        print(f"  {name:22}{what}")
    print(
        "\n`xretrieval VERB --help` shows its flags and an example. Settings: --gin_file=FILE, --gin.NAME.KEY=VALUE, --set NAME.KEY=VALUE"
    )
    return 0
