import struct

import av
import numpy as np
import pytest
import soundfile
from container_files import write

from xretrieval.corpora import decoder_process
from xretrieval.corpora.audio import AudioLimits, inspect_audio, load_audio, load_sound
from xretrieval.errors import UserError

LOSSLESS = [("a.m4a", "alac"), ("a.mp4", "flac"), ("a.mkv", "pcm_s16le")]
LOSSY = [("a.m4a", "aac", 44_100), ("a.mp4", "aac", 8_000), ("a.webm", "libopus", 48_000), ("a.webm", "vorbis", 44_100)]
FRAGMENTED = {"movflags": "frag_keyframe+empty_moov", "frag_duration": "500000"}


def noise(seconds: float, rate: int, channels: int = 2, seed: int = 0) -> np.ndarray:
    x_TC = 0.1 * np.random.default_rng(seed).standard_normal((round(seconds * rate), channels))
    return (np.round(x_TC * 2**15) / 2**15).astype(np.float32)


@pytest.mark.parametrize(("name", "codec"), LOSSLESS)
@pytest.mark.parametrize(("rate", "channels"), [(44_100, 2), (48_000, 1), (16_000, 1), (8_000, 2)])
def test_both_decoders_agree_on_the_same_samples(tmp_path, name, codec, rate, channels):
    x_TC = noise(5.5, rate, channels)
    write(tmp_path / name, codec, x_TC, rate)
    soundfile.write(tmp_path / "a.wav", x_TC, rate)
    ours, peer = load_sound(tmp_path / name), load_sound(tmp_path / "a.wav")
    assert ours.info == peer.info
    np.testing.assert_allclose(ours.samples_T, peer.samples_T, atol=1e-6)
    segment_T = load_audio(tmp_path / name, start=3.1, duration=1.25)
    np.testing.assert_allclose(segment_T, load_audio(tmp_path / "a.wav", start=3.1, duration=1.25), atol=1e-6)


@pytest.mark.parametrize(("name", "codec", "rate"), LOSSY)
def test_lossy_codecs_keep_a_tone_and_its_length(tmp_path, name, codec, rate):
    x_T = (0.5 * np.sin(2 * np.pi * 440 * np.arange(3 * rate) / rate)).astype(np.float32)
    write(tmp_path / name, codec, np.stack([x_T, x_T], axis=1), rate)
    sound = load_sound(tmp_path / name)
    assert (sound.info.sampling_rate, sound.info.channels) == (rate, 2)
    assert inspect_audio(tmp_path / name) == sound.info
    assert 3.0 <= sound.info.seconds < 3.0 + 1_024 / rate  # the encoder's padding at the end
    middle_T = sound.samples_T[8_000:40_000]
    spectrum = np.abs(np.fft.rfft(middle_T * np.hanning(len(middle_T))))
    assert np.argmax(spectrum) * 16_000 / len(middle_T) == pytest.approx(440, abs=1)
    assert np.abs(middle_T).max() == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize(("name", "codec", "rate"), LOSSY)
def test_a_segment_is_that_part_of_the_file(tmp_path, name, codec, rate):
    write(tmp_path / name, codec, noise(9.0, rate), rate)
    whole = load_sound(tmp_path / name)
    part = load_sound(tmp_path / name, start=6.0, duration=2.25)
    assert part.info == whole.info
    np.testing.assert_allclose(part.samples_T[160:-160], whole.samples_T[96_160 : 96_000 + 36_000 - 160], atol=2e-3)
    assert len(part.samples_T) == 36_000
    with pytest.raises(UserError, match=r"the segment from 8 s to 9\.5 s reaches beyond the end of the file, 9\.\d+ s"):
        load_audio(tmp_path / name, 8.0, 1.5)
    with pytest.raises(UserError, match=r"reaches beyond the end"):
        load_audio(tmp_path / name, 12.0)
    with pytest.raises(UserError, match=r"at least 0\.05 s"):
        load_audio(tmp_path / name, 1.0, 0.04)


def test_limits_hold_while_decoding(tmp_path):
    write(tmp_path / "a.m4a", "aac", noise(5.0, 16_000), 16_000)
    with pytest.raises(UserError, match=r"a\.m4a: more than 2 s of sound .16000 Hz, 2 channels. at a time; cut the file"):
        load_audio(tmp_path / "a.m4a", limits=AudioLimits(max_seconds=2.0))
    with pytest.raises(UserError, match=r"more than 3 s of sound"):
        load_audio(tmp_path / "a.m4a", duration=4.0, limits=AudioLimits(max_pcm_bytes=3 * 16_000 * 2 * 4))
    assert len(load_audio(tmp_path / "a.m4a", 1.0, 2.0, limits=AudioLimits(max_seconds=2.0))) == 32_000
    assert inspect_audio(tmp_path / "a.m4a", AudioLimits(max_seconds=2.0)).seconds >= 5.0
    decoder_process.kill_all()
    write(tmp_path / "long.m4a", "aac", np.zeros((8_000 * 200, 1), np.float32), 8_000)
    with pytest.raises(UserError, match="more than 2 s of sound"):
        load_audio(tmp_path / "long.m4a", limits=AudioLimits(max_seconds=2.0))
    assert decoder_process.pids() == []  # it was stopped on the way
    write(tmp_path / "b.m4a", "aac", noise(1.0, 16_000, channels=6), 16_000)
    with pytest.raises(UserError, match="6 channels, at most 2"):
        load_audio(tmp_path / "b.m4a", limits=AudioLimits(max_channels=2))


def test_which_stream_is_not_guessed(tmp_path):
    write(tmp_path / "two.mp4", "aac", noise(1.0, 16_000), 16_000, streams=2)
    with pytest.raises(UserError, match=r"two\.mp4: 2 audio streams, and nothing says which"):
        load_audio(tmp_path / "two.mp4")
    write(tmp_path / "video.mp4", "aac", noise(1.0, 16_000), 16_000, streams=0, video=True)
    with pytest.raises(UserError, match=r"video\.mp4: no sound in it, only video"):
        load_audio(tmp_path / "video.mp4")
    for name, codec in (("film.mp4", "aac"), ("film.webm", "libopus")):
        write(tmp_path / name, codec, noise(1.5, 48_000), 48_000, video=True)
        assert load_sound(tmp_path / name).info.seconds == pytest.approx(1.5, abs=0.03)
    write(tmp_path / "other.mp4", "ac3", noise(1.0, 48_000), 48_000)
    with pytest.raises(UserError, match=r"other\.mp4: the codec ac3 is not read"):
        load_audio(tmp_path / "other.mp4")


CUT = [
    ("a.mp4", "aac", {}),
    ("a.mp4", "aac", {"movflags": "faststart"}),
    ("a.mp4", "aac", FRAGMENTED),
    ("a.webm", "libopus", {}),
    ("a.webm", "libopus", {"live": "1"}),
    ("a.mkv", "flac", {}),
]


@pytest.mark.parametrize(("name", "codec", "options"), CUT)
def test_a_file_that_was_cut_off_is_an_error_not_a_crop(tmp_path, name, codec, options):
    write(tmp_path / name, codec, noise(3.0, 48_000), 48_000, options=options)
    data = (tmp_path / name).read_bytes()
    assert load_sound(tmp_path / name).info.seconds >= 3.0
    for keep in (0.1, 0.3, 0.6, 0.95, 0.999):
        (tmp_path / name).write_bytes(data[: int(len(data) * keep)])
        with pytest.raises(UserError, match="damaged"):
            load_audio(tmp_path / name)
    (tmp_path / name).write_bytes(data * 2)
    with pytest.raises(UserError, match="holds more than its header says"):
        load_audio(tmp_path / name)


def patched(path, mark: bytes, after: int, content: bytes) -> None:
    data = bytearray(path.read_bytes())
    at = data.index(mark) + len(mark) + after
    data[at : at + len(content)] = content
    path.write_bytes(bytes(data))


@pytest.mark.parametrize(("declared", "reason"), [(30.0, "damaged: cut off after 3"), (1.0, "header says 1.000 s, and it holds 3")])
def test_a_length_that_lies_is_an_error(tmp_path, declared, reason):
    write(tmp_path / "a.webm", "libopus", noise(3.0, 48_000), 48_000)
    patched(tmp_path / "a.webm", b"\x44\x89\x88", 0, struct.pack(">d", declared * 1_000))
    with pytest.raises(UserError, match=reason):
        load_audio(tmp_path / "a.webm")


def test_sound_that_is_missing_in_the_middle_is_an_error(tmp_path):
    write(tmp_path / "a.mkv", "flac", noise(3.0, 16_000), 16_000, gap_at=16_384, gap=0.4)
    with pytest.raises(UserError, match=r"a\.mkv: damaged near 1\.\d+ s: the next sound in it is of 1\.\d+ s"):
        load_audio(tmp_path / "a.mkv")


def test_sound_may_begin_late(tmp_path):
    write(tmp_path / "a.mkv", "pcm_s16le", noise(2.0, 16_000), 16_000, first=0.7)
    assert load_sound(tmp_path / "a.mkv").info.frames == 32_000


@pytest.mark.parametrize(("name", "codec"), [("a.mp4", "flac"), ("a.mkv", "flac"), ("a.mp4", "aac")])
def test_a_file_with_spoilt_bytes_is_an_error(tmp_path, name, codec):
    write(tmp_path / name, codec, noise(5.0, 16_000), 16_000)
    data = bytearray((tmp_path / name).read_bytes())
    for i in range(len(data) // 2, len(data) // 2 + 300):
        data[i] ^= 0x5A
    (tmp_path / name).write_bytes(bytes(data))
    with pytest.raises(UserError, match=r"a\.m.*damaged"):
        load_audio(tmp_path / name)


def test_one_wrong_bit_in_lossless_sound_is_an_error(tmp_path):
    write(tmp_path / "a.mkv", "flac", noise(2.0, 16_000), 16_000)
    data = (tmp_path / "a.mkv").read_bytes()
    for at in range(len(data) // 4, len(data) * 3 // 4, len(data) // 20):
        (tmp_path / "a.mkv").write_bytes(data[:at] + bytes([data[at] ^ 4]) + data[at + 1 :])
        with pytest.raises(UserError, match="damaged"):
            load_audio(tmp_path / "a.mkv")


def test_an_index_that_reaches_beyond_the_end_is_an_error(tmp_path):
    path = tmp_path / "a.mp4"
    write(path, "aac", noise(3.0, 16_000), 16_000, options={"movflags": "faststart"})
    packets = struct.unpack(">I", path.read_bytes()[path.read_bytes().index(b"stsz") + 12 :][:4])[0]
    patched(path, b"stsz", 12 + 4 * (packets - 1), struct.pack(">I", 5_000))  # bytes of the last packet
    with pytest.raises(UserError, match=r"a\.mp4: damaged: a part of its sound is cut off"):
        load_audio(path)


def test_a_container_that_names_other_files_is_not_followed(tmp_path):
    """A playlist, which FFmpeg would open for what it lists, is no format that is read, whatever it is called."""
    soundfile.write(tmp_path / "secret.wav", noise(1.0, 16_000), 16_000)
    (tmp_path / "list.m4a").write_text(f"#EXTM3U\n#EXTINF:1,\n{tmp_path}/secret.wav\n#EXT-X-ENDLIST\n")
    (tmp_path / "concat.mp4").write_text(f"ffconcat version 1.0\nfile {tmp_path}/secret.wav\n")
    for name in ("list.m4a", "concat.mp4"):
        with pytest.raises(UserError, match="not a sound file"):
            load_audio(tmp_path / name)


def test_without_pyav_the_extra_is_named(tmp_path, monkeypatch):
    write(tmp_path / "a.m4a", "aac", noise(1.0, 16_000), 16_000)
    soundfile.write(tmp_path / "a.wav", noise(1.0, 16_000), 16_000)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "av.py").write_text("raise ModuleNotFoundError('No module named av')")
    monkeypatch.syspath_prepend(tmp_path / "broken")
    decoder_process.kill_all()
    with pytest.raises(UserError, match=r'a\.m4a: MP4 and WebM are read through PyAV: pip install -e "\.\[containers\]"'):
        load_audio(tmp_path / "a.m4a")
    assert len(load_audio(tmp_path / "a.wav")) == 16_000
    decoder_process.kill_all()


@pytest.mark.parametrize(("rate", "layout"), [(8_000, "mono"), (16_000, "stereo")])
def test_a_rate_or_channels_that_change_on_the_way_are_an_error(tmp_path, rate, layout):
    with av.open(str(tmp_path / "a.mkv"), "w") as container:
        stream = container.add_stream("flac", rate=16_000, layout="mono")
        end = 0
        for kind in ((16_000, "mono"), (rate, layout)):
            encoder = av.CodecContext.create("flac", "w")
            encoder.sample_rate, encoder.layout, encoder.format = *kind, "s16"
            frame = av.AudioFrame.from_ndarray(np.zeros((1, 16_000 * (1 + (kind[1] == "stereo"))), np.int16), format="s16", layout=kind[1])
            frame.sample_rate, frame.pts = kind[0], 0
            for packet in [*encoder.encode(frame), *encoder.encode(None)]:
                packet.stream, packet.pts, packet.dts = stream, end, end
                end += packet.duration
                container.mux(packet)
    with pytest.raises(UserError, match=r"a\.mkv: (sampling rate or channels change|.*damaged)"):
        load_audio(tmp_path / "a.mkv")
