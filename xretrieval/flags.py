"""The flags of each verb, beside the settings of those that read a gin file."""

import argparse
import ast
import re
from collections.abc import Callable

from xretrieval.command_line import BINDING_FLAGS, CORPORA, SET_HELP, SEVERAL_PROCESSES, VERBS
from xretrieval.errors import UserError

Add = Callable[..., argparse.Action]


def parse(verb: str, argv: list[str]) -> argparse.Namespace:
    """The arguments of a verb; `bindings` are what flags, `--set` and `--gin` bind, in the order of the command line: the last one wins.

    Raises:
      UserError: a flag that the verb does not know.
    """
    parser = argparse.ArgumentParser(
        prog=f"xretrieval {verb}",
        description=VERBS[verb][0],
        epilog=f"example: {VERBS[verb][1]}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    _add_flags(parser, verb)
    flags = argv[len(verb.split()) :]
    if VERBS[verb][2]:
        parser.add_argument("--set", dest="bindings", action="append", default=[], type=binding, metavar="KEY=VALUE", help=SET_HELP)
        parser.add_argument("--gin", dest="bindings", action="append", default=[], help=argparse.SUPPRESS)
        flags = [re.sub(r"^--gin\.", "--gin=", flag) for flag in flags]
    arguments, unknown = parser.parse_known_args(flags)
    if verb == "units extract" and any(re.match("--runner(=|$)", flag) for flag in unknown):
        # With a runner named, what is not ours is Beam's, which says what it does not know.
        arguments.bindings.append(f"extract_units.beam_flags={tuple(unknown)!r}")
        unknown = []
    if unknown:
        raise UserError(f"{unknown[0]}: `xretrieval {verb}` does not know this; see `xretrieval {verb} --help`")
    given = {name: getattr(arguments, name) for name in BINDING_FLAGS.get(verb, ())}
    if given:
        arguments.bindings += [f"{VERBS[verb][2][0]}.{name}={value!r}" for name, value in given.items() if value is not None]
    return arguments


def binding(item: str) -> str:
    """`--set key=value`: the value as gin reads it, or a string where gin would want quotes."""
    key, equals, value = item.partition("=")
    if not equals:
        raise UserError(f"--set {item}: write key=value")
    try:
        ast.literal_eval(value)
    except (ValueError, SyntaxError):
        value = value if value.startswith(("@", "%")) else repr(value)
    return f"{key}={value}"


def _add_flags(parser: argparse.ArgumentParser, verb: str) -> None:
    if VERBS[verb][2]:
        parser.add_argument("--gin_file", action="append", default=[], metavar="FILE", help="a gin file; may be given several times")
    if verb in _FLAGS:
        _FLAGS[verb](parser.add_argument)
    if verb in SEVERAL_PROCESSES:
        _processes(parser.add_argument_group("several processes; on TPU pods, GKE and SLURM they find each other").add_argument)


def _processes(add: Add) -> None:
    add("--coordinator", metavar="HOST[:PORT]", help="where process 0 is (JAX_COORDINATOR_ADDRESS); port 8476")
    add("--num_processes", type=int, metavar="N", help="how many there are (JAX_NUM_PROCESSES)")
    add("--process_id", type=int, metavar="I", help="which one this is, from 0 (JAX_PROCESS_ID)")
    add("--initialization_timeout", type=int, default=1800, metavar="SECONDS", help="to wait until all have come (1800)")
    add("--heartbeat_timeout", type=int, default=100, metavar="SECONDS", help="a process silent for so long ends all others (100)")


def _data_inspect(add: Add) -> None:
    add("task", nargs="?", metavar="TASK", help="as polyglot.speech_to_text.de_de; without one, the tasks are listed")
    add("--split", help="of the task (train)")
    add("--shown", type=int, metavar="N", help="examples to show behind every step (3)")
    add("--sample", type=int, metavar="N", help="of a larger task, about so many examples are looked at (20000)")
    add("--out", dest="out_dir", metavar="DIR", help="folder for a picture of the lengths")


def _plan(add: Add) -> None:
    add("--topology", required=True, metavar="NAME", help="as v5e:16x16, v5p:4x4x8, v6e:16x16, v4:4x4x4, ironwood:4x4x4")
    add("--slices", type=int, metavar="N", help="so many of them, joined by the data centre's network (1)")
    add("--find-batch", dest="find_batch", action="store_true", default=None, help="look for the largest global batch that fits, too")
    add("--json", dest="json_file", metavar="FILE", help="where to write it all (plan-NAME.json in the workdir)")


def _demo(add: Add) -> None:
    add("--workdir", default="demo_run", help="everything goes there (demo_run)")
    add("--languages", default=None, help="trained languages, as de,fr,ru (English comes along), or `all`")
    add("--minutes", type=float, default=None, help="train about so long, measured over 20 steps, instead of the set number of steps")
    add("--seed", type=int, default=0, help="of the corpus, the units, the parameters and the order of the data")


def _data_manifest(add: Add) -> None:
    add("corpus", choices=CORPORA)
    add("source", help="its folder, as it was downloaded")
    add("--out", required=True, metavar="FILE", help="the manifest, SPLIT.jsonl; its summary goes beside it")
    add("--languages", default=None, help="as de,fr (all that are there)")
    add("--split", dest="splits", action="append", default=None, help="may be given several times (all)")
    add("--into", default=None, metavar="LANGUAGE", help="language of the translations (en)")
    add("--threshold", type=float, default=None, help="least margin score of a WikiMatrix pair (1.04)")
    add("--text", default=None, help="FLEURS: raw_transcription, or transcription without capitals and punctuation")
    add("--audio_dir", default=None, metavar="DIR", help="FLEURS: where sound from archives is written (audio beside FILE)")


def _data_check(add: Add) -> None:
    add("manifest", help="a JSONL or TSV manifest")


def _units_import_encoder(add: Add) -> None:
    add("source", help="a Hugging Face folder: config.json, preprocessor_config.json, *.safetensors")
    add("--layer", type=int, default=None, help="the layer whose output is taken, as hidden_states[LAYER] (the last)")
    add("--average", type=int, default=1, help="so many frames are averaged to one; 2 makes 25 Hz of 50 Hz (1)")
    add("--random_weights", type=int, default=None, metavar="SEED", help="its network with weights of chance: what units owe to training")
    add("--out", required=True, metavar="DIR", help="folder of the encoder")


def _units_import_codebook(add: Add) -> None:
    add("codebook", help=".npy, .safetensors, or a flat index of faiss")
    add("--encoder", required=True, metavar="DIR", help="as `units import-encoder` wrote it")
    add("--made_for", required=True, metavar="NAME", help="the encoder it was made for: its name, or its fingerprint")
    add("--layer", required=True, type=int, help="the layer it was made for")
    add("--check", required=True, metavar="MANIFEST", help="recordings on whose features it is tried")
    add("--recordings", type=int, default=20, help="of each language of the manifest (20)")
    add("--keep_repeats", action="store_true", help="a run of one unit counts as often as it is long")
    add("--out", required=True, metavar="DIR", help="folder of the unit tokenizer")


def _units_report(add: Add) -> None:
    add("manifest", help="recordings, best those that no codebook was fitted on")
    add("tokenizers", nargs="+", help="folders of unit tokenizers, to be compared")
    add("--alignments", default=None, metavar="FILE", help="their phones; of the demo's corpus they are made")
    add("--per_language", type=int, default=50, help="recordings of each language (50)")
    add("--seed", type=int, default=0, help="of the sample (0)")
    add("--out", required=True, metavar="DIR", help="folder of units_report.json and .png")


def _import_llm(add: Add) -> None:
    add("source", help="a Hugging Face folder: config.json, *.safetensors, tokenizer.json or tokenizer.model")
    add("--out", required=True, metavar="DIR", help="the model directory; an imported LLM that is there is replaced")


def _train(add: Add) -> None:
    add("--profile", metavar="FIRST:LAST", help="traces these steps, as 10:15, into the workdir's folder profile")


def _search(add: Add) -> None:
    add("model", help="a model directory")
    add("index", help="an index file, or a cluster's URI")
    add("--text", help="a typed query")
    add("--speech", metavar="FILE", help="a spoken query")
    add("--language", required=True, help="language of the query, as de or de_de")
    add("--in_language", default=None, help="only results in this language")
    add("--kind", choices=("speech", "text"), default=None, help="only recordings, or only texts")
    add("--top_k", type=int, default=5, help="results (5)")


_FLAGS = {
    "data inspect": _data_inspect,
    "plan": _plan,
    "demo": _demo,
    "data manifest": _data_manifest,
    "data check": _data_check,
    "units import-encoder": _units_import_encoder,
    "units import-codebook": _units_import_codebook,
    "units report": _units_report,
    "import-llm": _import_llm,
    "train": _train,
    "search": _search,
}
