"""Full, damaged, missing, misspelt: finished work is kept, the message is one line, the exit code is 2."""

import json
import pathlib
import shutil
import subprocess
import sys

import pytest
from small_run import GIN, ROOT, command, settings

from xretrieval import main
from xretrieval.units.extract import read_index

# Set by the command itself, not between fork and exec: there, gRPC's threads of this process start again and abort on closed files.
LIMITED = """
import resource, runpy, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (8_000, 8_000))
sys.argv = sys.argv[1:]
runpy.run_module("xretrieval", run_name="__main__", alter_sys=True)
"""


@pytest.mark.parametrize(
    "verb,place",
    [
        ("corpus", "CORPUS=demo"),
        ("units extract", "UNITS=units"),
        ("data build", "RECORDS=records"),
        ("train", "WORKDIR=train"),
        ("export", "MODEL=model"),
        ("index", "INDEX=index.db"),
    ],
)
def test_a_full_disk_is_one_line(finished, tmp_path, verb, place):
    """A file that the system refuses to let grow stands for a disk without space."""
    name, folder = place.split("=")
    _, _, _, *flags = command(verb, finished, f"{name}={tmp_path / folder}")
    run = subprocess.run([sys.executable, "-c", LIMITED, "xretrieval", *flags], cwd=ROOT, capture_output=True, text=True, timeout=240)
    lines = [line for line in run.stderr.splitlines() if line.startswith("xretrieval: ")]
    assert run.returncode == 2, run.stderr
    assert len(lines) == 1, run.stderr
    assert "Traceback" not in run.stderr, run.stderr
    assert str(tmp_path) in lines[0]


def error_of(capsys, verb, *overrides):
    capsys.readouterr()
    assert main.main([*verb.split(), *(f"--gin_file={file}" for file in GIN), *(f for s in overrides for f in ("--set", s))]) == 2
    printed = capsys.readouterr().err
    lines = [line for line in printed.splitlines() if line.startswith("xretrieval: ")]
    assert len(lines) == 1, printed
    assert printed.endswith(lines[0] + "\n"), printed
    return lines[0]


def test_a_place_that_cannot_be_written_is_one_line(finished, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    beneath = tmp_path / "file/folder"
    for verb, name in (
        ("corpus", "CORPUS"),
        ("units fit", "UNIT_TOKENIZER"),
        ("units extract", "UNITS"),
        ("data tokenizer", "TOKENIZER"),
        ("data build", "RECORDS"),
        ("train", "WORKDIR"),
        ("export", "MODEL"),
        ("evaluate", "REPORT"),
        ("index", "INDEX"),
    ):
        assert str(beneath) in error_of(capsys, verb, *settings(finished), f"{name}={beneath}"), verb


def test_a_damaged_recording_is_listed_and_the_others_are_kept(finished, tmp_path, capsys):
    shutil.copytree(finished / "corpus", tmp_path / "corpus")
    manifest = tmp_path / "corpus/validation.jsonl"
    lines = manifest.read_text().splitlines()
    victim = tmp_path / "corpus/audio" / pathlib.Path(json.loads(lines[3])["audio"]).relative_to("audio")
    victim.write_bytes(victim.read_bytes()[:100])
    places = [f"CORPUS={tmp_path / 'corpus'}", f"UNITS={tmp_path / 'units'}", "extract_units.splits=('validation',)"]
    line = error_of(capsys, "units extract", *settings(finished), *places)
    assert "1 recordings failed" in line
    index = read_index(tmp_path / "units/validation")
    assert index["failed"] == 1
    assert index["records"] == len(lines) - 1
    assert str(victim) in (tmp_path / "units/validation/failures.jsonl").read_text()
    assert main.main(["data", "check", str(manifest)]) == 2
    assert str(victim.name) in capsys.readouterr().out
    # Mended: only the shard that it is in is made again.
    shutil.copyfile(finished / "corpus" / json.loads(lines[3])["audio"], victim)
    shards_before = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units/validation").glob("*.array_record")}
    index = main.run_verb("units extract", GIN, [*settings(finished), *places])["validation"]
    assert (index["failed"], index["records"]) == (0, len(lines))
    shards_after = {path.name: path.stat().st_mtime_ns for path in (tmp_path / "units/validation").glob("*.array_record")}
    assert sum(shards_after[name] != shards_before[name] for name in shards_before) == 1


def test_an_empty_manifest_is_one_line(finished, tmp_path, capsys):
    (tmp_path / "train.jsonl").write_text("")
    line = error_of(
        capsys, "units extract", *settings(finished), f"CORPUS={tmp_path}", f"UNITS={tmp_path / 'units'}", "extract_units.splits=('train',)"
    )
    assert str(tmp_path / "train.jsonl") in line
    assert "empty" in line


def test_a_language_without_a_voice_is_one_line(finished, tmp_path, capsys):
    line = error_of(capsys, "corpus", *settings(finished), f"CORPUS={tmp_path / 'c'}", "corpus.seen_languages=('en_us', 'ja_jp')")
    assert "Japanese" in line
    assert "kanji" in line


def test_without_espeak_ng_is_one_line(finished, tmp_path, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, "espeakng_loader", None)
    line = error_of(capsys, "corpus", *settings(finished), f"CORPUS={tmp_path / 'c'}")
    assert "espeak" in line
    assert "pip install" in line


def test_a_refused_run_leaves_config_gin(finished, capsys):
    before = (finished / "train/config.gin").read_text()
    for change, message in (
        ("train.batch_size=16", "another train.batch_size"),
        ("train.batch_size=0", "1 or more"),
        ("TowerConfig.width=128", "another"),
        ("train.num_steps=3", "30 steps are done"),
    ):
        assert message in error_of(capsys, "train", *settings(finished), change)
        assert (finished / "train/config.gin").read_text() == before


def test_an_index_is_replaced_by_that_of_another_model(finished, tmp_path):
    for model, steps in (("one", 1), ("two", 2)):
        places = [f"WORKDIR={tmp_path / model}", f"MODEL={tmp_path / model / 'model'}", f"INDEX={tmp_path / 'index.db'}"]
        for verb in ("train", "export", "index"):
            main.run_verb(verb, GIN, [*settings(finished), *places, f"train.num_steps={steps}"])
    flags = ["--text", "Montag", "--language", "de"]
    assert main.main(["search", str(tmp_path / "two/model"), str(tmp_path / "index.db"), *flags]) == 0
    assert main.main(["search", str(tmp_path / "one/model"), str(tmp_path / "index.db"), *flags]) == 2
    assert sorted(path.name for path in tmp_path.iterdir()) == ["index.db", "one", "two"]


def test_other_units_than_trained_with_are_not_exported(finished, tmp_path, capsys):
    main.run_verb("units fit", GIN, [*settings(finished), f"UNIT_TOKENIZER={tmp_path / 'other'}", "fit_units.num_units=32"])
    line = error_of(capsys, "export", *settings(finished), f"UNIT_TOKENIZER={tmp_path / 'other'}", f"MODEL={tmp_path / 'model'}")
    assert "not the" in line
    assert "export.unit_tokenizer_dir" in line or "export.tokenizer_file" in line


@pytest.mark.parametrize("flags,message", [(["--set", "WORKDRI=x"], "did you mean WORKDIR"), ([], "--gin_file")])
def test_a_misspelt_name_or_a_missing_file_is_one_line(flags, message, capsys):
    files = [f"--gin_file={file}" for file in GIN] if flags else []
    assert main.main(["train", *files, *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert len(error.strip().splitlines()) == 1


def test_a_sound_file_that_changed_is_read_again_and_what_is_made_of_it_too(finished, tmp_path):
    shutil.copytree(finished / "corpus", tmp_path / "corpus")
    places = [f"CORPUS={tmp_path / 'corpus'}", f"UNITS={tmp_path / 'units'}", "extract_units.splits=('validation',)"]
    first = main.run_verb("units extract", GIN, [*settings(finished), *places])["validation"]
    assert main.run_verb("units extract", GIN, [*settings(finished), *places])["validation"] == first
    one, other = sorted((tmp_path / "corpus/audio/de_de/validation").iterdir())[:2]
    shutil.copyfile(one, other)
    assert main.run_verb("units extract", GIN, [*settings(finished), *places])["validation"]["key"] != first["key"]


def test_units_of_another_tokenizer_are_not_evaluated_and_a_model_keeps_its_own(finished, tmp_path, capsys):
    other = [*settings(finished), f"UNIT_TOKENIZER={tmp_path / 'other'}", "fit_units.num_units=32", f"UNITS={tmp_path / 'units'}"]
    other += ["extract_units.splits=('test',)", "evaluate.held_out_split=None", f"REPORT={tmp_path / 'report'}"]
    main.run_verb("units fit", GIN, other)
    main.run_verb("units extract", GIN, other)
    assert "another unit tokenizer" in error_of(capsys, "evaluate", *other)
    assert not (tmp_path / "report").exists()
    before = (finished / "model/unit_tokenizer/unit_tokenizer.json").read_bytes()
    assert "belongs to a trained model" in error_of(
        capsys, "units fit", *settings(finished), f"UNIT_TOKENIZER={finished / 'model/unit_tokenizer'}"
    )
    assert "belongs to a trained model" in error_of(
        capsys, "data tokenizer", *settings(finished), f"TOKENIZER={finished / 'model/tokenizer.model'}"
    )
    assert (finished / "model/unit_tokenizer/unit_tokenizer.json").read_bytes() == before


@pytest.mark.parametrize(
    "setting,message",
    [
        ("TowerConfig.width=abc", "TowerConfig.width = 'abc': it must be a whole number"),
        ("TowerConfig.causal=maybe", "TowerConfig.causal = 'maybe': it must be True or False"),
        ("OptimizerConfig.learning_rate=fast", "OptimizerConfig.learning_rate = 'fast': it must be a number"),
        ("LossConfig.spread_out_weight=None", "LossConfig.spread_out_weight = None"),
    ],
)
def test_a_value_of_another_type_is_one_line(finished, capsys, setting, message):
    assert message in error_of(capsys, "train", *settings(finished), setting)


def test_token_records_of_another_tokenizer_are_not_trained_on(finished, tmp_path, capsys):
    places = [f"TOKENIZER={tmp_path / 'other.model'}", f"WORKDIR={tmp_path / 'train'}"]
    main.run_verb("data tokenizer", GIN, [*settings(finished), *places, "text_tokenizer.fold_case=False"])
    line = error_of(capsys, "train", *settings(finished), *places)
    assert "another text tokenizer" in line
    assert "data build" in line


@pytest.mark.parametrize(
    "flags,steps",
    [(["--gin.train.num_steps=2", "--set", "train.num_steps=3"], 3), (["--set=train.num_steps=3", "--gin.train.num_steps=2"], 2)],
)
def test_the_last_of_set_and_gin_wins(finished, tmp_path, capsys, flags, steps):
    settings_here = [flag for s in [*settings(finished), f"WORKDIR={tmp_path}"] for flag in ("--set", s)]
    assert main.main(["data", "plan", *(f"--gin_file={file}" for file in GIN), *settings_here, *flags]) == 0
    assert f"the fullest of {steps} steps" in capsys.readouterr().out


def test_a_flag_cut_short_is_not_taken(capsys):
    assert main.main(["export", f"--gin_file={GIN[0]}", "--se", "WORKDIR=x"]) == 2
    assert "does not know this" in capsys.readouterr().err


def test_an_export_before_training_says_so(finished, tmp_path, capsys):
    assert "run `xretrieval train` first" in error_of(capsys, "export", *settings(finished), f"WORKDIR={tmp_path}")
