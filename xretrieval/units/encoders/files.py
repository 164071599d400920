"""An encoder on disk: `encoder.json` (family, numbers, where it comes from) and, where it has weights, `encoder.safetensors`.

The same two files are an imported encoder's folder and part of every unit tokenizer.
"""

import dataclasses
import hashlib
import importlib
import json
import os
import pathlib
from typing import Any

from xretrieval import tensors
from xretrieval.errors import UserError, read_json
from xretrieval.units.encoders.encoder import Encoder, EncoderConfig

FORMAT_VERSION = 1
NAMES = ("encoder.json", "encoder.safetensors")
_CONFIGS = {"log_mel": "LogMelConfig", "hubert": "HubertConfig", "w2v_bert": "W2vBertConfig", "usm": "UsmConfig"}


def save(encoder: Encoder, directory: str | os.PathLike) -> None:
    """Writes the files; the JSON comes last, so a folder with one is whole."""
    root = pathlib.Path(directory)
    try:
        root.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{root}: cannot be written ({error.strerror}); give another folder") from error
    if encoder.params:
        tensors.write(root / "encoder.safetensors", encoder.params, f"writing {root / 'encoder.safetensors'}")
    write_sealed(
        root / "encoder.json",
        {
            "format_version": FORMAT_VERSION,
            "family": encoder.config.family,
            "family_version": encoder.config.version,
            "config": dataclasses.asdict(encoder.config),  # type: ignore[call-overload]
            "average": encoder.average,
            "frame_rate": encoder.frame_rate,
            "source": dict(encoder.source),
            "weights": file_hash(root / "encoder.safetensors") if encoder.params else None,
            "fingerprint": encoder.fingerprint,
        },
    )


def load(directory: str | os.PathLike) -> Encoder:
    """Reads the files of a folder.

    Raises:
      UserError: there are none, a byte of them was changed, or another version of xretrieval made them.
    """
    root = pathlib.Path(directory)
    description = root / "encoder.json"
    if not description.exists():
        raise UserError(f"{description}: no encoder there; make one with `xretrieval units import-encoder`")
    record = read_sealed(description)
    config_class = _config_class(description, record)
    if record["format_version"] != FORMAT_VERSION or record["family_version"] != config_class.version:
        raise UserError(f"{description}: made by another version of xretrieval; import the encoder again")
    weights = root / "encoder.safetensors"
    if record["weights"] is not None and (not weights.exists() or file_hash(weights) != record["weights"]):
        raise UserError(f"{weights}: not the weights that encoder.json describes; copy the folder again")
    config = config_class(**{name: tuple(value) if isinstance(value, list) else value for name, value in record["config"].items()})
    return Encoder(config, tensors.mapped(weights) if record["weights"] else {}, record["average"], record["source"])


def _config_class(description: pathlib.Path, record: dict[str, Any]) -> type[EncoderConfig]:
    family = record["family"]
    if family not in _CONFIGS:
        raise UserError(
            f"{description}: family {family!r} is not one of {', '.join(_CONFIGS)}; it was made by a later version of xretrieval"
        )
    return getattr(importlib.import_module(f"xretrieval.units.encoders.{family}"), _CONFIGS[family])


def file_hash(path: str | os.PathLike) -> str:
    """sha256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def write_sealed(path: pathlib.Path, record: dict[str, Any]) -> None:
    """Writes a JSON file, whole or not at all, of which no byte can be changed unnoticed."""
    temporary = path.with_suffix(".json.tmp")
    temporary.write_text(_sealed(record), encoding="utf-8")
    os.replace(temporary, path)


def read_sealed(path: pathlib.Path) -> dict[str, Any]:
    """The record of such a file.

    Raises:
      UserError: it is damaged.
    """
    record = read_json(path)
    content = {name: value for name, value in record.items() if name != "seal"} if isinstance(record, dict) else {}
    if path.read_text(encoding="utf-8") != _sealed(content):
        raise UserError(f"{path}: damaged, or changed by hand; copy it again, or make it again")
    return content


def _sealed(record: dict[str, Any]) -> str:
    seal = hashlib.sha256(json.dumps(record, sort_keys=True).encode()).hexdigest()
    return json.dumps({**record, "seal": seal}, indent=2, sort_keys=True, ensure_ascii=False) + "\n"
