"""Somebody's own recordings, made at 8 kHz, through every stage by the shipped gin file."""

import json

import pytest
import soundfile
import soxr

from xretrieval import main
from xretrieval.corpora.manifest import read_manifest
from xretrieval.demo.corpus import generate

GIN = ["gin_configs/runs/own_manifest.gin"]
SIZES = [
    "fit_units.num_units=32",
    "extract_units.num_workers=1",
    "extract_units.num_shards=1",
    "text_tokenizer.vocab_size=120",
    "train.batch_size=16",
    "train.num_steps=12",
    "train.log_every=1",
    "TowerConfig.width=64",
    "TowerConfig.layers=1",
    "TowerConfig.head_dim=32",
]


@pytest.fixture(scope="module")
def recordings(tmp_path_factory):
    """Telephone-like prompts in two languages: WAV at 8 kHz and manifests with the fewest fields."""
    root = tmp_path_factory.mktemp("own")
    generate(
        str(root / "made"), ["en_us", "de_de", "fr_fr"], [], train_sentences=20, validation_sentences=4, test_sentences=8, num_workers=1
    )
    folder = root / "recordings"
    folder.mkdir()
    for split in ("train", "validation", "test"):
        lines = []
        for u in read_manifest(root / "made" / f"{split}.jsonl"):
            samples, rate = soundfile.read(u.audio, dtype="float32")
            soundfile.write(folder / f"{u.id}.wav", soxr.resample(samples, rate, 8000), 8000)
            row = {"id": u.id, "sentence_id": u.sentence_id, "audio": f"{u.id}.wav", "text": u.text, "language": u.language}
            if u.language == "de_de":
                row |= {"translation": u.translation, "translation_language": u.translation_language}
            lines.append(row)
        if split == "train":  # as somebody's spreadsheet
            names = list(dict.fromkeys(name for row in lines for name in row))
            table = ["\t".join(names), *("\t".join(row.get(name) or "" for name in names) for row in lines)]
            (folder / "train.tsv").write_text("\n".join(table) + "\n")
        else:
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in lines))
    return root


def settings(root):
    places = {
        "CORPUS": "recordings",
        "UNIT_TOKENIZER": "units_made",
        "UNITS": "units",
        "TOKENIZER": "tokenizer.model",
        "RECORDS": "records",
    }
    places |= {"WORKDIR": "train", "MODEL": "model", "REPORT": ".", "INDEX": "index.db", "fit_units.manifest": "recordings/train"}
    manifests = (str(root / "recordings/train"),)
    return [*SIZES, f"TOKENIZER_MANIFESTS={manifests!r}", *(f"{name}={root / place}" for name, place in places.items())]


def test_every_stage(recordings, capsys):
    assert main.main(["data", "check", str(recordings / "recordings/train.tsv")]) == 0
    for verb in ("units fit", "units extract", "data tokenizer", "data build", "train", "export", "evaluate", "index"):
        main.run_verb(verb, GIN, settings(recordings))
    assert json.loads((recordings / "report.json").read_text())["headline"]["pool_size"] == 8
    query = read_manifest(recordings / "recordings/test.jsonl")[0]
    capsys.readouterr()
    flags = ["--speech", query.audio, "--language", query.language, "--kind", "speech"]
    assert main.main(["search", str(recordings / "model"), str(recordings / "index.db"), *flags]) == 0
    assert query.text in capsys.readouterr().out.splitlines()[0]
    tasks = {path.name for path in (recordings / "records").iterdir()}
    assert "polyglot.text_to_english.de_de" in tasks
    assert "polyglot.text_to_english.fr_fr" not in tasks, "no translations, no task"
    # On top of the finished run: its unit tokenizer and text tokenizer, another workdir.
    again = [*settings(recordings), f"WORKDIR={recordings / 'further'}", f"train.init_from={recordings / 'model'}"]
    main.run_verb("train", GIN, again)
    first = [json.loads((recordings / run / "metrics.jsonl").read_text().splitlines()[0])["loss"] for run in ("train", "further")]
    assert first[1] < first[0]


def test_check_names_the_line(recordings, capsys):
    bad = recordings / "recordings/bad.jsonl"
    lines = (recordings / "recordings/test.jsonl").read_text().splitlines()
    bad.write_text("\n".join([lines[0], lines[1].replace("wav", "wave"), lines[2].replace("de_de", "xx_yy")]) + "\n")
    assert main.main(["data", "check", str(bad)]) == 2
    out = capsys.readouterr().out
    assert f"{bad}:2: " in out
    assert f"{bad}:3: " in out
    assert f"{bad}:1: " not in out
