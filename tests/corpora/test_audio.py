import io
import math
import struct

import numpy as np
import pytest
import soundfile
import soxr

from xretrieval.corpora.audio import AudioLimits, inspect_audio, load_audio
from xretrieval.corpora.mpeg import mp3_length
from xretrieval.errors import UserError

FORMATS = [("wav", "PCM_16"), ("wav", "FLOAT"), ("wav", "ULAW"), ("flac", "PCM_16"), ("ogg", "VORBIS"), ("mp3", "MPEG_LAYER_III")]


def tone(seconds: float, rate: int, hertz: float = 440.0) -> np.ndarray:
    return (0.5 * np.sin(2 * np.pi * hertz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def noise(seconds: float, rate: int, seed: int = 0) -> np.ndarray:
    return (0.1 * np.random.default_rng(seed).standard_normal(round(seconds * rate))).astype(np.float32)


def cut(path, keep: float):
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * keep)])
    return path


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_each_format_equals_decoding_and_resampling_at_once(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, np.stack([noise(5.5, 22_050), noise(5.5, 22_050, seed=1)], axis=1), 22_050, subtype=subtype)
    decoded_TC, rate = soundfile.read(path, dtype="float32")
    loaded_T = load_audio(path)
    np.testing.assert_allclose(loaded_T, soxr.resample(decoded_TC.mean(axis=1), rate, 16_000, "HQ"), atol=1e-6)
    assert loaded_T.dtype == np.float32
    assert inspect_audio(path).seconds == pytest.approx(5.5)


def test_a_recording_at_the_target_rate_is_not_touched(tmp_path):
    samples_T = noise(1.0, 16_000)
    soundfile.write(tmp_path / "a.wav", samples_T, 16_000, subtype="FLOAT")
    np.testing.assert_array_equal(load_audio(tmp_path / "a.wav"), samples_T)


@pytest.mark.parametrize("rate", [8_000, 11_025, 44_100, 96_000, 655_350])
def test_a_tone_keeps_its_frequency_and_level_at_any_rate(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", tone(1.0, rate), rate, subtype="FLOAT")
    loaded_T = load_audio(tmp_path / "a.wav")
    assert len(loaded_T) == 16_000
    middle = slice(1_000, 15_000)
    np.testing.assert_allclose(loaded_T[middle], tone(1.0, 16_000)[middle], atol=2e-4)


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_a_segment_is_that_part_of_the_file(tmp_path, suffix, subtype):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(9.0, 16_000), 16_000, subtype=subtype)
    whole_T = load_audio(path)
    np.testing.assert_allclose(load_audio(path, start=6.1, duration=2.25), whole_T[97_600 : 97_600 + 36_000], atol=1e-6)
    np.testing.assert_allclose(load_audio(path, start=6.1), whole_T[97_600:], atol=1e-6)
    np.testing.assert_allclose(load_audio(path, duration=0.5), whole_T[:8_000], atol=1e-6)


@pytest.mark.parametrize(("start", "duration"), [(1.5, 0.6), (2.0, None), (2.5, 1.0), (0.0, 2.011), (1e9, 1.0)])
def test_a_segment_beyond_the_end_is_an_error_not_a_crop(tmp_path, start, duration):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 8_000), 8_000)
    with pytest.raises(UserError, match=r"a\.wav: the segment from .* reaches beyond the end of the file, 2\.000 s"):
        load_audio(tmp_path / "a.wav", start, duration)


def test_a_duration_rounded_to_hundredths_is_not_beyond_the_end(tmp_path):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 16_000)[:31_900], 16_000)  # 1.99375 s, written as 1.99 or 2.00
    assert len(load_audio(tmp_path / "a.wav", duration=2.0)) == 31_900


@pytest.mark.parametrize(("start", "duration"), [(-1.0, None), (math.nan, 1.0), (0.0, 0.0), (0.0, math.inf), (0.0, -2.0)])
def test_a_segment_must_make_sense(tmp_path, start, duration):
    soundfile.write(tmp_path / "a.wav", tone(2.0, 8_000), 8_000)
    with pytest.raises(UserError, match="start must be 0 or more"):
        load_audio(tmp_path / "a.wav", start, duration)


@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "mp3"])
def test_a_file_that_was_cut_off_is_an_error_not_a_crop(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(5.0, 16_000), 16_000)
    with pytest.raises(UserError, match=rf"a\.{suffix}: .*damaged"):
        load_audio(cut(path, keep=0.6))
    with pytest.raises(UserError, match="damaged"):
        inspect_audio(path)


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_a_file_with_spoilt_bytes_is_an_error(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(5.0, 16_000), 16_000)
    data = bytearray(path.read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 300):
        data[i] ^= 0x5A
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a\..*damaged"):
        load_audio(path)


def wav_bytes(data_size: int, frames: int = 16_000) -> bytes:
    head = b"RIFF" + struct.pack("<I", min(data_size + 36, 2**32 - 1)) + b"WAVEfmt "
    return head + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data" + struct.pack("<I", data_size) + b"\1\1" * frames


def test_a_wav_written_to_a_pipe_is_read_and_a_wav_with_a_wrong_length_is_not(tmp_path):
    path = tmp_path / "a.wav"
    for unknown in (0xFFFFFFFF, 0xFFFFFFFF - 36, 0x7FFFFFFF - 36, 0xFFFFFFFF - 0xFF):
        path.write_bytes(wav_bytes(unknown))
        assert len(load_audio(path)) == 16_000
    path.write_bytes(wav_bytes(64_000))
    with pytest.raises(UserError, match=r"a\.wav: damaged: cut off after 1\.000 s"):
        load_audio(path)


def test_a_flac_without_a_length_is_refused(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(1.0, 16_000), 16_000)
    data = bytearray(path.read_bytes())
    data[21] &= 0xF0
    data[22:26] = bytes(4)
    path.write_bytes(bytes(data))
    with pytest.raises(UserError, match="does not say how long"):
        load_audio(path)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_a_sample_that_is_not_finite_is_an_error(tmp_path, value):
    samples_T = noise(6.0, 16_000)
    samples_T[90_000] = value
    soundfile.write(tmp_path / "a.wav", samples_T, 16_000, subtype="FLOAT")
    with pytest.raises(UserError, match=r"a\.wav: a sample is not a finite number"):
        load_audio(tmp_path / "a.wav")


def test_limits(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, np.zeros(601 * 8_000, np.int16), 8_000)
    with pytest.raises(UserError, match=r"a\.flac: 601 s of sound, at most 600 s at a time"):
        load_audio(path)
    assert len(load_audio(path, start=590.0, duration=10.0)) == 160_000
    assert inspect_audio(path).seconds == 601
    soundfile.write(path, np.zeros((30 * 384_000, 8), np.int16), 384_000, format="WAV")
    with pytest.raises(UserError, match=r"352 MiB decoded \(384000 Hz, 8 channels\), at most 256 MiB"):
        load_audio(path)
    soundfile.write(path, np.zeros((16_000, 9), np.int16), 16_000, format="WAV")
    with pytest.raises(UserError, match="9 channels, at most 8"):
        load_audio(path)
    soundfile.write(path, np.zeros(300, np.int16), 16_000)
    with pytest.raises(UserError, match=r"a\.flac: 0\.019 s of sound, at least 0\.05 s"):
        load_audio(path)


@pytest.mark.parametrize(
    ("name", "value"), [("max_seconds", 0.0), ("max_channels", -1), ("timeout_seconds", math.inf), ("max_pcm_bytes", "1 GB")]
)
def test_limits_that_make_no_sense(name, value):
    with pytest.raises(UserError, match=rf"AudioLimits\.{name} = .*must be"):
        AudioLimits(**{name: value})


def test_what_is_no_sound_file_is_named_with_the_reason(tmp_path):
    (tmp_path / "empty.wav").touch()
    (tmp_path / "text.wav").write_text("no sound at all" * 100)
    soundfile.write(tmp_path / "silent.wav", np.zeros(0, np.int16), 16_000)
    soundfile.write(tmp_path / "a.aiff", noise(1.0, 16_000), 16_000)
    reasons = {
        "empty.wav": "the file is empty",
        "text.wav": "not a sound file",
        "silent.wav": "no sound in it",
        "missing.wav": "cannot be read .No such file",
        ".": "cannot be read .Is a directory",
        "a.aiff": "AIFF is not read; convert it",
    }
    for name, reason in reasons.items():
        with pytest.raises(UserError, match=reason) as caught:
            load_audio(tmp_path / name)
        assert str(tmp_path / name) in str(caught.value)
    with pytest.raises(UserError, match="sound is read from files"):
        load_audio("gs://bucket/a.wav")


@pytest.mark.parametrize("suffix", ["flac", "ogg", "mp3"])
def test_joined_files_are_an_error_not_a_crop(tmp_path, suffix):
    path = tmp_path / f"a.{suffix}"
    soundfile.write(path, noise(2.0, 16_000), 16_000)
    path.write_bytes(path.read_bytes() * 2)
    with pytest.raises(UserError, match="holds more than its header says"):
        load_audio(path)


def without_first_frame(path):
    data = path.read_bytes()
    path.write_bytes(data[data.index(data[:2], 4) :])


def test_an_mp3_without_a_length_is_read_to_its_end_or_not_at_all(tmp_path):
    swelling_T = noise(20.0, 44_100) * np.linspace(0, 1, 882_000, dtype=np.float32) ** 4
    soundfile.write(tmp_path / "constant.mp3", swelling_T, 44_100, bitrate_mode="CONSTANT", compression_level=0.5)
    with_length_T = load_audio(tmp_path / "constant.mp3")
    without_first_frame(tmp_path / "constant.mp3")
    # Without that frame the encoder's padding is no longer cut away: it is all there, a little later.
    assert 0 <= len(load_audio(tmp_path / "constant.mp3")) - len(with_length_T) < 3 * 1_152
    soundfile.write(tmp_path / "variable.mp3", swelling_T, 44_100, bitrate_mode="VARIABLE")
    assert inspect_audio(tmp_path / "variable.mp3").frames == 882_000
    without_first_frame(tmp_path / "variable.mp3")
    assert 0 <= inspect_audio(tmp_path / "variable.mp3").frames - 882_000 < 3 * 1_152
    # A length guessed from a high bit rate at the beginning is too short, and there the decoder would stop.
    soundfile.write(tmp_path / "variable.mp3", swelling_T[::-1], 44_100, bitrate_mode="VARIABLE")
    without_first_frame(tmp_path / "variable.mp3")
    with pytest.raises(UserError, match="wrong length"):
        load_audio(tmp_path / "variable.mp3")


def test_a_long_mp3_without_a_length_is_read_to_its_end(tmp_path):
    soundfile.write(tmp_path / "a.mp3", noise(10.0, 44_100), 44_100, bitrate_mode="CONSTANT", compression_level=0.5)
    without_first_frame(tmp_path / "a.mp3")
    (tmp_path / "a.mp3").write_bytes((tmp_path / "a.mp3").read_bytes() * 30)  # libsndfile guesses 0.5 s too much
    assert inspect_audio(tmp_path / "a.mp3").frames == 30 * 384 * 1_152
    assert len(load_audio(tmp_path / "a.mp3", start=150.0, duration=2.0)) == 32_000
    assert len(load_audio(tmp_path / "a.mp3", start=299.0)) == round((30 * 384 * 1_152 / 44_100 - 299.0) * 16_000)


def test_mp3_tags_are_not_sound(tmp_path):
    soundfile.write(tmp_path / "a.mp3", noise(3.0, 16_000), 16_000)
    plain = (tmp_path / "a.mp3").read_bytes()
    untagged = mp3_length(io.BytesIO(plain))
    tagged = b"ID3\x04\x00\x00" + bytes([0, 0, 7, 104]) + b"\xff" * 1_000 + plain + b"TAG" + b"\xff" * 125
    assert mp3_length(io.BytesIO(tagged)) == untagged
    assert untagged.declared
    assert 48_000 <= untagged.frames <= 48_000 + 4 * 1_152
