"""The unit tokenizer artefact: sound to unit IDs, with a fingerprint that a model remembers.

A folder with `unit_tokenizer.json` (front end, codebook size, deduplication, what it was fitted on) and `codebook.safetensors`.
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
from collections.abc import Sequence

import numpy as np
import safetensors
import safetensors.numpy

from xretrieval.corpora.audio import load_audio
from xretrieval.corpora.manifest import Utterance, manifest_path, read_manifest
from xretrieval.errors import UserError
from xretrieval.progress import track
from xretrieval.units import frontend, kmeans

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class UnitTokenizer:
    """Turns 16 kHz mono sound into unit IDs in [0, K)."""

    frontend: frontend.LogMelConfig
    codebook_KW: np.ndarray
    collapse_repeats: bool
    fitted_on: dict

    @property
    def num_units(self) -> int:
        return self.codebook_KW.shape[0]

    @property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which IDs a recording gets."""
        identity = {
            "encoder": "log_mel",
            "frontend_version": frontend.FRONTEND_VERSION,
            "frontend": dataclasses.asdict(self.frontend),
            "collapse_repeats": self.collapse_repeats,
        }
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.codebook_KW, "<f4").tobytes())
        return digest.hexdigest()

    def encode(self, samples_T: np.ndarray) -> np.ndarray:
        """Unit IDs, int32 [F] (fewer where repeats collapse), of float32 [T] samples at 16 kHz mono."""
        units_F = kmeans.assign(frontend.features(samples_T, self.frontend), self.codebook_KW)
        return units_F[np.r_[True, units_F[1:] != units_F[:-1]]] if self.collapse_repeats else units_F

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the folder; the JSON comes last, so a folder with one is whole."""
        path = pathlib.Path(directory)
        path.mkdir(parents=True, exist_ok=True)
        (path / "codebook.safetensors").write_bytes(safetensors.numpy.save({"codebook": np.ascontiguousarray(self.codebook_KW)}))
        record = {
            "format_version": FORMAT_VERSION,
            "encoder": "log_mel",
            "frontend_version": frontend.FRONTEND_VERSION,
            "frontend": dataclasses.asdict(self.frontend),
            "frame_rate": self.frontend.frame_rate,
            "num_units": self.num_units,
            "collapse_repeats": self.collapse_repeats,
            "fitted_on": self.fitted_on,
            "fingerprint": self.fingerprint,
        }
        temporary = path / "unit_tokenizer.json.tmp"
        temporary.write_text(json.dumps(record, indent=2, sort_keys=True) + "\n")
        os.replace(temporary, path / "unit_tokenizer.json")

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "UnitTokenizer":
        """Reads the folder and checks that the codebook is the one the JSON was written with."""
        path = pathlib.Path(directory)
        description = path / "unit_tokenizer.json"
        if not description.exists():
            raise UserError(f"{description}: no unit tokenizer there; make one with `xretrieval units fit`")
        try:
            record = json.loads(description.read_text())
            codebook_KW = safetensors.numpy.load_file(path / "codebook.safetensors")["codebook"]
        except (ValueError, KeyError, OSError, safetensors.SafetensorError) as error:
            raise UserError(f"{path}: the unit tokenizer is damaged ({error}); fit it again or copy it again") from error
        if record["format_version"] != FORMAT_VERSION or record["frontend_version"] != frontend.FRONTEND_VERSION:
            raise UserError(f"{description}: made by another version of xretrieval; fit it again with `xretrieval units fit`")
        config = frontend.LogMelConfig(**record["frontend"])
        tokenizer = cls(config, codebook_KW, record["collapse_repeats"], record["fitted_on"])
        if tokenizer.fingerprint != record["fingerprint"]:
            raise UserError(f"{path}: codebook.safetensors is not the one that unit_tokenizer.json describes; copy the folder again")
        return tokenizer


def sample_utterances(utterances: Sequence[Utterance], per_language: int, seed: int) -> list[Utterance]:
    """At most `per_language` utterances of each language, so that no language owns the codebook."""
    rng = np.random.default_rng(seed)
    chosen: list[Utterance] = []
    for language in sorted({u.language for u in utterances}):
        pool = [u for u in utterances if u.language == language]
        chosen += [pool[i] for i in np.sort(rng.permutation(len(pool))[:per_language])]
    return chosen


def fit(
    manifest: str,
    out_dir: str,
    num_units: int = 256,
    utterances_per_language: int = 150,
    iterations: int = 40,
    collapse_repeats: bool = True,
    frontend_config: frontend.LogMelConfig = frontend.LogMelConfig(),
    seed: int = 0,
) -> UnitTokenizer:
    """Fits the codebook on a sample of a training manifest and writes the artefact to `out_dir`.

    An artefact that is there, fitted on the same manifest with the same settings, is returned as it is.

    Args:
      manifest: path of the training manifest; languages that are to stay unseen must not be in it.
      out_dir: folder of the unit tokenizer.
      num_units: K, the number of clusters.
      utterances_per_language: size of the sample.
      iterations: most Lloyd iterations.
      collapse_repeats: whether a run of one unit counts once.
      frontend_config: the front end.
      seed: of the sample and of the seeding.
    """
    utterances = [u for u in read_manifest(manifest) if u.audio]
    settings = [num_units, utterances_per_language, iterations, collapse_repeats, dataclasses.asdict(frontend_config), seed]
    digest = hashlib.sha256(manifest_path(manifest).read_bytes())
    digest.update(json.dumps(settings, sort_keys=True).encode())
    if (pathlib.Path(out_dir).parent / "xretrieval.json").exists():
        raise UserError(
            f"{out_dir}: belongs to a trained model; leave `units fit` out to use it, or set fit_units.out_dir to another folder"
        )
    with contextlib.suppress(UserError):  # none there, or one whose refit was interrupted
        existing = UnitTokenizer.load(out_dir)
        if existing.fitted_on.get("key") == digest.hexdigest():
            return existing
    if not utterances:
        raise UserError(f"{manifest}: no recordings in it to fit units on")
    chosen = sample_utterances(utterances, utterances_per_language, seed)
    frames = [
        frontend.features(load_audio(u.recording, u.start, u.duration), frontend_config)
        for u in track(chosen, len(chosen), "features for k-means")
    ]
    counts = {language: sum(u.language == language for u in chosen) for language in sorted({u.language for u in chosen})}
    codebook_KW, history = kmeans.fit(np.concatenate(frames), num_units, iterations, seed)
    fitted_on = {
        "key": digest.hexdigest(),
        "utterances_by_language": counts,
        "frames": int(sum(map(len, frames))),
        "mean_squared_distance": [round(value, 6) for value in history],
        "seed": seed,
    }
    tokenizer = UnitTokenizer(frontend_config, codebook_KW, collapse_repeats, fitted_on)
    tokenizer.save(out_dir)
    return tokenizer
