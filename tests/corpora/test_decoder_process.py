"""What happens to the process that decodes, and what it does not do to this one."""

import json
import os
import pathlib
import signal
import subprocess
import sys
import threading
import time

import numpy as np
import pytest
import soundfile
from container_files import write

from xretrieval.corpora import decoder_process
from xretrieval.corpora.audio import AudioLimits, Sound, load_all, load_audio, load_sound
from xretrieval.corpora.decoding import decoding
from xretrieval.errors import UserError


@pytest.fixture(autouse=True)
def _anew():
    decoder_process.kill_all()
    yield
    decoder_process.kill_all()


@pytest.fixture
def recording(tmp_path):
    path = tmp_path / "a.flac"
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(3 * 44_100), 44_100)
    return path


def only_pid() -> int:
    (pid,) = decoder_process.pids()
    return pid


def ended(pid: int, seconds: float = 10.0) -> bool:
    """Whether a process that may not be our child ends within so many seconds."""
    for _ in range(round(seconds * 20)):
        try:
            if pathlib.Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] == "Z":
                return True
        except OSError:
            return True
        time.sleep(0.05)
    return False


def test_one_process_serves_file_after_file_and_errors_do_not_end_it(recording, tmp_path):
    (tmp_path / "text.wav").write_text("RIFF, but no sound")
    load_audio(recording)
    pid = only_pid()
    for _ in range(3):
        with pytest.raises(UserError, match="not a sound file"):
            load_audio(tmp_path / "text.wav")
        with pytest.raises(UserError, match="beyond the end"):
            load_audio(recording, start=2.0, duration=9.0)
        assert len(load_audio(recording)) == 48_000
    assert only_pid() == pid


def test_what_was_decoded_is_known(recording):
    sound = load_sound(recording, start=1.0, duration=0.5)
    assert (sound.info.sampling_rate, sound.info.channels, sound.info.frames) == (44_100, 1, 3 * 44_100)
    assert len(sound.samples_T) == 8_000


def test_ctrl_c_is_for_this_process(recording):
    load_audio(recording)
    pid = only_pid()
    assert os.getsid(pid) != os.getsid(0)
    os.kill(pid, signal.SIGINT)
    assert len(load_audio(recording)) == 48_000
    assert only_pid() == pid


def test_a_process_that_hangs_is_killed_and_the_next_file_has_another(recording):
    load_audio(recording)
    pid = only_pid()
    os.kill(pid, signal.SIGSTOP)
    begun = time.monotonic()
    with pytest.raises(UserError, match=r"a\.flac: decoding took too long and was stopped; the file is damaged or too much"):
        load_audio(recording, limits=AudioLimits(timeout_seconds=0.5))
    assert time.monotonic() - begun < 5
    assert ended(pid)
    assert len(load_audio(recording)) == 48_000


@pytest.mark.parametrize("number", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_process_that_dies_of_a_file_is_an_error_of_that_file(recording, number):
    load_audio(recording)
    pid = only_pid()
    os.kill(pid, signal.SIGSTOP)  # so that it is in the middle of the file when the signal comes

    def crash():
        time.sleep(0.3)
        os.kill(pid, number)
        os.kill(pid, signal.SIGCONT)

    thread = threading.Thread(target=crash)
    thread.start()
    with pytest.raises(UserError, match=rf"a\.flac: the decoder died .signal {int(number)}."):
        load_audio(recording)
    thread.join()
    assert len(load_audio(recording)) == 48_000


def test_a_process_that_died_meanwhile_is_replaced_in_silence(recording):
    load_audio(recording)
    pid = only_pid()
    os.kill(pid, signal.SIGKILL)
    assert ended(pid)
    assert len(load_audio(recording)) == 48_000
    assert only_pid() != pid


def test_memory_is_limited(tmp_path):
    soundfile.write(tmp_path / "small.wav", np.zeros(1_600, np.int16), 16_000)
    soundfile.write(tmp_path / "a.wav", np.zeros((200_000, 8), np.int16), 96_000)
    tight = AudioLimits(max_memory_bytes=2**20)  # a chunk in eight channels is twice that
    assert len(load_audio(tmp_path / "small.wav", limits=tight)) == 1_600
    pid = only_pid()
    with pytest.raises(UserError, match=r"a\.wav: decoding takes more than 1 MiB of memory .AudioLimits\.max_memory_bytes."):
        load_audio(tmp_path / "a.wav", limits=tight)
    assert ended(pid)
    assert len(load_audio(tmp_path / "a.wav")) == 33_333


def test_a_file_that_is_left_in_the_middle_does_not_answer_for_the_next(recording, tmp_path):
    soundfile.write(tmp_path / "b.wav", np.zeros(8_000, np.int16), 8_000)

    def interrupted():
        with decoding(recording, AudioLimits()) as opened:
            opened._ask(first=0, count=44_100, rate=16_000)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    assert decoder_process.pids() == []
    np.testing.assert_array_equal(load_audio(tmp_path / "b.wav"), np.zeros(16_000))


def test_the_working_directory_does_not_matter(recording, tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    for name in ("numpy", "soundfile", "json", "xretrieval"):
        (tmp_path / "elsewhere" / f"{name}.py").write_text("raise SystemExit(3)")
    monkeypatch.chdir(tmp_path / "elsewhere")
    assert len(load_audio(recording)) == 48_000
    assert len(load_audio(os.path.relpath(recording))) == 48_000


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe.wav")
    with pytest.raises(UserError, match=r"pipe\.wav: not a regular file"):
        load_audio(tmp_path / "pipe.wav")


def test_names_of_any_bytes(tmp_path):
    soundfile.write(tmp_path / "a.wav", np.zeros(16_000, np.int16), 16_000)
    write(tmp_path / "a.m4a", "alac", np.zeros((16_000, 1), np.float32), 16_000)
    for name in ("a.wav", "a.m4a"):
        odd = os.fsdecode(os.fsencode(tmp_path) + b"/\xff \xe4:%s." + name[2:].encode())
        os.rename(tmp_path / name, odd)
        assert len(load_audio(odd)) == 16_000


def python(code: str, *arguments: str) -> subprocess.Popen:
    return subprocess.Popen([sys.executable, "-c", code, *arguments], stdout=subprocess.PIPE, text=True)


LOADS = """
import os, sys, time
from xretrieval.corpora import decoder_process
from xretrieval.corpora.audio import AudioLimits
from xretrieval.corpora.decoding import decoding
with decoding(sys.argv[1], AudioLimits()) as opened:
    if sys.argv[2] == "decoding":  # more than the pipe holds: it waits for this process to read
        opened._ask(first=0, count=opened.frames, rate=opened.sampling_rate)
    print(*decoder_process.pids(), flush=True)
    if sys.argv[3] == "forked" and os.fork() == 0:
        os.close(1)
        time.sleep(30)
    time.sleep(30)
"""


@pytest.mark.parametrize("what", ["waiting", "decoding"])
@pytest.mark.parametrize("how", ["alone", "forked"])
def test_the_process_ends_when_this_one_is_killed(tmp_path, what, how):
    soundfile.write(tmp_path / "long.wav", np.zeros(2_000_000, np.int16), 16_000)
    parent = python(LOADS, str(tmp_path / "long.wav"), what, how)
    pid = int(parent.stdout.readline())
    assert not ended(pid, seconds=0.2)
    parent.kill()
    parent.wait()
    assert ended(pid)


def test_it_starts_without_jax_and_without_pyav():
    code = "import sys, xretrieval.corpora.decoder; print([name for name in ('jax', 'av', 'flax', 'tensorflow') if name in sys.modules])"
    assert python(code).communicate()[0] == "[]\n"


def test_many_files_in_order_and_not_too_many_ahead(tmp_path):
    taken = []

    def requests():
        for i in range(40):
            path = tmp_path / f"{i}.wav"
            if i % 10 != 7:
                soundfile.write(path, np.zeros(1_000 + i, np.int16), 16_000)
            taken.append(i)
            yield path, None, None

    for i, result in enumerate(load_all(requests(), decoders=3)):
        assert len(taken) <= i + 6
        if i % 10 == 7:
            assert isinstance(result, UserError)
            assert f"{i}.wav" in str(result)
        else:
            assert isinstance(result, Sound)
            assert len(result.samples_T) == 1_000 + i
    assert i == 39
    assert 1 <= len(decoder_process.pids()) <= 3


def test_who_stops_early_waits_for_nothing_else(recording):
    results = load_all(((recording, None, None) for _ in range(10**9)), decoders=2)
    assert isinstance(next(results), Sound)
    results.close()


MEASURES = """
import json, pathlib, re, resource, sys
from xretrieval.corpora import decoder_process
from xretrieval.corpora.audio import inspect_audio, load_audio
mine = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
before = mine()
samples_T = load_audio(sys.argv[1], float(sys.argv[2]), 10.0)
if sys.argv[3] == "whole":
    inspect_audio(sys.argv[1])
(pid,) = decoder_process.pids()
peak = int(re.search(r"VmHWM:\\s+(\\d+)", pathlib.Path(f"/proc/{pid}/status").read_text())[1]) / 1024
print(json.dumps([len(samples_T), mine() - before, peak]))
"""


def measured(path, start: float, what: str) -> tuple[int, float, float]:
    """(samples of 10 s, MiB by which this side grew, most MiB of the process)."""
    return tuple(json.loads(python(MEASURES, str(path), str(start), what).communicate()[0]))


def big_wav(path, size: int) -> None:
    """Silence that takes no room on the disk."""
    soundfile.write(path, np.zeros(16_000, np.int16), 16_000)
    with open(path, "r+b") as file:
        file.seek(4)
        file.write((size - 8).to_bytes(4, "little"))
        file.seek(40)
        file.write((size - 44).to_bytes(4, "little"))
        file.truncate(size)


def big_mp3(path, size: int) -> None:
    """Frames at a constant bit rate, without the first one, which would say how long it is."""
    soundfile.write(path, 0.1 * np.random.default_rng(0).standard_normal(441_000), 44_100, bitrate_mode="CONSTANT", compression_level=0.0)
    data = path.read_bytes()
    frames = data[data.index(data[:2], 4) :]
    with open(path, "wb") as file:
        for _ in range(size // len(frames)):
            file.write(frames)


@pytest.mark.parametrize(("make", "size", "start"), [(big_wav, 800 * 2**20, 26_000.0), (big_mp3, 24 * 2**20, 500.0)])
def test_a_segment_of_a_large_file_takes_no_more_memory_than_one_of_a_small_one(tmp_path, make, size, start):
    path = tmp_path / f"large.{make.__name__[4:]}"
    make(path, size)
    count, grown, peak = measured(path, start, "segment")
    assert count == 160_000
    assert grown < 8
    assert peak < 100


@pytest.mark.slow
@pytest.mark.parametrize(("make", "start"), [(big_wav, 26_000.0), (big_mp3, 15_000.0)])
def test_800_mb_are_never_whole_in_memory(tmp_path, make, start):
    path = tmp_path / f"large.{make.__name__[4:]}"
    make(path, 800 * 2**20)
    count, grown, peak = measured(path, start, "whole")
    assert count == 160_000
    assert grown < 8
    assert peak < 100
