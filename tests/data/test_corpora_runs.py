"""The run files of several corpora, by the command line's functions, on corpora of a few seconds."""

import json

import gin
import pytest
import spoken_corpora

from xretrieval import main
from xretrieval.data.records import TaskRecords

SIZES = [
    "train.batch_size=8",
    "train.num_steps=2",
    "train.validate=None",
    "train.init_from=None",
]
SIZES += [f"TowerConfig.{name}={size}" for name, size in (("width", 32), ("layers", 1), ("head_dim", 16), ("mlp_hidden", 32))]
SIZES += ["ComputeConfig.block=32", "OptimizerConfig.unit_learning_rate_multiplier=1.0"]


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpora_runs")
    spoken_corpora.make(folder)
    return folder


def settings(root, name, *more):
    places = {
        "UNIT_TOKENIZER": "unit_tokenizer",
        "TOKENIZER": "text/tokenizer.model",
        "RECORDS": f"{name}/records",
        "WORKDIR": f"{name}/train",
    }
    places["UNITS"] = "units/fleurs" if name == "fleurs" else "units/covost2"
    return [*SIZES, *(f"{key}={root / place}" for key, place in places.items()), *more]


@pytest.mark.parametrize(
    "name,more,rates",
    [
        ("covost2", (), {"covost2.speech_to_text.de_de": 0.5, "covost2.speech_to_text.mn_mn": 0.5}),
        (
            "covost2_wikimatrix",
            ("mixture.texts={'wikimatrix': 'ROOT/manifests/wikimatrix'}",),
            {
                "covost2.speech_to_text.de_de": 0.5,
                "covost2.speech_to_text.mn_mn": 0.5,
                "wikimatrix.text_to_text.de_de.en_us": 0.5 * 30 / 45,
                "wikimatrix.text_to_text.en_us.fr_fr": 0.5 * 5 / 45,
                "wikimatrix.text_to_text.fr_fr.en_us": 0.5 * 10 / 45,
            },
        ),
        ("fleurs", ("TRAINED_LANGUAGES=('de',)",), {"fleurs.speech_to_text.de_de": 1.0}),
    ],
)
def test_a_run_file_builds_and_plans(root, name, more, rates, capsys):
    files, overrides = [f"gin_configs/runs/{name}.gin"], settings(root, name, *(item.replace("ROOT", str(root)) for item in more))
    main.run_verb("data inspect", files, overrides)
    listed = [line.rsplit(": ", 1) for line in capsys.readouterr().out.splitlines()]
    assert {task: float(rest.rsplit(" ", 1)[1]) for task, rest in listed} == pytest.approx(rates, rel=1e-5)
    main.run_verb("data build", files, overrides)
    for task in rates:
        assert len(TaskRecords(root / name / "records" / task / "train"))
    main.run_verb("data plan", files, overrides)
    main.configure("train", files, overrides, [])
    data = gin.get_configurable("training_data")()
    assert {task.name: task.rate for task in data.tasks} == pytest.approx(rates)
    assert data.identity["trained_languages"] == sorted({task.split(".")[2] for task in rates if "speech" in task})


@pytest.mark.slow
def test_a_run_of_speech_and_texts_trains(root):
    files = ["gin_configs/runs/covost2_wikimatrix.gin"]
    overrides = settings(root, "trained", f"mixture.texts={{'wikimatrix': '{root}/manifests/wikimatrix'}}")
    main.run_verb("data build", files, overrides)
    assert main.run_verb("train", files, overrides) == 2
    assert json.loads((root / "trained/train/run.json").read_text())["trained_languages"] == ["de_de", "mn_mn"]


def test_inspect_by_its_flags(root, capsys):
    more = ("mixture.recordings={'raw': 'ROOT/manifests/fleurs'}", "MIXTURE_RATES={'speech_to_english': 1.0}", "TRAINED_LANGUAGES=None")
    overrides = settings(root, "fleurs", *(item.replace("ROOT", str(root)) for item in more))
    flags = ["--gin_file=gin_configs/runs/fleurs.gin", *(flag for item in overrides for flag in ("--set", item))]
    command = [
        "data",
        "inspect",
        "raw.speech_to_english.de_de",
        "--shown",
        "1",
        "--split",
        "validation",
        "--out",
        str(root / "pictures"),
        *flags,
    ]
    assert main.main(command) == 0
    out = capsys.readouterr().out
    assert out.count("\nexample") == 1
    assert "targets: [English text] " in out
    assert (root / "pictures/raw.speech_to_english.de_de.validation.png").exists()
    assert main.main(["data", "inspect", "raw.speech_to_english.de", *flags]) == 2
    assert "the nearest is 'raw.speech_to_english.de_de'" in capsys.readouterr().err


@pytest.mark.parametrize(
    "setting,message",
    [
        ("mixture.texts={'covost2': 'x'}", "name each corpus once"),
        ("mixture.languages=('de_de', 'nl_nl')", "mixture.languages: there are no pairs of nl_nl"),
        ("mixture.texts={'wiki-matrix': 'x'}", "a corpus cannot be called 'wiki-matrix'"),
        ("mixture.texts={'wikimatrix': 'nowhere'}", "nowhere/train: no such manifest"),
        ("mixture.corpora={'covost2': 'nowhere'}", "nowhere/train/index.json: no unit records there"),
        ("mixture.temperature=0", "mixture.temperature = 0: it must be a number above 0"),
    ],
)
def test_a_mixture_that_cannot_be_is_one_line(root, setting, message, capsys):
    flags = [flag for item in settings(root, "covost2", setting) for flag in ("--set", item)]
    assert main.main(["data", "build", "--gin_file=gin_configs/runs/covost2.gin", *flags]) == 2
    error = capsys.readouterr().err
    assert message in error
    assert error.count("\n") == 1
