"""The unit tokenizer on disk: whole, or refused."""

import shutil

import numpy as np
import pytest

from xretrieval.errors import UserError
from xretrieval.units.encoders import encoder as encoders
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.tokenizer import NAMES, UnitTokenizer


def sounds(count=5):
    rng = np.random.default_rng(0)
    return [rng.normal(size=6_000 + 4_100 * i).astype(np.float32) for i in range(count)]


def tokenizer(config=LogMelConfig(), average=1, collapse_repeats=True):
    rng = np.random.default_rng(2)
    encoder = encoders.Encoder(config, encoders.init(config, 0), average, {"licence": "of the test"})
    return UnitTokenizer(encoder, rng.normal(size=(4, config.width)).astype(np.float32), collapse_repeats, {"seed": 2})


def test_what_is_read_gives_the_same_ids(tmp_path):
    made = tokenizer()
    made.save(tmp_path)
    read = UnitTokenizer.load(tmp_path)
    assert read.fingerprint == made.fingerprint
    for one, other in zip(read.encode_all(sounds()), made.encode_all(sounds()), strict=True):
        assert (one == other).all()


def test_an_utterance_has_the_same_ids_alone_and_among_others():
    made = tokenizer()
    for together, samples_T in zip(made.encode_all(sounds()), sounds(), strict=True):
        assert (together == made.encode(samples_T)).all()


def test_repeats_collapse():
    collapsing = tokenizer()
    each = collapsing.frame_units(sounds())
    for units, collapsed in zip(each, collapsing.encode_all(sounds()), strict=True):
        assert collapsed.tolist() == [u for i, u in enumerate(units.tolist()) if i == 0 or u != units[i - 1]]
    assert sum(map(len, each)) > sum(map(len, collapsing.encode_all(sounds())))
    assert [units.tolist() for units in tokenizer(collapse_repeats=False).encode_all(sounds())] == [units.tolist() for units in each]


def test_whatever_decides_ids_is_in_the_fingerprint():
    config = LogMelConfig()
    found = [tokenizer(), tokenizer(average=2), tokenizer(collapse_repeats=False), tokenizer(LogMelConfig(floor=1e-5))]
    changed = tokenizer().codebook_KW.copy()
    changed[3, 4] += 1e-3
    found.append(UnitTokenizer(encoders.Encoder(config, {}), changed, True, {}))
    assert len({each.fingerprint for each in found}) == len(found)


def test_average_is_the_mean_of_frames_and_the_last_may_be_fewer():
    one = encoders.Encoder(LogMelConfig(), {}).features(sounds())
    two = encoders.Encoder(LogMelConfig(), {}, 2)
    assert two.frame_rate == 6.25
    for got, frames in zip(two.features(sounds()), one, strict=True):
        want = [frames[i : i + 2].mean(0) for i in range(0, len(frames), 2)]
        np.testing.assert_allclose(got, want, atol=1e-5)  # two programs round differently
    assert {len(frames) % 2 for frames in one} == {0, 1}


@pytest.mark.parametrize("name", [name for name in NAMES if name != "encoder.safetensors"])
def test_a_changed_byte_is_refused(tmp_path, name):
    made = tokenizer()
    made.save(tmp_path / "whole")
    content = (tmp_path / "whole" / name).read_bytes()
    rng = np.random.default_rng(3)
    for place in {0, len(content) - 1, *rng.integers(len(content), size=40).tolist()}:
        shutil.copytree(tmp_path / "whole", tmp_path / "changed", dirs_exist_ok=True)
        changed = bytearray(content)
        changed[place] ^= 1 << int(rng.integers(8))
        (tmp_path / "changed" / name).write_bytes(bytes(changed))
        with pytest.raises(UserError, match=name.split(".")[0]):
            UnitTokenizer.load(tmp_path / "changed")


def test_files_of_two_tokenizers_are_refused(tmp_path):
    tokenizer().save(tmp_path / "a")
    tokenizer(average=2).save(tmp_path / "b")
    shutil.copyfile(tmp_path / "a/encoder.json", tmp_path / "b/encoder.json")
    with pytest.raises(UserError, match=r"encoder\.json is not of the encoder"):
        UnitTokenizer.load(tmp_path / "b")


def test_a_codebook_of_another_width_is_refused():
    with pytest.raises(UserError, match="features are 104 wide"):
        UnitTokenizer(encoders.Encoder(LogMelConfig(), {}), np.zeros((4, 8), np.float32), True, {})
