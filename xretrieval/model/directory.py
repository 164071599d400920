"""The model directory: everything that serving needs, readable without TensorFlow, SeqIO or gin.

xretrieval.json     format version, tower config, vocabulary split, prefix template, pooling, width, logit scale, fingerprints
model.safetensors   the tower's parameters by dotted name
tokenizer.model     the text tokenizer: SentencePiece, or `tokenizer.json` of Hugging Face
unit_tokenizer/     the unit tokenizer the model was trained with, and the only one it works with; an imported LLM has no units, hence none
README.md NOTICE    model card; licences of the parts; beside them the LICENSE files of an imported LLM
tower.gin           of an imported LLM: its numbers as a run's config
"""

import contextlib
import dataclasses
import hashlib
import json
import os
import pathlib
import shutil
from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import numpy as np

from xretrieval import tensors
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError, read_json, write_json
from xretrieval.model.tower import Params, TowerConfig
from xretrieval.tensors import Blocks
from xretrieval.units.tokenizer import NAMES as UNIT_TOKENIZER_FILES
from xretrieval.units.tokenizer import UnitTokenizer

FORMAT_VERSION = 2
_FIELDS = (
    *("tower", "text_tokens", "unit_tokens", "prefix_template", "begin_tokens", "end_tokens", "tokenizer_file", "logit_scale"),
    *("unit_tokenizer_fingerprint", "vocabulary_fingerprint", "trained_languages", "fingerprint"),
)
_TABLES = ("embedding.text_VD", "embedding.units_AD")
# Settings of a tower that its parameters do not depend on: an LLM may be tried both ways.
_FREE = ("num_units", "row_multiple", "max_positions", "causal", "pooling")


@dataclasses.dataclass(frozen=True)
class Model:
    """A model directory, read.

    Attributes:
      config: of the tower.
      params: by name, mapped from the file: an array takes memory only while it is in use. An imported LLM's are mostly bfloat16.
      vocabulary: text and unit tokens.
      unit_tokenizer: None where the model has no units.
      logit_scale: the trained one; None where nothing was trained.
      trained_languages: codes of the languages whose speech was trained on.
      fingerprint: identity of the model.
      prompts: of an imported LLM, by name ("query"); text in front of an input, as its authors trained it.
    """

    config: TowerConfig
    params: dict[str, np.ndarray]
    vocabulary: Vocabulary
    unit_tokenizer: UnitTokenizer | None
    logit_scale: float | None
    trained_languages: tuple[str, ...]
    fingerprint: str
    prompts: dict[str, str] = dataclasses.field(default_factory=dict)


def write(
    out_dir: str | os.PathLike,
    config: TowerConfig,
    params: Mapping[str, np.ndarray | Blocks],
    vocabulary: Vocabulary,
    unit_tokenizer_dir: str | os.PathLike | None,
    logit_scale: float | None,
    identity: dict,
    card: str,
    notice: str,
    source: dict | None = None,
    prompts: Mapping[str, str] | None = None,
    more_files: Mapping[str, bytes] | None = None,
) -> None:
    """Writes a model directory; `xretrieval.json` comes last, so a folder with one is whole.

    Args:
      out_dir: the folder; an older model in it is replaced.
      config, params: of the tower; `Blocks` are made while they are written.
      vocabulary: the tokenizer file, begin and end tokens and template are its.
      unit_tokenizer_dir: None where the model has no units.
      logit_scale: None where nothing was trained.
      identity: "unit_tokenizer" (its fingerprint or None), "trained_languages" and the model's "fingerprint".
      card, notice: of README.md and NOTICE.
      source: what an imported LLM was made from: "name", "family", "licence", "sha256" by file. Whatever is made from it keeps this.
      prompts: of an imported LLM.
      more_files: content of further small files by name: licences ("LICENSE"), `tower.gin`.

    Raises:
      UserError: the folder cannot be written.
    """
    out = pathlib.Path(out_dir)
    tokenizer = vocabulary.tokenizer_file.read_bytes()
    tokenizer_file = "tokenizer.json" if vocabulary.tokenizer_file.suffix == ".json" or tokenizer[:1] == b"{" else "tokenizer.model"
    # All read before anything is replaced: they may come from this very folder.
    small = {"README.md": card.encode(), "NOTICE": notice.encode(), **(more_files or {}), tokenizer_file: tokenizer}
    record = {
        "format_version": FORMAT_VERSION,
        "tower": dataclasses.asdict(config),
        "text_tokens": vocabulary.text_size,
        "unit_tokens": vocabulary.num_units,
        "prefix_template": vocabulary.template,
        "begin_tokens": list(vocabulary.begin_ids),
        "end_tokens": list(vocabulary.end_ids),
        "tokenizer_file": tokenizer_file,
        "pooling": config.pooling,
        "embedding_width": config.embedding_width,
        "logit_scale": logit_scale,
        "unit_tokenizer_fingerprint": identity["unit_tokenizer"],
        "vocabulary_fingerprint": vocabulary.fingerprint,
        "trained_languages": list(identity["trained_languages"]),
        "fingerprint": identity["fingerprint"],
    }
    if source is not None:
        record |= {"source": source, "prompts": dict(prompts or {})}
    try:
        _begin(out)
        _place_unit_tokenizer(unit_tokenizer_dir, out / "unit_tokenizer")
        tensors.write(out / "model.safetensors", params, f"writing {out / 'model.safetensors'}")
        for name, content in small.items():
            (out / name).parent.mkdir(exist_ok=True)
            (out / name).write_bytes(content)
        write_json(out / "xretrieval.json", record)
    except OSError as error:
        raise UserError(f"{out}: cannot be written ({error.strerror or error}); free space or give another folder") from error


def _begin(out: pathlib.Path) -> None:
    """The folder counts as a model no more, but as one that is being written, and holds nothing that the next may lack."""
    out.mkdir(parents=True, exist_ok=True)
    (out / "xretrieval.json.tmp").touch()
    (out / "xretrieval.json").unlink(missing_ok=True)
    for path in (*(out / name for name in ("tower.gin", "tokenizer.model", "tokenizer.json")), *out.glob("LICENSE*")):
        path.unlink(missing_ok=True)


def _place_unit_tokenizer(source: str | os.PathLike | None, target: pathlib.Path) -> None:
    """Copies a unit tokenizer, unless it is the one of this very folder; without a source none stays. An encoder may be of gigabytes."""
    if source is not None and target.exists() and target.samefile(source):
        return
    for name in UNIT_TOKENIZER_FILES:
        (target / name).unlink(missing_ok=True)
    if source is None:
        with contextlib.suppress(OSError):  # not there, or somebody's files are in it
            target.rmdir()
        return
    target.mkdir(exist_ok=True)
    for name in UNIT_TOKENIZER_FILES:
        if (pathlib.Path(source) / name).exists():
            shutil.copyfile(pathlib.Path(source) / name, target / name)


def describe(model_dir: str | os.PathLike) -> dict[str, Any]:
    """The content of `xretrieval.json`.

    Raises:
      UserError: no model there, of another format version, or a field is missing.
    """
    path = pathlib.Path(model_dir) / "xretrieval.json"
    if not path.exists():
        raise UserError(f"{path}: no model there; make one with `xretrieval export`, or with `xretrieval import-llm`")
    record = read_json(path)
    version = record.get("format_version")
    if version != FORMAT_VERSION:
        raise UserError(f"{path}: format version {version}, this xretrieval reads {FORMAT_VERSION}; export or import the model again")
    for name in _FIELDS:
        if name not in record:
            raise UserError(f"{path}: the field {name} is missing; export or import the model again")
    return record


def _config(model_dir: str | os.PathLike, record: dict) -> TowerConfig:
    try:
        return TowerConfig(**record["tower"])
    except TypeError as error:
        raise UserError(f"{model_dir}/xretrieval.json: tower: {error}; export or import the model again") from error


def text_fingerprint(vocabulary: Vocabulary) -> str:
    """sha256 over what text tokens mean: the tokenizer file, t, begin and end tokens; whatever units and prefixes there are."""
    rest = json.dumps([vocabulary.text_size, vocabulary.begin_ids, vocabulary.end_ids])
    return hashlib.sha256(vocabulary.tokenizer_file.read_bytes() + rest.encode()).hexdigest()


def read(model_dir: str | os.PathLike) -> Model:
    """Reads a model directory and checks that its parts belong together."""
    record, path = describe(model_dir), pathlib.Path(model_dir)
    vocabulary = Vocabulary.open(path, record["unit_tokens"])
    unit_tokenizer = UnitTokenizer.load(path / "unit_tokenizer") if record["unit_tokens"] else None
    if unit_tokenizer and unit_tokenizer.fingerprint != record["unit_tokenizer_fingerprint"]:
        raise UserError(f"{path / 'unit_tokenizer'}: not the unit tokenizer this model was trained with; copy the model again")
    if vocabulary.fingerprint != record["vocabulary_fingerprint"]:
        raise UserError(f"{vocabulary.tokenizer_file}: not the text tokenizer this model was trained with; copy the model again")
    return Model(
        _config(path, record),
        tensors.mapped(path / "model.safetensors"),
        vocabulary,
        unit_tokenizer,
        record["logit_scale"],
        tuple(record["trained_languages"]),
        record["fingerprint"],
        record.get("prompts", {}),
    )


class Start(NamedTuple):
    """What a run starts from.

    Attributes:
      params: the tower's parameters that the model has, placed.
      missing: names of those that it has not: `embedding.units_AD` of an imported LLM. The caller initialises them.
      logit_scale: None where nothing was trained.
    """

    params: Params
    missing: tuple[str, ...]
    logit_scale: float | None


def read_params(
    model_dir: str | os.PathLike, abstract: Mapping[str, jax.ShapeDtypeStruct], identity: dict, config: TowerConfig | None = None
) -> Start:
    """Parameters of a model directory as a training run's start, one at a time, placed and cast as `abstract` says.

    Tables may differ in their padding rows; new ones are zeros.

    Args:
      model_dir: a trained model, or an imported LLM.
      abstract: the run's tower, whole: parameter by name with shape, dtype and sharding.
      identity: of the run: "unit_tokenizer" and "vocabulary", its fingerprints, and "text", the vocabulary's `text_fingerprint`.
      config: of the run's tower, `text_size` set; what it computes must be what the model computes, but for direction and pooling.

    Raises:
      UserError: the model has another vocabulary, unit tokenizer or tower than the run.
    """
    record = describe(model_dir)
    _check_identity(model_dir, record, identity)
    if config is not None:
        _check_config(model_dir, _config(model_dir, record), config)
    stored = tensors.mapped(pathlib.Path(model_dir) / "model.safetensors")
    for name in sorted(stored.keys() - abstract.keys()):
        raise UserError(f"{model_dir}: the model has tensor {name}, the run's tower has not; set TowerConfig as the model's")
    missing = tuple(name for name in abstract if name not in stored and name == _TABLES[1] and not record["unit_tokens"])
    params: Params = {}
    sizes = dict(zip(_TABLES, (record["text_tokens"], record["unit_tokens"]), strict=True))
    for name, want in abstract.items():
        if name in missing:
            continue
        found = stored[name].shape if name in stored else None
        # A table may have other padding, as long as no row of a token is cut off.
        shape = (want.shape[0], *found[1:]) if found and sizes.get(name, want.shape[0] + 1) <= want.shape[0] else found
        if shape != want.shape:
            raise UserError(
                f"{model_dir}: tensor {name} is {found or 'nothing'}, the run's tower wants {want.shape}; set TowerConfig as the model's"
            )
        params[name] = _place(stored[name], want)
    return Start(params, missing, record["logit_scale"])


def _place(stored: np.ndarray, want: jax.ShapeDtypeStruct) -> jax.Array:
    stored = stored[: want.shape[0]]

    def shard(index: tuple[slice, ...] | None) -> np.ndarray:
        index = index or (slice(None),)
        block = stored[index].astype(want.dtype)
        new = len(range(*index[0].indices(want.shape[0]))) - len(block)
        return np.pad(block, [(0, new), *[(0, 0)] * (block.ndim - 1)]) if new else block

    return jax.make_array_from_callback(want.shape, want.sharding, shard) if want.sharding else jax.numpy.asarray(shard(None))


def _check_identity(model_dir: str | os.PathLike, record: dict, identity: dict) -> None:
    if not record["unit_tokens"]:
        if text_fingerprint(Vocabulary.open(model_dir, 0)) != identity["text"]:
            raise UserError(f"{model_dir}: this LLM has another text tokenizer than this run's; set mixture.tokenizer_file to this folder")
        return
    for name, key in (("unit tokenizer", "unit_tokenizer"), ("vocabulary", "vocabulary")):
        if record[f"{key}_fingerprint"] != identity[key]:
            raise UserError(f"{model_dir}: this model was trained with another {name} than this run's; use the model's own")


def _check_config(model_dir: str | os.PathLike, model: TowerConfig, run: TowerConfig) -> None:
    for field in dataclasses.fields(TowerConfig):
        ours, theirs = getattr(run, field.name), getattr(model, field.name)
        if field.name not in _FREE and ours != theirs:
            raise UserError(f"{model_dir}: this model's TowerConfig.{field.name} is {theirs}, the run's {ours}; set it as the model's")
