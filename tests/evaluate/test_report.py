import json

import matplotlib.image
import numpy as np
import pytest
from rich.console import Console

from xretrieval.errors import UserError
from xretrieval.evaluate.report import headline, print_report, write_report


def metrics(r1, pool_size=100):
    return {"R@1": r1, "R@5": r1, "R@10": r1, "MRR": r1, "pool_size": pool_size, "chance": 1 / pool_size}


def entry(seen, r1, english=None):
    return {
        "seen": seen,
        "speech_to_text": metrics(r1),
        "text_to_speech": metrics(r1 - 0.1),
        "speech_to_text_joint_pool": metrics(r1 - 0.05, 400),
        "text_to_speech_joint_pool": metrics(r1 - 0.15, 400),
        "speech_to_english": metrics(r1 - 0.2 if english is None else english),
        "held_out_voices": {"speech_to_text": metrics(r1 - 0.3)},
    }


LANGUAGES = {"en_us": entry(True, 0.9, english=0.99), "de_de": entry(True, 0.8), "fr_fr": entry(True, 0.7), "pl_pl": entry(False, 0.5)}


def results(languages):
    return {
        "headline": headline(languages),
        "languages": languages,
        "seconds": {"train": 1.5},
        "machine": "two cores",
        "command": "xretrieval",
    }


def test_the_headline_averages_languages_seen_and_unseen_apart():
    assert headline(LANGUAGES) == pytest.approx(
        {
            "speech_to_text_r1_seen": 0.8,
            "text_to_speech_r1_seen": 0.7,
            "speech_to_english_r1_seen": 0.55,  # of German and French
            "speech_to_text_r1_unseen": 0.5,
            "text_to_speech_r1_unseen": 0.4,
            "speech_to_english_r1_unseen": 0.3,
            "speech_to_text_r1_seen_joint_pool": 0.75,
            "speech_to_text_r1_unseen_joint_pool": 0.45,
            "speech_to_text_r1_seen_held_out_voices": 0.5,
            "speech_to_text_r1_unseen_held_out_voices": 0.2,
            "chance": 0.01,
            "pool_size": 100,
            "joint_pool_size": 400,
        }
    )


def test_what_was_not_measured_is_none_not_nought():
    alone = headline({"de_de": {"seen": True, "speech_to_text": metrics(0.8)}})
    assert alone["speech_to_text_r1_seen"] == 0.8
    assert {key for key, value in alone.items() if value is not None} == {"speech_to_text_r1_seen", "chance", "pool_size"}
    assert set(headline({}).values()) == {None}


@pytest.mark.parametrize(
    "languages", [LANGUAGES, {"de_de": LANGUAGES["de_de"]}, {"pl_pl": {"seen": False, "speech_to_text": metrics(0.0)}}, {}]
)
def test_report_files(tmp_path, languages):
    as_json, picture = write_report(results(languages), tmp_path / "eval")
    assert json.loads(as_json.read_text()) == results(languages)
    pixels_HWC = matplotlib.image.imread(picture)
    assert pixels_HWC.shape[1] == 1_680
    assert sorted(p.name for p in (tmp_path / "eval").iterdir()) == ["report.json", "report.png"]
    write_report(results(languages), tmp_path / "eval")


def has_colour(path, rgb):
    pixels_HWC = np.round(255 * matplotlib.image.imread(path)[..., :3])
    return bool((pixels_HWC == rgb).all(axis=-1).any())


def test_seen_and_unseen_have_colours_of_their_own(tmp_path):
    seen, unseen = (0x2A, 0x6F, 0xB0), (0xD9, 0x82, 0x2B)
    _, both = write_report(results(LANGUAGES), tmp_path / "both")
    _, only = write_report(results({"de_de": LANGUAGES["de_de"]}), tmp_path / "only")
    assert has_colour(both, seen)
    assert has_colour(both, unseen)
    assert has_colour(only, seen)
    assert not has_colour(only, unseen)


def test_the_table_names_languages_and_means():
    console = Console(width=80, record=True)
    print_report(results(LANGUAGES), console)
    lines = console.export_text().splitlines()
    row = {line.split("  ")[0].strip(): line.split()[-8:] for line in lines if line.strip()}
    assert row["German"] == ["80", "80", "80", "80", "75", "50", "70", "60"]
    assert row["English"][-1] == "–"
    assert row["mean, seen"] == ["80.0", "80.0", "80.0", "80.0", "75.0", "50.0", "70.0", "55.0"]
    assert row["mean, unseen"][0] == "50.0"
    assert "…" not in "".join(lines)
    assert "100 candidates in a language's own pool (chance 1.0 %), 400 in the joint pool" in " ".join(" ".join(lines).split())


def test_a_report_that_cannot_be_written_leaves_the_old_one(tmp_path):
    as_json, _ = write_report(results(LANGUAGES), tmp_path)
    before = as_json.read_bytes()
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_report(results(LANGUAGES) | {"seconds": {"train": float("nan")}}, tmp_path)
    assert as_json.read_bytes() == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["report.json", "report.png"]
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="file: the report cannot be written"):
        write_report(results(LANGUAGES), tmp_path / "file")
