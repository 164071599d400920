"""`xretrieval demo`: the verbs, one after another, on the polyglot corpus. Every stage reuses what is finished."""

import argparse
import contextlib
import json
import math
import os
import pathlib
import time
from collections.abc import Callable, Iterator

from xretrieval import machine
from xretrieval.corpora.manifest import read_manifest
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.search.index import Index
from xretrieval.search.retriever import Retriever

RunVerb = Callable[[str, list[str], list[str]], object]  # `main.run_verb`
GIN_FILE = "gin_configs/runs/polyglot.gin"
UNSEEN = ("pl_pl", "uk_ua", "cs_cz", "ro_ro", "da_dk", "hr_hr")  # as in that file; a test holds them equal
STAGES = (
    ("corpus", ("corpus",)),
    ("units", ("units fit", "units extract")),
    ("data", ("data tokenizer", "data build")),
    ("train", ("train",)),
    ("export", ("export",)),
    ("evaluate", ("evaluate",)),
    ("search", ("index",)),
)


class Times:
    """Seconds of each stage, kept in `seconds.json`. What an interrupted run spent counts; a stage that is only reused keeps what it took."""

    def __init__(self, workdir: pathlib.Path):
        self.path = workdir / "seconds.json"
        self.seconds: dict[str, float] = read_json(self.path) if self.path.exists() else {}

    @contextlib.contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Times what is in it."""
        begun, finished = time.monotonic(), False
        try:
            yield
            finished = True
        finally:
            unfinished = f"{name}, unfinished"
            spent = time.monotonic() - begun + self.seconds.pop(unfinished, 0.0)
            self.seconds[name if finished else unfinished] = round(max(spent, self.seconds.get(name, 0.0)) if finished else spent, 1)
            write_json(self.path, self.seconds)


def settings(arguments: argparse.Namespace) -> list[str]:
    """The overrides that the demo's flags stand for, as after `--set`."""
    places = {
        "CORPUS": "corpus",
        "UNIT_TOKENIZER": "unit_tokenizer",
        "UNITS": "units",
        "TOKENIZER": "text_tokenizer/tokenizer.model",
        "RECORDS": "records",
        "WORKDIR": "train",
        "MODEL": "model",
        "REPORT": ".",
        "INDEX": "index.db",
    }
    root = pathlib.Path(arguments.workdir)
    # Quoted: a folder called 2024 is not a number.
    out = [f"{name}={str(root / place)!r}" for name, place in places.items()]
    out += [f"fit_units.manifest={str(root / 'corpus/train.jsonl')!r}", f"SEED={arguments.seed}"]
    out.append(f"TOKENIZER_MANIFESTS={(str(root / 'corpus/train.jsonl'), str(root / 'corpus/text_unseen_train.jsonl'))!r}")
    if arguments.languages:
        seen, unseen = languages(arguments.languages)
        out += [f"corpus.seen_languages={seen!r}", f"UNSEEN_LANGUAGES={unseen!r}"]
        if arguments.languages == "all":
            # Twice the languages and harder slots: fewer sentences of each, more steps. A longer run; see the README.
            out += ["corpus.slots=hard", "corpus.train_sentences=1500", "train.num_steps=1500"]
    return out


def languages(choice: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Seen and unseen languages of `--languages`: English comes along; those of the default that were not chosen are unseen."""
    from xretrieval.demo import polyglot
    from xretrieval.languages import languages as parse

    if choice == "all":
        return polyglot.TRAINABLE, polyglot.UNSEEN
    seen = tuple(dict.fromkeys(["en_us", *(found.code for found in parse(choice))]))
    if len(seen) < 2:
        raise UserError(f"--languages {choice}: name at least one language beside English, which comes along")
    for code in seen:
        polyglot.cldr_and_voice(code)
    unseen = tuple(code for code in UNSEEN if code not in seen)
    if not unseen:
        raise UserError(f"--languages {choice}: leave out one of {', '.join(UNSEEN)}: some language has to be unseen")
    return seen, unseen


def run(arguments: argparse.Namespace, run_verb: RunVerb) -> int:
    """Runs every stage, and says how to go on."""
    root = pathlib.Path(arguments.workdir)
    if arguments.minutes is not None and not 0 < arguments.minutes < math.inf:
        raise UserError(f"--minutes {arguments.minutes}: give a time above 0")
    if arguments.seed < 0:
        raise UserError(f"--seed {arguments.seed}: give 0 or more")
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); give another --workdir") from error
    overrides, times, advice = settings(arguments), Times(root), ""
    for stage, verbs in STAGES:
        print(f"== {stage}", flush=True)
        if stage == "train":
            overrides += steps_for(arguments, overrides, root, run_verb)
        with times.stage(stage):
            for verb in verbs:
                run_verb(verb, [GIN_FILE], overrides)
            if stage == "search":
                advice = examples(root)
    finish_report(root, times, arguments)
    print(advice)
    return 0


def steps_for(arguments: argparse.Namespace, overrides: list[str], root: pathlib.Path, run_verb: RunVerb) -> list[str]:
    """`--minutes N` as a number of steps: 20 steps are timed once; the number stands in `steps.json` and in `config.gin`."""
    if arguments.minutes is None:
        return []
    path = root / "steps.json"
    known = read_json(path) if path.exists() else {}
    if known.get("minutes") != arguments.minutes:
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            timing = [*overrides, f"WORKDIR={scratch}", "train.log_every=1"]
            run_verb("train", [GIN_FILE], [*timing, "train.stop_after=21"])
            lines = [json.loads(line) for line in (pathlib.Path(scratch) / "metrics.jsonl").read_text().splitlines()]
        taken = [line["step_seconds"] for line in lines if "step_seconds" in line]
        seconds = sum(taken) / len(taken)
        known = {"minutes": arguments.minutes, "seconds_a_step": seconds, "num_steps": max(1, round(arguments.minutes * 60.0 / seconds))}
        write_json(path, known)
    print(f"{known['num_steps']} steps of {known['seconds_a_step'] * 1e3:.0f} ms make {arguments.minutes:g} minutes")
    return [f"train.num_steps={known['num_steps']}"]


def examples(root: pathlib.Path) -> str:
    """Three searches: text finds speech in another language, speech finds text, speech finds speech. Returns how to go on."""
    retriever = Retriever.load(root / "model")
    test = {(u.language, u.sentence_id): u for u in read_manifest(root / "corpus/test.jsonl")}
    spoken_in = [code for code in retriever.model.trained_languages if code != "en_us"]
    # With one trained language beside English, the second search by voice looks among English recordings.
    first, second = spoken_in[0], spoken_in[-1] if len(spoken_in) > 1 else "en_us"
    sentences = sorted({sentence for _, sentence in test})
    typed, spoken = test["en_us", sentences[0]], test[first, sentences[1]]
    queries = [
        (
            f'typed {typed.language} "{typed.text}" among recordings in {first}',
            retriever.encode_text([typed.text], typed.language),
            first,
            "speech",
        ),
        (
            f'spoken {spoken.language} "{spoken.text}" among texts in {spoken.language}',
            retriever.encode_speech([spoken.recording], spoken.language),
            spoken.language,
            "text",
        ),
        (
            f'spoken {spoken.language} "{spoken.text}" among recordings in {second}',
            retriever.encode_speech([spoken.recording], spoken.language),
            second,
            "speech",
        ),
    ]
    with Index.open(root / "index.db", retriever.fingerprint) as index:
        for title, query, language, kind in queries:
            print(f"\n{title}")
            for hit in index.search(query, 3, language, kind)[0]:
                print(f"  {hit.score:.3f}  {hit.language}  {hit.text}  {os.path.relpath(hit.file) if hit.file else ''}")
    return (
        f"\nGo on:\n  xretrieval search {root / 'model'} {root / 'index.db'} --text '{typed.text}' --language en --in_language {first}\n"
        f"  xretrieval train --gin_file={root / 'train/config.gin'} --gin.train.num_steps=3000 --set WORKDIR={root / 'longer'}"
    )


def finish_report(root: pathlib.Path, times: Times, arguments: argparse.Namespace) -> None:
    """Adds to the report what only the demo knows: seconds, machine, command."""
    from xretrieval.evaluate.report import write_report

    results = read_json(root / "report.json")
    # Whether a language's text trained the text tokenizer is a choice of TOKENIZER_MANIFESTS: what it was stands beside its figures.
    texts = read_json(root / "text_tokenizer/tokenizer.model.json")["texts_by_language"]
    for code, entry in results["languages"].items():
        entry["text_trained_the_tokenizer"] = bool(texts.get(code))
    flags = [f"--{name} {value}" for name, value in vars(arguments).items() if value not in (None, 0, "demo_run")]
    results |= {
        "seconds": times.seconds,
        "machine": machine.describe(),
        "command": " ".join(["xretrieval demo", *flags]),
    }
    for path in write_report(results, root):
        print(f"wrote {path}")
