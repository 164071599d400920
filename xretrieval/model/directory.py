"""The model directory: everything that serving needs, readable without TensorFlow, SeqIO or gin.

xretrieval.json     format version, tower config, vocabulary split, prefix template, pooling, width, logit scale, fingerprints
model.safetensors   the tower's parameters by dotted name
tokenizer.model     SentencePiece
unit_tokenizer/     the unit tokenizer the model was trained with, and the only one it works with
README.md NOTICE    model card; licences of the parts
"""

import dataclasses
import os
import pathlib
import shutil

import jax
import numpy as np
import safetensors
import safetensors.numpy

from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.model.tower import Params, TowerConfig
from xretrieval.units.tokenizer import UnitTokenizer

FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True)
class Model:
    """A model directory, read."""

    config: TowerConfig
    params: dict[str, np.ndarray]
    vocabulary: Vocabulary
    unit_tokenizer: UnitTokenizer
    logit_scale: float
    trained_languages: tuple[str, ...]
    fingerprint: str


def write(
    out_dir: str,
    config: TowerConfig,
    params: dict[str, np.ndarray],
    vocabulary: Vocabulary,
    unit_tokenizer_dir: str,
    logit_scale: float,
    identity: dict,
    card: str,
    notice: str,
) -> None:
    """Writes a model directory; `xretrieval.json` comes last, so a folder with one is whole."""
    out = pathlib.Path(out_dir)
    (out / "unit_tokenizer").mkdir(parents=True, exist_ok=True)
    (out / "xretrieval.json").unlink(missing_ok=True)
    weights = out / "model.safetensors"
    try:
        safetensors.numpy.save_file({name: np.ascontiguousarray(value) for name, value in params.items()}, weights)
    except safetensors.SafetensorError as error:
        raise UserError(f"{weights}: cannot be written ({error}); free space or give another folder") from error
    shutil.copyfile(vocabulary.tokenizer_file, out / "tokenizer.model")
    for name in ("unit_tokenizer.json", "codebook.safetensors"):
        shutil.copyfile(pathlib.Path(unit_tokenizer_dir) / name, out / "unit_tokenizer" / name)
    (out / "README.md").write_text(card)
    (out / "NOTICE").write_text(notice)
    record = {
        "format_version": FORMAT_VERSION,
        "tower": dataclasses.asdict(config),
        "text_tokens": vocabulary.text_size,
        "unit_tokens": vocabulary.num_units,
        "prefix_template": vocabulary.template,
        "pooling": "mean",
        "embedding_width": config.width,
        "logit_scale": logit_scale,
        "unit_tokenizer_fingerprint": identity["unit_tokenizer"],
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "trained_languages": list(identity["trained_languages"]),
        "fingerprint": identity["fingerprint"],
    }
    write_json(out / "xretrieval.json", record)


def _description(model_dir: str | os.PathLike) -> dict:
    path = pathlib.Path(model_dir) / "xretrieval.json"
    if not path.exists():
        raise UserError(f"{path}: no model there; make one with `xretrieval export`")
    record = read_json(path)
    if record["format_version"] != FORMAT_VERSION:
        raise UserError(
            f"{path}: format version {record['format_version']}, this xretrieval reads {FORMAT_VERSION}; export the model again"
        )
    return record


def _tensors(model_dir: str | os.PathLike) -> dict[str, np.ndarray]:
    path = pathlib.Path(model_dir) / "model.safetensors"
    try:
        return safetensors.numpy.load_file(path)
    except (OSError, safetensors.SafetensorError) as error:
        raise UserError(f"{path}: cannot be read ({error}); copy or export the model again") from error


def read(model_dir: str | os.PathLike) -> Model:
    """Reads a model directory and checks that its parts belong together."""
    record, path = _description(model_dir), pathlib.Path(model_dir)
    vocabulary = Vocabulary(path / "tokenizer.model", record["unit_tokens"], record["prefix_template"])
    unit_tokenizer = UnitTokenizer.load(path / "unit_tokenizer")
    if unit_tokenizer.fingerprint != record["unit_tokenizer_fingerprint"]:
        raise UserError(f"{path / 'unit_tokenizer'}: not the unit tokenizer this model was trained with; copy the model again")
    if vocabulary.fingerprint != record["vocabulary_fingerprint"]:
        raise UserError(f"{path / 'tokenizer.model'}: not the text tokenizer this model was trained with; copy the model again")
    return Model(
        TowerConfig(**record["tower"]),
        _tensors(model_dir),
        vocabulary,
        unit_tokenizer,
        record["logit_scale"],
        tuple(record["trained_languages"]),
        record["fingerprint"],
    )


def read_params(model_dir: str, abstract: dict, identity: dict) -> dict:
    """Parameters of a model directory as a training run's start, placed as `abstract` says.

    Raises:
      UserError: the model has another vocabulary, unit tokenizer or tower than the run.
    """
    record, tensors = _description(model_dir), _tensors(model_dir)
    for name, key in (("unit tokenizer", "unit_tokenizer"), ("vocabulary", "vocabulary")):
        if record[f"{key}_fingerprint"] != identity[key]:
            raise UserError(f"{model_dir}: this model was trained with another {name} than this run's; use the model's own")
    tower: Params = {}
    for name, want in abstract["tower"].items():
        if name not in tensors or tensors[name].shape != want.shape:
            found = tensors[name].shape if name in tensors else "nothing"
            raise UserError(f"{model_dir}: tensor {name} is {found}, the run's tower wants {want.shape}; set TowerConfig as the model's")
        tower[name] = jax.device_put(tensors[name], want.sharding)
    return {"tower": tower, "log_logit_scale": jax.numpy.float32(np.log(record["logit_scale"]))}
