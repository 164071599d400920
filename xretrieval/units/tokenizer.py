"""The unit tokenizer artefact: sound to unit IDs, with a fingerprint that a model remembers.

A folder with `unit_tokenizer.json` (codebook size, deduplication, what it was fitted on), `codebook.safetensors` and the encoder's own files
(`encoders/files.py`): nothing else is needed to make the same IDs elsewhere.
"""

import dataclasses
import functools
import hashlib
import json
import os
import pathlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.units import kmeans
from xretrieval.units.encoders import files
from xretrieval.units.encoders.encoder import Encoder

FORMAT_VERSION = 2
NAMES = ("unit_tokenizer.json", "codebook.safetensors", *files.NAMES)


@dataclasses.dataclass(frozen=True)
class UnitTokenizer:
    """Turns 16 kHz mono sound into unit IDs in [0, K).

    Attributes:
      encoder: sound to features.
      codebook_KW: float32 centroids.
      collapse_repeats: whether a run of one unit counts once.
      fitted_on: what the codebook was made from.
    """

    encoder: Encoder
    codebook_KW: np.ndarray
    collapse_repeats: bool
    fitted_on: Mapping[str, Any]

    def __post_init__(self):
        width = self.encoder.config.width
        if self.codebook_KW.ndim != 2 or self.codebook_KW.shape[1] != width:
            raise UserError(f"codebook of shape {list(self.codebook_KW.shape)}: the encoder's features are {width} wide")

    @property
    def num_units(self) -> int:
        return self.codebook_KW.shape[0]

    @functools.cached_property
    def fingerprint(self) -> str:
        """sha256 of everything that decides which IDs a recording gets."""
        identity = {"encoder": self.encoder.fingerprint, "collapse_repeats": self.collapse_repeats, "shape": self.codebook_KW.shape}
        digest = hashlib.sha256(json.dumps(identity, sort_keys=True).encode())
        digest.update(np.ascontiguousarray(self.codebook_KW, "<f4").tobytes())
        return digest.hexdigest()

    def frame_units(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """One unit ID a frame, int32 [F] each, of float32 [T] samples each at 16 kHz mono."""
        features = self.encoder.features(sounds)
        units_N = kmeans.assign(np.concatenate(features), self.codebook_KW) if features else np.empty(0, np.int32)
        return np.split(units_N, np.cumsum([len(x_FW) for x_FW in features])[:-1])

    def encode_all(self, sounds: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Unit IDs, int32 [F] each (fewer where repeats collapse), of float32 [T] samples each at 16 kHz mono.

        An utterance's IDs do not depend on the others.
        """
        units = self.frame_units(sounds)
        if not self.collapse_repeats:
            return units
        return [units_F[np.r_[True, units_F[1:] != units_F[:-1]]] for units_F in units]

    def encode(self, samples_T: np.ndarray) -> np.ndarray:
        """Unit IDs of one utterance, as `encode_all`."""
        return self.encode_all([samples_T])[0]

    def save(self, directory: str | os.PathLike) -> None:
        """Writes the folder; `unit_tokenizer.json` comes last, so a folder with one is whole."""
        path = pathlib.Path(directory)
        (path / "unit_tokenizer.json").unlink(missing_ok=True)
        files.save(self.encoder, path)
        tensors.write(path / "codebook.safetensors", {"codebook": np.ascontiguousarray(self.codebook_KW, np.float32)})
        record = {
            "format_version": FORMAT_VERSION,
            "encoder": self.encoder.fingerprint,
            "frame_rate": self.encoder.frame_rate,
            "codebook": files.file_hash(path / "codebook.safetensors"),
            "num_units": self.num_units,
            "collapse_repeats": self.collapse_repeats,
            "fitted_on": dict(self.fitted_on),
            "fingerprint": self.fingerprint,
        }
        files.write_sealed(path / "unit_tokenizer.json", record)

    @classmethod
    def load(cls, directory: str | os.PathLike) -> "UnitTokenizer":
        """Reads the folder.

        Raises:
          UserError: there is none, a byte of it was changed, or another version of xretrieval made it.
        """
        path = pathlib.Path(directory)
        description = path / "unit_tokenizer.json"
        if not description.exists():
            raise UserError(f"{description}: no unit tokenizer there; make one with `xretrieval units fit`")
        record = files.read_sealed(description)
        if record.get("format_version") != FORMAT_VERSION:
            raise UserError(f"{description}: made by another version of xretrieval; fit it again with `xretrieval units fit`")
        codebook = path / "codebook.safetensors"
        if not codebook.exists() or files.file_hash(codebook) != record["codebook"]:
            raise UserError(f"{codebook}: not the one that unit_tokenizer.json describes; copy the folder again")
        encoder = files.load(path)
        tokenizer = cls(encoder, np.array(tensors.mapped(codebook)["codebook"]), record["collapse_repeats"], record["fitted_on"])
        if encoder.fingerprint != record["encoder"] or tokenizer.fingerprint != record["fingerprint"]:
            raise UserError(f"{path}: encoder.json is not of the encoder that unit_tokenizer.json describes; copy the folder again")
        return tokenizer
