"""`xretrieval demo`: its flags, in quick; the whole of it, stopped and run again, among the slow tests."""

import argparse
import contextlib
import json
import os
import pathlib
import signal
import subprocess
import sys
import time

import pytest

from xretrieval import main
from xretrieval.demo import polyglot, run

ROOT = pathlib.Path(__file__).parents[2]


def flags(tmp_path, **changed):
    return argparse.Namespace(**{"workdir": str(tmp_path / "a folder"), "languages": None, "minutes": None, "seed": 0, **changed})


@pytest.mark.parametrize("languages", [None, "de", "de,fr,ru", "all"])
def test_every_verb_takes_what_the_flags_stand_for_and_all_of_it_is_under_the_workdir(tmp_path, languages):
    import gin

    overrides = run.settings(flags(tmp_path, languages=languages, seed=7))
    for _, verbs in run.STAGES:
        for verb in verbs:
            main.configure(verb, [run.GIN_FILE], overrides, [])
            assert "demo_run" not in gin.config_str(), "a place of the run file that --workdir did not move"
            assert ".seed = 7" not in gin.config_str()
            assert gin.query_parameter("SEED/macro.value") == 7


def test_languages_that_were_not_chosen_are_unseen():
    seen, unseen = run.languages("pl,German")
    assert seen == ("en_us", "pl_pl", "de_de")
    assert "pl_pl" not in unseen
    assert len(unseen) == 5
    seen, unseen = run.languages("all")
    assert len(seen) >= 20
    assert len(unseen) >= 20
    assert not set(seen) & set(unseen)
    assert set(seen) | set(unseen) == set(polyglot.LANGUAGES)


def test_a_stage_that_is_only_reused_keeps_its_seconds(tmp_path):
    with run.Times(tmp_path).stage("corpus"):
        time.sleep(0.3)
    with contextlib.suppress(KeyboardInterrupt), run.Times(tmp_path).stage("units"):
        time.sleep(0.2)
        raise KeyboardInterrupt
    assert "units" not in json.loads((tmp_path / "seconds.json").read_text())
    again = run.Times(tmp_path)
    for name in ("corpus", "units"):
        with again.stage(name):
            pass
    assert json.loads((tmp_path / "seconds.json").read_text()) == {"corpus": 0.3, "units": 0.2}


@pytest.mark.parametrize(
    "changed,message",
    [
        ({"languages": "en"}, "beside English"),
        ({"languages": "pl,uk,cs,ro,da,hr"}, "has to be unseen"),
        ({"languages": "ja"}, "kanji"),
        ({"minutes": 0.0}, "--minutes"),
        ({"minutes": float("nan")}, "--minutes"),
        ({"seed": -1}, "--seed"),
    ],
)
def test_flags_are_refused_before_any_work(tmp_path, changed, message):
    with pytest.raises(main.UserError, match=message):
        run.run(flags(tmp_path, **changed), main.run_verb)
    assert not (tmp_path / "a folder/corpus").exists()


def test_the_unseen_languages_are_those_of_the_run_file():
    import gin

    main.configure("corpus", [run.GIN_FILE], [], [])
    assert gin.query_parameter("UNSEEN_LANGUAGES/macro.value") == run.UNSEEN
    assert not set(run.UNSEEN) & set(polyglot.TRAINABLE)


def demo(tmp_path, *more):
    command = [sys.executable, "-m", "xretrieval", "demo", "--workdir", str(tmp_path / "run"), "--languages", "de", *more]
    return subprocess.Popen(command, cwd=ROOT, start_new_session=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


@pytest.mark.slow
def test_stopped_in_every_stage_and_run_again(tmp_path):
    """Ctrl-C some seconds into each stage; the last run goes through, and one more only reuses."""
    signs = ["corpus/audio", "units/train/beam.log", "train/metrics.jsonl"]
    for sign in signs:
        process = demo(tmp_path, "--minutes", "0.5")
        give_up = time.monotonic() + 400
        while not (tmp_path / "run" / sign).exists():
            assert process.poll() is None, process.stderr.read()
            assert time.monotonic() < give_up
            time.sleep(0.1)
        time.sleep(2)
        os.killpg(process.pid, signal.SIGINT)
        _, error = process.communicate(timeout=120)
        assert process.returncode == 130
        assert "Traceback" not in error
    process = demo(tmp_path, "--minutes", "0.5")
    out, error = process.communicate(timeout=900)
    assert process.returncode == 0, error
    report = json.loads((tmp_path / "run/report.json").read_text())
    assert set(report) >= {"headline", "languages", "seconds", "machine", "command"}
    assert set(report["seconds"]) >= {"corpus", "units", "train", "evaluate", "search"}
    assert report["headline"]["pool_size"] == 100
    assert report["headline"]["chance"] == pytest.approx(0.01)
    steps = json.loads((tmp_path / "run/steps.json").read_text())["num_steps"]
    assert f"train.num_steps = {steps}" in (tmp_path / "run/train/config.gin").read_text()
    assert "xretrieval search" in out
    model = (tmp_path / "run/model/model.safetensors").read_bytes()
    again = demo(tmp_path, "--minutes", "0.5")
    assert again.wait(timeout=200) == 0
    assert (tmp_path / "run/model/model.safetensors").read_bytes() == model
