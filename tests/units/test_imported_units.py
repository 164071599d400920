"""From a released encoder's folder to unit records, by the verbs."""

import json
import pathlib

import numpy as np
import pytest
import soundfile

from xretrieval import main
from xretrieval.units.encoders import files
from xretrieval.units.extract import extract, read_unit_records
from xretrieval.units.fit import fit
from xretrieval.units.tokenizer import UnitTokenizer

FIXTURES = pathlib.Path(__file__).parents[1] / "data/parity/encoders"


def glide(rng, seconds=2.0, rate=16_000):
    t = np.arange(int(rate * seconds)) / rate
    pitch = np.interp(t, np.linspace(0, seconds, 7), rng.uniform(100, 3_000, 7))
    return np.sin(2 * np.pi * np.cumsum(pitch) / rate) * rng.uniform(0.1, 0.5) + 0.02 * rng.normal(size=t.size)


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """A manifest of two languages, one with many more recordings, and an imported encoder."""
    root = tmp_path_factory.mktemp("imported")
    rng = np.random.default_rng(0)
    lines = []
    for i in range(32):
        soundfile.write(root / f"{i}.flac", glide(rng), 16_000)
        lines.append({"id": str(i), "language": "en_us" if i % 4 else "de_de", "text": f"text {i}", "audio": f"{i}.flac"})
    (root / "train.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    code = main.main(
        ["units", "import-encoder", str(FIXTURES / "hubert_base"), "--layer", "2", "--average", "2", "--out", str(root / "encoder")]
    )
    assert code == 0
    return root


@pytest.fixture(scope="module")
def fitted(root):
    return fit(str(root / "train.jsonl"), str(root / "units_50"), 24, 20, encoder=str(root / "encoder"), average=1)


def test_an_imported_encoder_says_what_it_is(root, capsys):
    out = str(root / "again")
    assert main.main(["units", "import-encoder", str(FIXTURES / "hubert_base"), "--layer", "1", "--out", out]) == 0
    said = capsys.readouterr().out
    for part in ("hubert_base (hubert): layer 1", "at 50 Hz", "left out: encoder.layers.* (", f"wrote {out}"):
        assert part in said
    chance = [*("units", "import-encoder", str(FIXTURES / "hubert_base"), "--layer", "1", "--out", out), "--random_weights", "3"]
    assert main.main(chance) == 0
    assert "hubert_base, weights of seed 3" in capsys.readouterr().out
    assert files.load(out).layer == 1
    assert main.main(["units", "import-encoder", str(FIXTURES / "hubert_base"), "--layer", "40", "--out", out]) == 2
    assert "40" in capsys.readouterr().err


def test_units_of_an_imported_encoder_are_the_same_alone_and_in_bulk(root, fitted):
    assert fitted.encoder.frame_rate == 25.0
    index = extract(str(root / "train.jsonl"), str(root / "units_50"), str(root / "records"), num_shards=2, num_workers=1)
    assert index["records"] == 32
    read = UnitTokenizer.load(root / "units_50")
    assert read.fingerprint == index["fingerprint"]
    for record in list(read_unit_records(root / "records"))[::7]:
        samples_T, _ = soundfile.read(record.utterance.recording, dtype="float32")
        assert read.encode(samples_T).tolist() == list(record.units)


def test_a_flipped_byte_of_the_encoder_is_refused(root, fitted, tmp_path):
    fitted.save(tmp_path)
    content = bytearray((tmp_path / "encoder.safetensors").read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "encoder.safetensors").write_bytes(bytes(content))
    with pytest.raises(main.UserError, match=r"encoder\.safetensors: not the weights"):
        UnitTokenizer.load(tmp_path)


def test_no_language_owns_the_codebook(root, fitted):
    assert fitted.fitted_on["utterances_by_language"] == {"de_de": 8, "en_us": 20}


def test_mini_batches_fit_from_a_file_and_leave_none(root, fitted, tmp_path):
    found = fit(str(root / "train.jsonl"), str(tmp_path), 24, 20, 10, encoder=str(root / "encoder"), batch_frames=400)
    assert not (tmp_path / "features.tmp").exists()
    assert found.fitted_on["frames"] == fitted.fitted_on["frames"]
    assert found.fitted_on["mean_squared_distance"][-1] < 1.3 * fitted.fitted_on["mean_squared_distance"][-1]
    with pytest.raises(main.UserError, match=r"more than fit_units\.max_frames = 500 frames"):
        fit(str(root / "train.jsonl"), str(tmp_path), 24, 20, encoder=str(root / "encoder"), max_frames=500)


def test_a_published_codebook_becomes_a_unit_tokenizer_or_is_refused(root, fitted, tmp_path, capsys):
    np.save(tmp_path / "km.npy", fitted.codebook_KW)
    rng = np.random.default_rng(1)
    np.save(tmp_path / "wrong.npy", (fitted.codebook_KW + 5 * rng.normal(size=fitted.codebook_KW.shape)).astype(np.float32))
    command = ["units", "import-codebook", str(tmp_path / "km.npy"), "--encoder", str(root / "encoder"), "--made_for", "hubert_base"]
    more = ["--layer", "2", "--check", str(root / "train.jsonl"), "--out", str(tmp_path / "units")]
    assert main.main([*command, *more]) == 0
    assert "24 centroids explain" in capsys.readouterr().out
    assert (UnitTokenizer.load(tmp_path / "units").codebook_KW == fitted.codebook_KW).all()
    for change, message in (
        (["--made_for", "mhubert-147"], "made for mhubert-147, the encoder is hubert_base"),
        (["--layer", "1"], "made for layer 1, the encoder taps layer 2"),
    ):
        assert main.main([*command, *more, *change]) == 2
        assert message in capsys.readouterr().err
    command[2] = str(tmp_path / "wrong.npy")
    assert main.main([*command, *more]) == 2
    assert "another encoder, layer or training iteration" in capsys.readouterr().err


def test_an_encoders_folder_and_a_config_without_weights_are_both_encoders(root):
    assert files.load(root / "encoder").layer == 2
    with pytest.raises(main.UserError, match=r"encoder\.json: no encoder there"):
        fit(str(root / "train.jsonl"), str(root / "none"), encoder=str(root / "nowhere"))
