"""`units fit`: the codebook of a unit tokenizer, from a sample of recordings that no language or source owns."""

import contextlib
import hashlib
import json
import os
import pathlib
from array import array
from collections.abc import Iterator, Sequence

import numpy as np

from xretrieval.corpora.audio import load_audio
from xretrieval.corpora.manifest import Utterance, manifest_path, read_at, scan
from xretrieval.errors import UserError
from xretrieval.progress import track
from xretrieval.units import kmeans
from xretrieval.units.encoders import files
from xretrieval.units.encoders.encoder import Encoder, EncoderConfig
from xretrieval.units.encoders.log_mel import LogMelConfig
from xretrieval.units.kmeans_minibatch import fit_minibatch
from xretrieval.units.tokenizer import UnitTokenizer

_WINDOW = 64  # utterances that are encoded at once


def sample_recordings(manifest: str, per_language: int, seed: int) -> list[Utterance]:
    """At most `per_language` recordings of each language, so that no language owns the codebook; the manifest is never held.

    Raises:
      UserError: a line of the manifest is not an utterance, or none has sound.
    """
    places: dict[str, array] = {}
    for line, found in scan(manifest):
        if isinstance(found, str):
            raise UserError(f"{manifest_path(manifest)}:{line.number}: {found}")
        if found.audio:
            places.setdefault(found.language, array("q")).append(line.offset)
    if not places:
        raise UserError(f"{manifest}: no recordings in it to fit units on")
    rng = np.random.default_rng(seed)
    chosen: list[int] = []
    for language in sorted(places):
        pool = places[language]
        chosen += [pool[i] for i in np.sort(rng.permutation(len(pool))[:per_language])]
    return read_at(manifest, chosen)


def open_encoder(encoder: EncoderConfig | str, average: int) -> Encoder:
    """The encoder that `units fit` is given: a config without weights, or the folder of an imported one."""
    if isinstance(encoder, EncoderConfig):
        return Encoder(encoder, {}, average)
    loaded = files.load(encoder)
    return loaded if average == 1 else Encoder(loaded.config, loaded.params, average, loaded.source)


def features_of(encoder: Encoder, utterances: Sequence[Utterance]) -> Iterator[np.ndarray]:
    """Features of each utterance, float32 [F, D]."""
    for first in track(range(0, len(utterances), _WINDOW), -(-len(utterances) // _WINDOW), "features for k-means"):
        window = utterances[first : first + _WINDOW]
        yield from encoder.features([load_audio(u.recording, u.start, u.duration) for u in window])


def fit(
    manifest: str | Sequence[str],
    out_dir: str,
    num_units: int = 256,
    utterances_per_language: int = 150,
    iterations: int = 40,
    collapse_repeats: bool = True,
    encoder: EncoderConfig | str = LogMelConfig(),
    average: int = 1,
    max_frames: int = 2_000_000,
    batch_frames: int = 0,
    seed: int = 0,
) -> UnitTokenizer:
    """Fits the codebook on a sample of training manifests and writes the artefact to `out_dir`.

    An artefact that is there, fitted on the same manifests with the same settings, is returned as it is.

    Args:
      manifest: a training manifest, or several, one a source; languages that are to stay unseen must not be in them.
      out_dir: folder of the unit tokenizer.
      num_units: K, the number of clusters.
      utterances_per_language: size of the sample, of each language of each source.
      iterations: most Lloyd iterations, or epochs of mini-batches.
      collapse_repeats: whether a run of one unit counts once.
      encoder: `@LogMelConfig()`, or the folder of an encoder that `units import-encoder` wrote.
      average: frames that are averaged to one before clustering; 2 makes 25 Hz, the paper's rate, of 50 Hz.
      max_frames: of the sample, which is held in memory; more are an error, not a crop.
      batch_frames: above 0, frames go to a file beside the artefact, which may be larger than memory, and k-means takes mini-batches of so many.
      seed: of the sample and of the seeding.
    """
    manifests = [manifest] if isinstance(manifest, str) else list(manifest)
    chosen_encoder = open_encoder(encoder, average)
    settings = [num_units, utterances_per_language, iterations, collapse_repeats, chosen_encoder.fingerprint, batch_frames, seed]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True).encode())
    for path in manifests:
        digest.update(files.file_hash(manifest_path(path)).encode())
    if (pathlib.Path(out_dir).parent / "xretrieval.json").exists():
        raise UserError(
            f"{out_dir}: belongs to a trained model; leave `units fit` out to use it, or set fit_units.out_dir to another folder"
        )
    with contextlib.suppress(UserError):  # none there, or one whose refit was interrupted
        existing = UnitTokenizer.load(out_dir)
        if existing.fitted_on.get("key") == digest.hexdigest():
            return existing
    chosen: list[Utterance] = []
    for number, path in enumerate(manifests):
        chosen += sample_recordings(path, utterances_per_language, seed + number)
    features = features_of(chosen_encoder, chosen)
    if batch_frames:
        with _in_a_file(features, out_dir, chosen_encoder.config.width) as x_NW:
            frames = len(x_NW)
            codebook_KW, history = fit_minibatch(x_NW, num_units, batch_frames, iterations, seed)
    else:
        held_NW = np.concatenate(list(_within(features, max_frames, os.fspath(manifests[0]))))
        frames = len(held_NW)
        codebook_KW, history = kmeans.fit(held_NW, num_units, iterations, seed)
    counts = {language: sum(u.language == language for u in chosen) for language in sorted({u.language for u in chosen})}
    fitted_on = {
        "key": digest.hexdigest(),
        "utterances_by_language": counts,
        "frames": frames,
        "mean_squared_distance": [round(value, 6) for value in history],
        "seed": seed,
    }
    tokenizer = UnitTokenizer(chosen_encoder, codebook_KW, collapse_repeats, fitted_on)
    tokenizer.save(out_dir)
    return tokenizer


def _within(features: Iterator[np.ndarray], max_frames: int, manifest: str) -> Iterator[np.ndarray]:
    found = 0
    for x_FW in features:
        found += len(x_FW)
        if found > max_frames:
            raise UserError(
                f"{manifest}: its sample has more than fit_units.max_frames = {max_frames} frames; lower fit_units.utterances_per_language, or "
                f"set fit_units.batch_frames, or raise fit_units.max_frames if memory holds them"
            )
        yield x_FW


@contextlib.contextmanager
def _in_a_file(features: Iterator[np.ndarray], out_dir: str | os.PathLike, width: int) -> Iterator[np.ndarray]:
    """The rows of all features as one mapped array, float32 [N, width]; the file is gone afterwards."""
    path = pathlib.Path(out_dir) / "features.tmp"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(path, "wb") as file:
            for x_FW in features:
                file.write(np.ascontiguousarray(x_FW, np.float32))
        yield np.memmap(path, np.float32, "r").reshape(-1, width)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); free space or give another folder") from error
    finally:
        path.unlink(missing_ok=True)
