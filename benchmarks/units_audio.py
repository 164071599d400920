"""Sound files to log-mel features: ours, through a process that decodes, beside soundfile, soxr and librosa in one process."""

import concurrent.futures
import os
import pathlib
import tempfile

import librosa
import numpy as np
import soundfile
import soxr
import threadpoolctl

from benchmarks import rows
from xretrieval.corpora.audio import Sound, load_all, load_audio
from xretrieval.units.encoders.encoder import SAMPLING_RATE, Encoder
from xretrieval.units.encoders.log_mel import LogMelConfig

FILES, SECONDS, RATE = 16, 10, 44_100
FORMATS = ("wav", "flac", "mp3")


def _write(folder: pathlib.Path, suffix: str) -> list[pathlib.Path]:
    """Recordings, mono: a voice's harmonics that come and go, over noise."""
    rng = np.random.default_rng(0)
    time_T = np.arange(SECONDS * RATE) / RATE
    paths = [folder / f"{i}.{suffix}" for i in range(FILES)]
    for path in paths:
        pitch = rng.uniform(80, 250)
        voice_T = sum(np.sin(2 * np.pi * pitch * k * time_T) / k for k in range(1, 30))
        x_T = 0.1 * voice_T * np.sin(2 * np.pi * 2 * time_T) ** 2 + 0.003 * rng.standard_normal(len(time_T))
        soundfile.write(path, x_T, RATE)
    return paths


def _peer(path: pathlib.Path) -> np.ndarray:
    x_T, rate = soundfile.read(path, dtype="float32", always_2d=True)
    samples_T = soxr.resample(x_T.mean(axis=1), rate, SAMPLING_RATE, "HQ")
    config = LogMelConfig()
    mel_WF = librosa.feature.melspectrogram(
        y=samples_T,
        sr=SAMPLING_RATE,
        n_fft=config.fft,
        hop_length=config.hop,
        win_length=config.window,
        n_mels=config.mel_bins,
        fmin=20.0,
        htk=True,
        center=False,
    )
    return np.log(np.maximum(mel_WF, config.floor))


def audio_rows() -> list[dict]:
    """Files of 10 s one after another, and as many at once as there are cores; ours also makes cepstra and deltas of the log-mel."""
    encoder = Encoder(LogMelConfig(), {})
    workers = len(os.sched_getaffinity(0))
    found = []
    peer_name = f"soundfile {soundfile.__version__}, soxr {soxr.__version__}, librosa {librosa.__version__}"
    with (
        # The peer's best: with more, the threads of NumPy's BLAS spend longer waiting for one another than librosa needs in all.
        threadpoolctl.threadpool_limits(1),
        tempfile.TemporaryDirectory() as folder,
        concurrent.futures.ThreadPoolExecutor(workers) as pool,
    ):
        for suffix in FORMATS:
            paths = _write(pathlib.Path(folder), suffix)

            def one_by_one(paths=paths):
                for path in paths:
                    encoder.features([load_audio(path)])

            def at_once(paths=paths):
                for sound in load_all([(path, None, None) for path in paths], workers):
                    assert isinstance(sound, Sound)
                    encoder.features([sound.samples_T])

            def peer(paths=paths):
                for path in paths:
                    _peer(path)

            def peer_at_once(paths=paths):
                list(pool.map(_peer, paths))

            name = f"decode, resample, log-mel: {FILES} {suffix} files of {SECONDS} s, {RATE} Hz"
            found.append(rows.row(f"{name}, one by one, seconds", *rows.seconds(one_by_one, peer, 7), peer_name, 1.0))
            found.append(rows.row(f"{name}, {workers} at once, seconds", *rows.seconds(at_once, peer_at_once, 7), peer_name, 1.0))
    return found


if __name__ == "__main__":
    rows.main(audio_rows)
