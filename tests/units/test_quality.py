"""What units say of phones: the measures beside formulas written out, and the report on units that are known."""

import json
import math

import numpy as np
import pytest
import soundfile

from xretrieval import main
from xretrieval.corpora.alignments import Phone, write_alignments
from xretrieval.units import quality
from xretrieval.units.encoders import encoder as encoders
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.fit import fit
from xretrieval.units.report import report
from xretrieval.units.tokenizer import UnitTokenizer


def written_out(joint):
    """PNMI and purities as sums over cells."""
    total = joint.sum()
    p_phone, p_unit = joint.sum(1) / total, joint.sum(0) / total
    information = sum(
        joint[i, j] / total * math.log(joint[i, j] / total / (p_phone[i] * p_unit[j])) for i, j in zip(*np.nonzero(joint), strict=True)
    )
    uncertainty = -sum(p * math.log(p) for p in p_phone if p)
    phone_purity = sum(p_unit[j] * max(joint[:, j]) / joint[:, j].sum() for j in range(joint.shape[1]) if joint[:, j].any())
    cluster_purity = sum(p_phone[i] * max(joint[i]) / joint[i].sum() for i in range(joint.shape[0]) if joint[i].any())
    return information / uncertainty, phone_purity, cluster_purity


@pytest.mark.parametrize("seed", range(4))
def test_measures_are_the_formulas(seed):
    rng = np.random.default_rng(seed)
    phones, units = rng.integers(0, 9, 500), rng.integers(0, 30, 500)
    units[::2] = phones[::2] * 3
    joint = quality.joint_counts(phones, units, 9, 30)
    assert joint.sum() == 500
    assert joint[phones[0], units[0]] == np.sum((phones == phones[0]) & (units == units[0]))
    got = quality.pnmi(joint), quality.phone_purity(joint), quality.cluster_purity(joint)
    np.testing.assert_allclose(got, written_out(joint), rtol=1e-12)


def test_the_correction_takes_away_what_few_frames_pretend():
    rng = np.random.default_rng(0)
    joint = quality.joint_counts(rng.integers(0, 20, 3_000), rng.integers(0, 50, 3_000), 20, 50)
    assert quality.pnmi(joint) > 0.04
    assert abs(quality.corrected_pnmi(joint)) < 0.01
    cells, phones, units = (np.count_nonzero(counts) for counts in (joint, joint.sum(1), joint.sum(0)))
    uncertainty = quality.entropy(joint.sum(1)) + (phones - 1) / (6_000 * math.log(2))
    information = quality.pnmi(joint) * quality.entropy(joint.sum(1)) - (cells - phones - units + 1) / (6_000 * math.log(2))
    assert quality.corrected_pnmi(joint) == pytest.approx(information / uncertainty, rel=1e-12)


def test_known_cases():
    same = np.diag([5.0, 3.0, 2.0])
    assert (quality.pnmi(same), quality.phone_purity(same), quality.cluster_purity(same)) == (pytest.approx(1.0), 1.0, 1.0)
    unrelated = np.outer([5.0, 3.0], [1.0, 1.0])
    assert quality.pnmi(unrelated) == pytest.approx(0.0, abs=1e-12)
    assert quality.phone_purity(unrelated) == pytest.approx(5 / 8)
    one_unit = np.array([[5.0], [3.0]])
    assert quality.cluster_purity(one_unit) == 1.0
    assert quality.entropy(np.ones(8)) == pytest.approx(3.0)
    assert quality.perplexity(np.array([4.0, 4.0, 0.0])) == pytest.approx(2.0)
    assert [quality.runs(np.array(units)) for units in ([], [3], [3, 3], [3, 4, 4, 3])] == [0, 1, 1, 3]


TONES = {"low": 200.0, "middle": 900.0, "high": 3_000.0}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Words of three phones that are tones, in two languages, one of which says them slowly."""
    root = tmp_path_factory.mktemp("tones")
    rng = np.random.default_rng(0)
    lines, alignments = [], []
    for i in range(24):
        language, length = (("de_de", 0.4), ("fr_fr", 0.8))[i % 2]
        phones, parts, at = [], [], 0.0
        for name in rng.choice(list(TONES), 4):
            t = np.arange(int(length * 16_000)) / 16_000
            parts.append(0.3 * np.sin(2 * np.pi * TONES[name] * t) + 0.001 * rng.normal(size=t.size))
            phones.append(Phone(str(name), at, at + length))
            at += length
        soundfile.write(root / f"{i}.wav", np.concatenate(parts), 16_000)
        lines.append({"id": str(i), "language": language, "text": "a", "audio": f"{i}.wav"})
        alignments.append((str(i), phones))
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_alignments(root / "train.phones.jsonl", alignments)
    config = LogMelConfig(stack=1, deltas=False)
    fit(str(root / "train.jsonl"), str(root / "fitted"), 8, 50, encoder=config)
    codebook_KW = 100.0 + np.random.default_rng(1).normal(size=(8, config.width)).astype(np.float32)
    UnitTokenizer(encoders.Encoder(config, {}), codebook_KW, True, {}).save(root / "chance")
    return root


def test_fitted_units_tell_tones_apart_and_a_codebook_of_chance_does_not(corpus, tmp_path, capsys):
    manifest, phones = str(corpus / "train.jsonl"), str(corpus / "train.phones.jsonl")
    found = report(manifest, phones, [str(corpus / "fitted"), str(corpus / "chance")], str(tmp_path), 8)
    said = capsys.readouterr().out
    assert "wrote" in said
    assert json.loads((tmp_path / "units_report.json").read_text()) == found
    assert (tmp_path / "units_report.png").stat().st_size > 5_000
    assert found["utterances_by_language"] == {"de_de": 8, "fr_fr": 8}
    fitted, chance = found["tokenizers"]["fitted"], found["tokenizers"]["chance"]
    assert fitted["pnmi"]["value"] > 0.7 > 0.4 > chance["pnmi"]["value"]
    for each in (fitted, chance):
        for measure in ("pnmi", "corrected_pnmi", "phone_purity", "cluster_purity"):
            low, high = each[measure]["interval_95"]
            assert low <= each[measure]["value"] + 0.05
            assert high >= each[measure]["value"] - 0.05
    languages = fitted["languages"]
    assert languages["de_de"]["units_per_second"] == pytest.approx(50, rel=0.03)
    # How often a unit changes within a tone is the noise's business; test_units_report.py counts the changes again.
    assert all(0 < each["collapsed_units_per_second"] < each["units_per_second"] for each in languages.values())


def test_the_verb(corpus, tmp_path, capsys):
    command = ["units", "report", str(corpus / "train.jsonl"), str(corpus / "fitted"), "--out", str(tmp_path)]
    assert main.main([*command, "--alignments", str(corpus / "train.phones.jsonl"), "--per_language", "3"]) == 0
    assert "PNMI" in capsys.readouterr().out
    assert main.main(command) == 2
    assert "--alignments" in capsys.readouterr().err


def test_alignments_of_other_sound_are_refused(corpus, tmp_path):
    write_alignments(tmp_path / "phones.jsonl", [(str(i), [Phone("low", 0.0, 0.2), Phone("high", 0.2, 9.0)]) for i in range(24)])
    with pytest.raises(main.UserError, match=r"end at 9\.000 s, its sound at"):
        report(str(corpus / "train.jsonl"), str(tmp_path / "phones.jsonl"), [str(corpus / "fitted")], str(tmp_path), 2)
    with pytest.raises(main.UserError, match="two unit tokenizers in folders of this name"):
        report(str(corpus / "train.jsonl"), "x", [str(corpus / "fitted")] * 2, str(tmp_path))
