"""`xretrieval demo`: the verbs, one after another, on the polyglot corpus. Every stage reuses what is finished."""

import argparse
import json
import os
import pathlib
import time

from xretrieval import machine
from xretrieval.corpora.manifest import read_manifest
from xretrieval.errors import UserError
from xretrieval.main import run_verb
from xretrieval.search.index import Index
from xretrieval.search.retriever import Retriever

GIN_FILE = "gin_configs/runs/polyglot.gin"
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
    """Seconds of each stage, kept in `seconds.json`: a stage that is only reused does not overwrite what it took."""

    def __init__(self, workdir: pathlib.Path):
        self.path = workdir / "seconds.json"
        self.seconds: dict[str, float] = json.loads(self.path.read_text()) if self.path.exists() else {}

    def add(self, stage: str, seconds: float) -> None:
        self.seconds[stage] = round(max(seconds, self.seconds.get(stage, 0.0)), 1)
        temporary = self.path.with_suffix(".tmp")
        temporary.write_text(json.dumps(self.seconds, indent=2) + "\n")
        os.replace(temporary, self.path)


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
    out = [f"{name}={root / place!s}" for name, place in places.items()]
    out += [f"fit_units.manifest={root / 'corpus/train.jsonl'}", f"SEED={arguments.seed}"]
    out.append(f"TOKENIZER_MANIFESTS={(str(root / 'corpus/train.jsonl'), str(root / 'corpus/text_unseen_train.jsonl'))!r}")
    if arguments.languages:
        seen, unseen = languages(arguments.languages)
        out += [f"corpus.seen_languages={seen!r}", f"UNSEEN_LANGUAGES={unseen!r}"]
        if arguments.languages == "all":
            out += ["corpus.slots=hard", "text_tokenizer.vocab_size=1000"]
    return out


def languages(choice: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Seen and unseen languages of `--languages`: English comes along; those of the default that were not chosen are unseen."""
    from xretrieval.demo import polyglot
    from xretrieval.languages import languages as parse

    if choice == "all":
        return polyglot.TRAINABLE, polyglot.UNSEEN
    seen = tuple(dict.fromkeys(["en_us", *(found.code for found in parse(choice))]))
    unseen = tuple(code for code in ("pl_pl", "uk_ua", "cs_cz", "ro_ro", "da_dk", "hr_hr") if code not in seen)
    return seen, unseen


def run(arguments: argparse.Namespace) -> int:
    """Runs every stage, and says how to go on."""
    root = pathlib.Path(arguments.workdir)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); give another --workdir") from error
    overrides, times, advice = settings(arguments), Times(root), ""
    for stage, verbs in STAGES:
        begun = time.monotonic()
        print(f"== {stage}", flush=True)
        for verb in verbs:
            if stage == "train":
                overrides += steps_for(arguments, overrides, root)
            run_verb(verb, [GIN_FILE], overrides)
        if stage == "search":
            advice = examples(root)
        times.add(stage, time.monotonic() - begun)
    finish_report(root, times, arguments)
    print(advice)
    return 0


def steps_for(arguments: argparse.Namespace, overrides: list[str], root: pathlib.Path) -> list[str]:
    """`--minutes N` as a number of steps: 20 steps are timed once; the number stands in `steps.json` and in `config.gin`."""
    if arguments.minutes is None:
        return []
    path = root / "steps.json"
    known = json.loads(path.read_text()) if path.exists() else {}
    if known.get("minutes") != arguments.minutes:
        import tempfile

        with tempfile.TemporaryDirectory() as scratch:
            timing = [*overrides, f"WORKDIR={scratch}", "train.log_every=1"]
            run_verb("train", [GIN_FILE], [*timing, "train.stop_after=21"])
            lines = [json.loads(line) for line in (pathlib.Path(scratch) / "metrics.jsonl").read_text().splitlines()]
        # The first step holds the compilation.
        seconds = sum(1.0 / line["steps_per_second"] for line in lines[1:]) / len(lines[1:])
        known = {"minutes": arguments.minutes, "seconds_a_step": seconds, "num_steps": max(1, round(arguments.minutes * 60.0 / seconds))}
        path.write_text(json.dumps(known) + "\n")
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

    results = json.loads((root / "report.json").read_text())
    flags = [f"--{name} {value}" for name, value in vars(arguments).items() if value not in (None, 0, "demo_run")]
    results |= {
        "seconds": times.seconds,
        "machine": machine.describe(),
        "command": " ".join(["xretrieval demo", *flags]),
    }
    for path in write_report(results, root):
        print(f"wrote {path}")
