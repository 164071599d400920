"""Headers that lie, and damage that decoders step over, format by format."""

import io
import struct

import numpy as np
import pytest
import soundfile

from xretrieval.corpora import flac, ogg, wav
from xretrieval.corpora.audio import load_audio, load_sound
from xretrieval.corpora.source import Unreadable
from xretrieval.errors import UserError


def noise(frames: int, channels: int = 1) -> np.ndarray:
    return 0.1 * np.random.default_rng(0).standard_normal((frames, channels))


def changed(path, at: int, content: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(content)


@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT", "ULAW"])
def test_a_wav_whose_rate_was_changed(tmp_path, subtype):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(44_100), 44_100, subtype=subtype)
    assert load_sound(path).info.sampling_rate == 44_100
    changed(path, 24, struct.pack("<I", 16_000))
    with pytest.raises(UserError, match=r"a\.wav: its header contradicts itself: 16000 Hz would be \d+ bytes a second, and it says"):
        load_audio(path)
    changed(path, 28, bytes(4))  # some programs leave it empty
    assert load_sound(path).info.sampling_rate == 16_000


def test_a_wav_whose_channels_were_changed(tmp_path):
    soundfile.write(tmp_path / "a.wav", noise(16_000), 16_000)
    changed(tmp_path / "a.wav", 22, struct.pack("<H", 2))
    with pytest.raises(UserError, match="2 channels of 16 bits are 4 bytes, and it says 2"):
        load_audio(tmp_path / "a.wav")


def test_sound_behind_the_sound_of_a_wav(tmp_path):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16_000), 16_000)
    changed(path, 40, struct.pack("<I", 16_000))  # half of the 32,000 bytes
    with pytest.raises(UserError, match=r"a\.wav: holds more than its header says, 16000 bytes at its end"):
        load_audio(path)


@pytest.mark.parametrize("behind", [b"", b"\0", bytes(100), b"LIST\x04\0\0\0abcd", b"ID3\x04" + bytes(600), b"TAG" + bytes(125)])
def test_what_may_lie_behind_it(tmp_path, behind):
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(16_000), 16_000)
    path.write_bytes(path.read_bytes() + behind)
    assert len(load_audio(path)) == 16_000


def test_a_wav_of_more_than_4_gb_says_its_size_elsewhere():
    sizes = b"ds64" + struct.pack("<IQQQI", 28, 0, 1_000, 500, 0)
    chunks = b"fmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16_000, 32_000, 2, 16) + b"data\xff\xff\xff\xff"
    wav.check(io.BytesIO(b"RF64\xff\xff\xff\xffWAVE" + sizes + chunks + bytes(1_000)), streamed=False)
    with pytest.raises(Unreadable, match="1000 bytes at its end"):
        wav.check(io.BytesIO(b"RF64\xff\xff\xff\xffWAVE" + sizes + chunks + bytes(2_000)), streamed=False)


RATES = [8_000, 11_025, 12_345, 16_000, 22_050, 24_000, 32_000, 37_000, 44_100, 48_000, 88_200, 96_000, 192_000, 384_000]


@pytest.mark.parametrize("rate", RATES)
@pytest.mark.parametrize(("frames", "channels"), [(3_000, 1), (4_096, 2), (300_000, 1), (80_000, 8)])
def test_what_the_frames_of_a_flac_say_is_what_was_written(rate, frames, channels):
    file = io.BytesIO()
    soundfile.write(file, noise(frames, channels), rate, format="FLAC")
    assert flac.contradiction(file, rate, frames) is None
    assert flac.contradiction(file, rate + 1, frames) == f"its first frame {rate} Hz"
    assert "last frame begins" in flac.contradiction(file, rate, frames + 65_536)
    assert frames < 70_000 or "last frame begins" in flac.contradiction(file, rate, frames - 70_000)


def test_a_flac_whose_rate_or_length_was_changed(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, noise(100_000), 16_000)
    data = path.read_bytes()
    for at, content, reason in [
        (18, (44_100 << 4).to_bytes(3), "its header says 44100 Hz and 2.268 s, and its first frame 16000 Hz"),
        (22, (50_000).to_bytes(4), "its header says 16000 Hz and 3.125 s, and its last frame begins at 6."),
        (22, (2**32 - 1).to_bytes(4), "and its last frame begins at 6."),
    ]:
        path.write_bytes(data)
        changed(path, at, content)
        with pytest.raises(UserError, match=reason):
            load_audio(path)


@pytest.mark.parametrize("rate", [0, 1, 999, 1_000_001, 2**31 - 1, 2**32 - 1])
def test_a_rate_that_no_recording_has(tmp_path, rate):
    soundfile.write(tmp_path / "a.wav", noise(16_000), 16_000)
    changed(tmp_path / "a.wav", 24, struct.pack("<II", rate, 2 * rate % 2**32))
    with pytest.raises(UserError, match=r"which no recording has|not a sound file"):
        load_audio(tmp_path / "a.wav")


def pages(data: bytes) -> list[bytes]:
    starts = [i for i in range(len(data)) if data[i : i + 5] == b"OggS\0"]
    return [data[begin:end] for begin, end in zip(starts, [*starts[1:], len(data)], strict=True)]


@pytest.fixture(params=["VORBIS", "OPUS"])
def recorded(request) -> bytes:
    file = io.BytesIO()
    soundfile.write(file, noise(5 * 48_000), 48_000, format="OGG", subtype=request.param)
    return file.getvalue()


def test_an_ogg_file_is_all_there_or_an_error(recorded, tmp_path):
    ogg.check(io.BytesIO(recorded))
    parts = pages(recorded)
    assert len(parts) > 4
    assert b"".join(parts) == recorded
    broken = bytearray(recorded)
    broken[-1] ^= 1
    for data, reason in [
        (b"".join(parts[:-1]), f"damaged: cut off after page {len(parts) - 1}"),
        (recorded[:-1], "is cut off or broken"),
        (recorded[: -len(parts[-1]) + 10], "is cut off or broken"),
        (b"".join(parts[:3] + parts[4:]), "page 3 is not as it was written"),
        (bytes(broken), f"page {len(parts) - 1} is not as it was written"),
        (recorded + recorded, "holds more than its header says"),
        (recorded + b"more", "holds more than its header says"),
        (parts[0] + recorded, "holds more than its header says"),
    ]:
        with pytest.raises(Unreadable, match=reason):
            ogg.check(io.BytesIO(data))
        (tmp_path / "a.ogg").write_bytes(data)
        with pytest.raises(UserError, match=r"a\.ogg"):
            load_audio(tmp_path / "a.ogg")


def test_what_looks_like_a_flac_frame_inside_of_one_is_none():
    """Eight bits of a checksum pass by chance in one of some thousand files."""

    def checksum(data, bits, polynomial):
        crc = 0
        for byte in data:
            crc ^= byte << (bits - 8)
            for _ in range(8):
                crc = (crc << 1) ^ (polynomial if crc >> (bits - 1) & 1 else 0)
                crc &= 2**bits - 1
        return crc

    def header(number):
        start = bytes([0xFF, 0xF8, 0xC5, 0x08, number])
        return start + bytes([checksum(start, 8, 0x07)])

    frame = header(5) + bytes(100) + header(77) + b"\x01" * 50
    frame += checksum(frame, 16, 0x8005).to_bytes(2)
    assert flac._last_header(header(3) + bytes(40) + frame).number == 5
    assert flac._last_header(frame[:-1]) is None
