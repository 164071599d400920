"""The report's figures beside a recount, frame by frame, and what it refuses."""

import collections
import itertools
import json
import math
import pathlib

import numpy as np
import pytest
import soundfile

from xretrieval import main
from xretrieval.corpora.alignments import Phone, read_alignments, write_alignments
from xretrieval.corpora.manifest import read_manifest
from xretrieval.demo import corpus as demo_corpus
from xretrieval.errors import UserError
from xretrieval.units.encoders.encoder import Encoder
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.report import report
from xretrieval.units.tokenizer import UnitTokenizer

ENDS = (0.05, 0.17, 0.29, 0.41, 0.63)  # among them centres of frames: a frame at a border has the phone that begins there
NAMES = ("a", "sil", "o", "a", "s", "o")


def save_tokenizer(folder, stack, units):
    config = LogMelConfig(stack=stack, deltas=False)
    codebook_KW = np.random.default_rng(stack).normal(size=(units, config.width)).astype(np.float32)
    codebook_KW[-1] = 100.0  # no frame is near
    UnitTokenizer(Encoder(config, {}), codebook_KW, True, {}).save(folder)
    return str(folder)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Noise of changing colour, with phones that begin where it changes."""
    root = tmp_path_factory.mktemp("noise")
    rng = np.random.default_rng(0)
    lines, alignments = [], []
    for i in range(16):
        ends = [*ENDS, 0.8 + 0.05 * i]
        sound_T = np.zeros(round(ends[-1] * 16_000), np.float32)
        phones, start = [], 0.0
        for number, end in enumerate(ends):
            name = str(rng.choice(NAMES)) if i % 3 else NAMES[number]
            t = np.arange(round(start * 16_000), round(end * 16_000))
            sound_T[t] = 0.2 * np.sin(2 * np.pi * (300 + 700 * NAMES.index(name)) * t / 16_000) + 0.02 * rng.normal(size=t.size)
            phones.append(Phone(name, start, end))
            start = end
        soundfile.write(root / f"{i}.wav", sound_T, 16_000)
        lines.append({"id": str(i), "language": ("de_de", "fr_fr")[i % 2], "text": "a", "audio": f"{i}.wav"})
        alignments.append((str(i), phones))
    (root / "test.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    write_alignments(root / "test.phones.jsonl", alignments)
    save_tokenizer(root / "coarse", 4, 6)
    save_tokenizer(root / "fine", 1, 12)
    return root


def frames_by_hand(root, folder):
    """Of each utterance: language, seconds, its units, and (phone, unit) a frame."""
    tokenizer = UnitTokenizer.load(root / folder)
    phones = read_alignments(root / "test.phones.jsonl", [str(i) for i in range(16)])
    found = []
    for utterance in read_manifest(root / "test.jsonl"):
        samples_T, _ = soundfile.read(utterance.recording, dtype="float32")
        units = tokenizer.frame_units([samples_T])[0].tolist()
        pairs = []
        for frame, unit in enumerate(units):
            centre = (frame + 0.5) / tokenizer.encoder.frame_rate
            heard = [phone.name for phone in phones[utterance.id] if phone.start <= centre < phone.end]
            pairs.append((heard[0] if heard else phones[utterance.id][-1].name, unit))
        found.append((utterance.language, len(samples_T) / 16_000, units, pairs))
    return found


def bits(counts):
    total = sum(counts)
    return -sum(count / total * math.log2(count / total) for count in counts)


def measures(pairs):
    joint, phones, units = (collections.Counter(x) for x in (pairs, [p for p, _ in pairs], [u for _, u in pairs]))
    information = bits(phones.values()) + bits(units.values()) - bits(joint.values())
    return {
        "pnmi": information / bits(phones.values()),
        "phone_purity": sum(max(joint[p, u] for p in phones) for u in units) / len(pairs),
        "cluster_purity": sum(max(joint[p, u] for u in units) for p in phones) / len(pairs),
    }


def changes(units):
    return 1 + sum(one != other for one, other in itertools.pairwise(units))


def test_figures_are_those_of_a_recount(made, tmp_path, capsys):
    folders = [str(made / "coarse"), str(made / "fine")]
    results = report(str(made / "test.jsonl"), str(made / "test.phones.jsonl"), folders, str(tmp_path / "out"))
    said = capsys.readouterr().out
    assert f"wrote {tmp_path / 'out' / 'units_report.json'}" in said
    assert f"wrote {tmp_path / 'out' / 'units_report.png'}" in said
    assert json.loads((tmp_path / "out" / "units_report.json").read_text()) == results
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["units_report.json", "units_report.png"]
    assert results["phones"] == 4
    for name, units, rate in (("coarse", 6, 12.5), ("fine", 12, 50.0)):
        found, by_hand = results["tokenizers"][name], frames_by_hand(made, name)
        pairs = [pair for *_, each in by_hand for pair in each]
        used = collections.Counter(unit for _, unit in pairs)
        assert (found["frames"], found["num_units"], found["frame_rate"]) == (len(pairs), units, rate)
        for measure, value in measures(pairs).items():
            assert found[measure]["value"] == pytest.approx(value, rel=1e-12)
        assert len(used) < units
        assert found["codebook_used"] == len(used) / units
        assert found["unit_entropy_bits"] == pytest.approx(bits(used.values()), rel=1e-12)
        assert found["unit_perplexity"] == pytest.approx(2 ** bits(used.values()), rel=1e-12)
        for language in ("de_de", "fr_fr", None):
            mine = [each for each in by_hand if language in (each[0], None)]
            seconds = sum(each[1] for each in mine)
            rates = found["languages"][language] if language else found
            assert rates["collapsed_units_per_second"] == pytest.approx(sum(changes(each[2]) for each in mine) / seconds, rel=1e-12)
            if language:
                assert rates["units_per_second"] == pytest.approx(sum(len(each[2]) for each in mine) / seconds, rel=1e-12)
        assert found["collapsed_units_per_second"] < sum(len(each[2]) for each in by_hand) / sum(each[1] for each in by_hand)


def test_intervals_are_those_of_another_bootstrap(made, tmp_path):
    results = report(str(made / "test.jsonl"), str(made / "test.phones.jsonl"), [str(made / "fine")], str(tmp_path))
    by_hand = [pairs for *_, pairs in frames_by_hand(made, "fine")]
    rng = np.random.default_rng(7)
    draws = [measures([pair for i in rng.integers(16, size=16) for pair in by_hand[i]]) for _ in range(1_000)]
    for measure in ("pnmi", "phone_purity", "cluster_purity"):
        found = results["tokenizers"]["fine"][measure]
        low, high = found["interval_95"]
        assert (low + high) / 2 == pytest.approx(found["value"], rel=1e-12)
        wanted = np.diff(np.percentile([draw[measure] for draw in draws], [2.5, 97.5])).item()
        # Its 200 draws tell the width to within 7 % (standard error of two such percentiles of a normal distribution), four of which are allowed.
        assert high - low == pytest.approx(wanted, rel=0.28)


def test_what_cannot_be_compared_is_refused(made, tmp_path):
    manifest, fine = str(made / "test.jsonl"), [str(made / "fine")]
    aligned = read_alignments(made / "test.phones.jsonl", [str(i) for i in range(16)])
    ends = {id_: phones[-1].end for id_, phones in aligned.items()}
    write_alignments(tmp_path / "one.jsonl", [(id_, [Phone("a", 0.0, end)]) for id_, end in ends.items()])
    with pytest.raises(UserError, match="only one phone, 'a'"):
        report(manifest, str(tmp_path / "one.jsonl"), fine, str(tmp_path))
    write_alignments(tmp_path / "long.jsonl", [(id_, [Phone("a", 0.0, 0.1), Phone("o", 0.1, end + 0.06)]) for id_, end in ends.items()])
    with pytest.raises(UserError, match="its sound at .*; align it again"):
        report(manifest, str(tmp_path / "long.jsonl"), fine, str(tmp_path))
    (tmp_path / "broken.wav").write_bytes(b"RIFF")
    line = {"id": "0", "language": "de_de", "text": "a", "audio": "broken.wav"}
    (tmp_path / "broken.jsonl").write_text(json.dumps(line) + "\n")
    with pytest.raises(UserError, match=r"broken\.wav"):
        report(str(tmp_path / "broken.jsonl"), str(made / "test.phones.jsonl"), fine, str(tmp_path))
    (tmp_path / "out" / "units_report.png").mkdir(parents=True)
    with pytest.raises(UserError, match="out: the report cannot be written"):
        report(manifest, str(made / "test.phones.jsonl"), fine, str(tmp_path / "out"), 1)
    assert not list((tmp_path / "out").glob("*.tmp"))


def test_the_demos_recordings_are_aligned_once(made, tmp_path, capsys):
    folder = tmp_path / "corpus"
    demo_corpus.generate(str(folder), "de,en", "ru", train_sentences=1, validation_sentences=1, test_sentences=3, seed=5, num_workers=1)
    phones = folder / "test.phones.jsonl"
    command = ["units", "report", str(folder / "test.jsonl"), str(made / "fine"), "--out", str(tmp_path / "out"), "--per_language", "2"]
    assert main.main([*command, "--seed", "3"]) == 0
    assert f"wrote {phones}" in capsys.readouterr().out
    results = json.loads(pathlib.Path(tmp_path / "out" / "units_report.json").read_text())
    assert results["seed"] == 3
    assert results["utterances_by_language"] == {"de_de": 2, "en_us": 2, "ru_ru": 2}
    assert main.main(command) == 0
    assert f"wrote {phones}" not in capsys.readouterr().out
