"""A released LLM as a model directory without units: `xretrieval import-llm`."""

import dataclasses
import hashlib
import json
import pathlib
from typing import NamedTuple

from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError, read_json
from xretrieval.huggingface_folder import model_name, read_fields
from xretrieval.licence import read_licence
from xretrieval.model import directory
from xretrieval.model.huggingface_config import read_config
from xretrieval.model.huggingface_modules import read_modules
from xretrieval.model.huggingface_weights import Weights, count, read_weights
from xretrieval.model.tower import TowerConfig
from xretrieval.progress import track

_NOTICE = """model.safetensors, {tokenizer}: made from {name}. The tensors were renamed, transposed and stacked by xretrieval, and
padded with rows of zeros; their values are its owner's, unchanged.
{terms}xretrieval itself: Apache-2.0.
"""
_CARD = """---
library_name: xretrieval
tags: [retrieval, multilingual]
---
# {name}, as a text tower of xretrieval

An imported LLM ({family}) without speech units: width {width}, {layers} layers, {parameters:,} parameters, {text:,} text tokens, {pooling} pooling,
{direction}. Licence: {licence}; see NOTICE.

Train from it: `gin_configs/runs/from_llm.gin` with this folder's `tower.gin`. As it is, it embeds text:

    from xretrieval import Retriever
    Retriever.load("this folder").encode_text(["Montag, Juli und Euro"], "de_de"{prompt})
"""


class LLM(NamedTuple):
    """A Hugging Face folder, looked at: every check is done, no tensor is read.

    Attributes:
      name: of the model.
      root: the folder of its config.json, tensors and tokenizer.
      family: `model_type` of its config.json.
      config: of the tower, without units.
      weights: its tensors.
      prompts: text in front of an input, by name.
      files: what was read so far, beside the tensors.
    """

    name: str
    root: pathlib.Path
    family: str
    config: TowerConfig
    weights: Weights
    prompts: dict[str, str]
    files: tuple[pathlib.Path, ...]


class Imported(NamedTuple):
    """What an import did."""

    llm: LLM
    parameters: int
    dtypes: tuple[str, ...]
    licence: str


def open_llm(source: str) -> LLM:
    """Looks at a Hugging Face folder: config.json, modules.json and the headers of its tensors.

    Raises:
      UserError: whatever the tower cannot follow, by name.
    """
    folder = pathlib.Path(source)
    if not folder.is_dir():
        raise UserError(f"{source}: no such folder; download the model and give the folder that has its config.json")
    modules = read_modules(folder)
    config_file = modules.root / "config.json"
    family, config = read_config(config_file)
    width = config.width
    for head in modules.dense:
        if head.fan_in != width:
            raise UserError(f"{head.folder / 'config.json'}: in_features = {head.fan_in}, what comes before is {width} wide; copy it again")
        width = head.fan_out
    config = dataclasses.replace(config, dense=tuple(head.fan_out for head in modules.dense), pooling=modules.pooling or config.pooling)
    weights = read_weights(modules.root, family, config, modules.dense)
    return LLM(model_name(folder), modules.root, family, config, weights, modules.prompts, (config_file, *modules.files))


def import_llm(source: str, out_dir: str) -> Imported:
    """Writes the model directory of a Hugging Face folder.

    Memory: that of one matrix and of a few thousand rows of the table; tensors are read, turned and written one by one.

    Raises:
      UserError: the source cannot be followed exactly, or `out_dir` holds something else than an imported LLM.
    """
    llm = open_llm(source)
    tokenizer_file, begin, end, tokenizer_files = _tokenizer(llm)
    vocabulary = Vocabulary(tokenizer_file, 0, "", text_size=llm.config.text_size, begin_ids=begin, end_ids=end)
    licence = read_licence(pathlib.Path(source), llm.family)
    _check_place(pathlib.Path(out_dir))
    files = sorted({*llm.files, *llm.weights.files, *tokenizer_files})
    hashes = {str(path.relative_to(source)): _sha256(path) for path in track(files, len(files), "hashing")}
    record = {"name": llm.name, "family": llm.family, "licence": licence.name, "sha256": hashes}
    identity = json.dumps([record["sha256"], dataclasses.asdict(llm.config), begin, end], sort_keys=True)
    parameters = count(llm.weights.params, llm.config)
    card = _CARD.format(
        name=llm.name,
        family=llm.family,
        width=llm.config.width,
        layers=llm.config.layers,
        parameters=parameters,
        text=llm.config.text_size,
        pooling={"mean": "mean", "last": "last-token"}[llm.config.pooling],
        direction="causal" if llm.config.causal else "bidirectional",
        licence=licence.name,
        prompt=f", prompt={next(iter(llm.prompts))!r}" if llm.prompts else "",
    )
    directory.write(
        out_dir,
        llm.config,
        llm.weights.params,
        vocabulary,
        None,
        None,
        {"unit_tokenizer": None, "trained_languages": (), "fingerprint": hashlib.sha256(identity.encode()).hexdigest()},
        card,
        _NOTICE.format(tokenizer=tokenizer_file.name, name=llm.name, terms=licence.terms),
        source=record,
        prompts=llm.prompts,
        more_files={**licence.files, "tower.gin": _gin(llm).encode()},
    )
    return Imported(llm, parameters, tuple(sorted({blocks.dtype.name for blocks in llm.weights.params.values()})), licence.name)


def _gin(llm: LLM) -> str:
    """The tower's numbers as a run's config, but for t and a, which come from the vocabulary."""
    values = {
        name: value for name, value in dataclasses.asdict(llm.config).items() if name not in ("text_size", "num_units", "row_multiple")
    }
    lines = [f"TowerConfig.{name} = {value!r}" for name, value in values.items()]
    return "\n".join([f"# The tower of {llm.name}, for training from it (gin_configs/runs/from_llm.gin).", *lines, ""])


def _sha256(path: pathlib.Path) -> str:
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _check_place(out: pathlib.Path) -> None:
    """An empty folder, an imported LLM, or one whose import was broken off."""
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return
    if (out / "xretrieval.json").exists():
        if read_json(out / "xretrieval.json").get("unit_tokens") == 0:
            return
        raise UserError(f"{out}: a trained model is there; give another --out, or remove it")
    if not (out / "xretrieval.json.tmp").exists():
        raise UserError(f"{out}: not empty and not a model directory; give another --out")


def _tokenizer(llm: LLM) -> tuple[pathlib.Path, tuple[int, ...], tuple[int, ...], tuple[pathlib.Path, ...]]:
    """The tokenizer file, the tokens that it puts in front of a text and behind it, and the files that say so.

    tokenizer.json where there is one: the reference implementation reads that, and takes from it what it adds to a text, whatever
    tokenizer_config.json says (Qwen3-Embedding ends a text with another token than its `eos_token`).
    """
    path, settings_file = llm.root / "tokenizer.json", llm.root / "tokenizer_config.json"
    if path.exists():
        return path, *_added_tokens(path), (path,)
    path = llm.root / "tokenizer.model"
    if not path.exists():
        raise UserError(f"{llm.root}: neither tokenizer.json nor tokenizer.model is there; copy one of them too")
    import sentencepiece

    try:
        processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
    except (RuntimeError, OSError) as error:
        raise UserError(f"{path}: not a SentencePiece model ({error}); copy it again") from error
    settings = read_fields(settings_file) if settings_file.exists() else {}
    begins = settings.get("add_bos_token", llm.family != "qwen3")
    begin = (processor.bos_id(),) if begins else ()
    end = (processor.eos_id(),) if settings.get("add_eos_token", False) else ()
    return path, begin, end, (path, settings_file) if settings_file.exists() else (path,)


def _added_tokens(path: pathlib.Path) -> tuple[tuple[int, ...], tuple[int, ...]]:
    from tokenizers import Tokenizer

    text = "a"
    try:
        tokenizer = Tokenizer.from_file(str(path))
        bare, whole = (tokenizer.encode(text, add_special_tokens=added).ids for added in (False, True))
    except Exception as error:  # the library raises no class of its own
        raise UserError(f"{path}: not a tokenizer.json of Hugging Face ({error}); copy it again") from error
    for i in range(len(whole) - len(bare) + 1):
        if bare and whole[i : i + len(bare)] == bare:
            return tuple(whole[:i]), tuple(whole[i + len(bare) :])
    raise UserError(f"{path}: what it adds to a text does not stand before and after it: {bare} becomes {whole}; give another model")
