"""The command line. The only file that imports gin; each verb configures one root function, and imports what it needs when it runs."""

import argparse
import difflib
import importlib
import importlib.util  # gin reads it without importing it
import inspect
import os
import pathlib
import re
import sys
from collections.abc import Sequence

from xretrieval.errors import UserError

ROOT = pathlib.Path(__file__).parent.parent

# gin name -> where it lives. A verb registers its own and lets a run file's bindings for the others pass.
CONFIGURABLES = {
    "corpus": "xretrieval.demo.corpus:generate",
    "fit_units": "xretrieval.units.tokenizer:fit",
    "LogMelConfig": "xretrieval.units.frontend:LogMelConfig",
    "extract_units": "xretrieval.verbs:extract_units",
    "text_tokenizer": "xretrieval.data.build:text_tokenizer",
    "mixture": "xretrieval.verbs:mixture",
    "build": "xretrieval.verbs:build",
    "train": "xretrieval.train.loop:train",
    "training_data": "xretrieval.verbs:training_data",
    "validation": "xretrieval.verbs:validation",
    "TowerConfig": "xretrieval.model.tower:TowerConfig",
    "OptimizerConfig": "xretrieval.train.optimizer:OptimizerConfig",
    "LossConfig": "xretrieval.train.step:LossConfig",
    "export": "xretrieval.verbs:export",
    "evaluate": "xretrieval.verbs:evaluate",
    "index": "xretrieval.verbs:index",
}

# Where the verbs write whose functions say nothing.
WRITES = {"corpus": "corpus.out_dir", "units fit": "fit_units.out_dir", "data tokenizer": "text_tokenizer.out_file"}
VERBS = {
    "demo": ("the whole system on a small spoken corpus, from nothing", "xretrieval demo --workdir demo_run", ()),
    "corpus": ("speak the polyglot corpus of the demo", "xretrieval corpus --gin_file=gin_configs/runs/polyglot.gin", ("corpus",)),
    "data check": ("say what is wrong with a manifest, by line", "xretrieval data check recordings/train.jsonl", ()),
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
    "data build": (
        "unit records to token records, by SeqIO",
        "xretrieval data build --gin_file=gin_configs/runs/polyglot.gin",
        ("build", "mixture"),
    ),
    "train": (
        "train, or go on training",
        "xretrieval train --gin_file=gin_configs/runs/polyglot.gin --gin.train.num_steps=200",
        ("train", "training_data", "validation", "mixture", "TowerConfig", "OptimizerConfig", "LossConfig"),
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


def _save_config(workdir: str) -> None:
    """`config.gin` in the workdir: the bindings of this run, command line included."""
    import gin

    path = pathlib.Path(workdir) / "config.gin"
    text = gin.config_str()
    if path.exists() and path.read_text() != text:
        before, after = path.read_text().splitlines(), text.splitlines()
        changed = [line for line in difflib.unified_diff(before, after, lineterm="", n=0) if re.match(r"[+-][^+-]", line)]
        print(f"{path}: the configuration changed since this run began:\n  " + "\n  ".join(changed), file=sys.stderr)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    except OSError as error:
        raise UserError(f"{workdir}: cannot be written ({error.strerror}); give another workdir") from error


def configure(verb: str, gin_files: list[str], settings: list[str], bindings: list[str]) -> None:
    """Registers the verb's configurables and parses its gin files and overrides, finalised."""
    import gin

    gin.clear_config()
    own = VERBS[verb][2]
    for name in own:
        module, function = CONFIGURABLES[name].split(":")
        try:
            gin.get_configurable(name)
        except (ValueError, KeyError):
            # A dataclass or function keeps its own name in Python and has a short one in gin.
            gin.external_configurable(getattr(importlib.import_module(module), function), name)
    gin.add_config_file_search_path(str(ROOT))
    overrides = [_binding(item) for item in settings] + bindings
    for item in overrides:
        name = item.split("=")[0].split(".")[0].strip()
        if "." in item.split("=")[0] and name not in CONFIGURABLES:
            close = difflib.get_close_matches(name, [*own, *CONFIGURABLES], 1, 0.4)
            raise UserError(
                f"--gin.{item.split('=')[0]}: there is no {name}"
                + (f"; did you mean {close[0]}?" if close else f"; `xretrieval {verb}` has {', '.join(own)}")
            )
    files = [next((path for path in (pathlib.Path(file), ROOT / file) if path.exists()), None) for file in gin_files]
    if None in files:
        raise UserError(f"{gin_files[files.index(None)]}: no such gin file, here or in {ROOT}")
    others = [name for name in CONFIGURABLES if name not in own]
    try:
        gin.parse_config_files_and_bindings(
            [str(path) for path in files], overrides, skip_unknown=others, finalize_config=True, print_includes_and_imports=False
        )
    except (ValueError, TypeError, SyntaxError, NameError, AttributeError, ImportError, RuntimeError) as error:
        raise UserError(_explain(str(error), own)) from error


def _binding(item: str) -> str:
    """`--set key=value`: the value as gin reads it, or a string where gin would want quotes."""
    import ast

    key, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"--set {item}: write key=value")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        value = value if value.startswith(("@", "%")) else repr(value)
    return f"{key}={value}"


def _explain(message: str, own: tuple[str, ...]) -> str:
    """gin's message in one line, with the nearest name where a name is unknown."""
    line = " ".join(message.split())
    unknown = re.search(
        r"'(\w+)'.*doesn't have a parameter named '(\w+)'|No configurable matching '([\w.]+)'|parameter named '(\w+)'", line
    )
    if not unknown:
        return f"gin: {line}"
    wanted = next(group for group in reversed(unknown.groups()) if group)
    names = {*own}
    for name in own:
        module, function = CONFIGURABLES[name].split(":")
        names |= inspect.signature(getattr(importlib.import_module(module), function)).parameters.keys()
    close = difflib.get_close_matches(wanted, sorted(names), 1, 0.5)
    return f"gin: {line}" + (f" Did you mean {close[0]!r}?" if close else "")


def run_verb(verb: str, gin_files: list[str], overrides: list[str], bindings: Sequence[str] = ()):
    """Configures a verb and runs its root function; `overrides` are as after `--set`, `bindings` as after `--gin.`."""
    configure(verb, gin_files, overrides, list(bindings))
    import gin

    root = gin.get_configurable(VERBS[verb][2][0])
    if verb == "train":
        _save_config(_parameter("train.workdir"))
    result = root()
    if verb == "train":
        print(f"{result} steps done; config.gin, checkpoints, metrics.jsonl and TensorBoard events are in {_parameter('train.workdir')}")
    elif verb in WRITES:
        print(f"wrote {_parameter(WRITES[verb])}")
    return result


def _parameter(name: str):
    """What a parameter is bound to, through a macro where there is one."""
    import gin

    value = gin.query_parameter(name)
    if isinstance(value, gin.config.ConfigurableReference):
        return gin.query_parameter(f"{value.scoped_selector.split('/')[0]}/macro.value")
    return value


def main(argv: list[str] | None = None) -> int:
    """The console script; returns the exit code."""
    if argv is None and sys.argv[1:2] in (["demo"], ["train"]):
        _use_huge_pages()
    argv = list(sys.argv[1:] if argv is None else argv)
    try:
        return _main(argv) or 0
    except UserError as error:
        print(f"xretrieval: {_without_gin(error)}", file=sys.stderr)
        return 2
    except OSError as error:
        # What the system refuses (space, permission, a file gone) is the user's to mend, wherever it is met.
        print(f"xretrieval: {_without_gin(error)}; mend that and run the same command: what was finished is kept", file=sys.stderr)
        return 2
    except KeyboardInterrupt:
        print("xretrieval: stopped; what was finished is kept, and the same command goes on from there", file=sys.stderr)
        return 130


def _use_huge_pages() -> None:
    """Starts this process again with huge pages for malloc, a setting that glibc reads at the start only.

    XLA:CPU asks for its buffers anew in every step: with pages of 4 KiB, 40 % of two cores went into the kernel, and a step took 1.3 times
    as long.
    """
    if sys.platform == "linux" and "GLIBC_TUNABLES" not in os.environ:
        os.environ["GLIBC_TUNABLES"] = "glibc.malloc.hugetlb=1"
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def _without_gin(error: Exception) -> str:
    """The message; gin adds to it in which of its configurables it rose."""
    return str(error).partition("\n  In call to configurable")[0]


def _main(argv: list[str]) -> int | None:
    verb = next((name for name in (" ".join(argv[:2]), " ".join(argv[:1])) if name in VERBS), None)
    if verb is None:
        return _usage(argv)
    parser = argparse.ArgumentParser(
        prog=f"xretrieval {verb}",
        description=VERBS[verb][0],
        epilog=f"example: {VERBS[verb][1]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _add_flags(parser, verb)
    arguments, rest = parser.parse_known_args(argv[len(verb.split()) :])
    bindings = [item.removeprefix("--gin.") for item in rest if item.startswith("--gin.")]
    unknown = [item for item in rest if not item.startswith("--gin.")]
    if unknown or (bindings and not VERBS[verb][2]):
        raise UserError(f"{(unknown or rest)[0]}: `xretrieval {verb}` does not know this; see `xretrieval {verb} --help`")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    if verb == "demo":
        from xretrieval.demo.run import run

        return run(arguments)
    from xretrieval import verbs

    if verb == "data check":
        return verbs.check(arguments)
    if verb == "search":
        verbs.search(arguments)
        return 0
    run_verb(verb, arguments.gin_file, arguments.set, bindings)
    return 0


def _usage(argv: list[str]) -> int:
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


def _add_flags(parser: argparse.ArgumentParser, verb: str) -> None:
    if VERBS[verb][2]:
        parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="a gin file; may be given several times")
        parser.add_argument(
            "--set", action="append", default=[], metavar="KEY=VALUE", help="as --gin.KEY=VALUE, but a string needs no quotes"
        )
    elif verb == "demo":
        parser.add_argument("--workdir", default="demo_run", help="everything goes there (demo_run)")
        parser.add_argument("--languages", default=None, help="trained languages, as de,fr,ru (English comes along), or `all`")
        parser.add_argument(
            "--minutes", type=float, default=None, help="train about so long, measured over 20 steps, instead of the set number of steps"
        )
        parser.add_argument("--seed", type=int, default=0, help="of the corpus, the units, the parameters and the order of the data")
    elif verb == "data check":
        parser.add_argument("manifest", help="a JSONL or TSV manifest")
    elif verb == "search":
        parser.add_argument("model", help="a model directory")
        parser.add_argument("index", help="an index file, or a cluster's URI")
        parser.add_argument("--text", help="a typed query")
        parser.add_argument("--speech", metavar="FILE", help="a spoken query")
        parser.add_argument("--language", required=True, help="language of the query, as de or de_de")
        parser.add_argument("--in_language", default=None, help="only results in this language")
        parser.add_argument("--kind", choices=("speech", "text"), default=None, help="only recordings, or only texts")
        parser.add_argument("--top_k", type=int, default=5, help="results (5)")
