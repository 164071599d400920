"""What a sentence-transformers folder adds to an LLM: pooling, dense heads and prompts."""

import pathlib
from typing import NamedTuple

from xretrieval.errors import UserError
from xretrieval.huggingface_folder import read_copied, read_fields


class DenseFolder(NamedTuple):
    """A dense head: its folder, and the widths before and after it."""

    folder: pathlib.Path
    fan_in: int
    fan_out: int


class Modules(NamedTuple):
    """A sentence-transformers folder, or a plain one.

    Attributes:
      root: the folder of config.json and its tensors.
      pooling: "mean" or "last"; None: nothing says it.
      dense: the heads in order.
      prompts: text in front of an input, by name.
      files: what was read.
    """

    root: pathlib.Path
    pooling: str | None
    dense: tuple[DenseFolder, ...]
    prompts: dict[str, str]
    files: tuple[pathlib.Path, ...]


_POOLINGS = {"mean": "mean", "lasttoken": "last"}
# Field, what sentence-transformers takes where it is not there, and what the tower can follow.
_DENSE_FIELDS = (
    ("bias", True, (False,)),
    ("use_residual", False, (False,)),
    ("activation_function", "torch.nn.modules.activation.Tanh", ("torch.nn.modules.linear.Identity",)),
    ("module_input_name", "sentence_embedding", ("sentence_embedding",)),
    ("module_output_name", None, ("sentence_embedding", None)),
)
_OLD_POOLINGS = {"pooling_mode_mean_tokens": "mean", "pooling_mode_lasttoken": "last"}


def read_modules(source: pathlib.Path) -> Modules:
    """Reads modules.json and what it names.

    Raises:
      UserError: a module, a pooling or a head that the tower has not, or modules in another order than transformer, pooling, heads, norm.
    """
    path = source / "modules.json"
    if not path.exists():
        return Modules(source, None, (), {}, ())
    record = read_copied(path)
    try:
        listed = [(entry["type"].rsplit(".", 1)[-1], source / entry["path"]) for entry in record]
    except (TypeError, KeyError, AttributeError) as error:
        raise UserError(f"{path}: not a list of modules with type and path ({error}); copy it again") from error
    if not all(folder.resolve().is_relative_to(source.resolve()) for _, folder in listed):
        raise UserError(f"{path}: a module's path leads out of this folder; copy it again")
    kinds = [kind for kind, _ in listed]
    heads = [folder for kind, folder in listed if kind == "Dense"]
    wanted = ["Transformer", "Pooling", *["Dense"] * len(heads), "Normalize"]
    # The tower's embeddings have unit norm in any case.
    if kinds not in (wanted, wanted[:-1]):
        raise UserError(f"{path}: modules {', '.join(kinds)}: the tower has {', '.join(wanted)} in this order; give another model")
    files = [path]
    pooling = _pooling(listed[1][1] / "config.json")
    dense = tuple(_dense(folder) for folder in heads)
    files += [listed[1][1] / "config.json", *(head.folder / "config.json" for head in dense)]
    _check_case(listed[0][1] / "sentence_bert_config.json")
    prompts_file = source / "config_sentence_transformers.json"
    prompts = read_fields(prompts_file).get("prompts") or {} if prompts_file.exists() else {}
    if not isinstance(prompts, dict) or not all(isinstance(text, str) for text in prompts.values()):
        raise UserError(f"{prompts_file}: prompts must be texts by name; copy it again")
    return Modules(listed[0][1], pooling, dense, prompts, (*files, *([prompts_file] if prompts_file.exists() else [])))


def _check_case(path: pathlib.Path) -> None:
    if path.exists() and read_fields(path).get("do_lower_case"):
        raise UserError(f"{path}: do_lower_case = true: the tokenizer is used as it is; give another model")


def _pooling(path: pathlib.Path) -> str:
    record = read_fields(path)
    if not record.get("include_prompt", True):
        raise UserError(f"{path}: include_prompt = false: all tokens are pooled; give another model")
    mode = record.get("pooling_mode")
    if mode is None:
        modes = [name for name, on in record.items() if name.startswith("pooling_mode_") and on]
        found = [_OLD_POOLINGS.get(name) for name in modes]
    else:
        modes = mode if isinstance(mode, list) else [mode]
        found = [_POOLINGS.get(str(name)) for name in modes]
    if len(found) != 1 or found[0] is None:
        raise UserError(
            f"{path}: pooling {', '.join(map(str, modes)) or 'of no kind'}: one of mean and last token is supported; give another model"
        )
    return found[0]


def _dense(folder: pathlib.Path) -> DenseFolder:
    path = folder / "config.json"
    record = read_fields(path)
    for name, default, allowed in _DENSE_FIELDS:
        found = record.get(name, default)
        if found not in allowed:
            raise UserError(f"{path}: {name} = {found}: only {allowed[0]} is supported in a dense head; give another model")
    widths = record.get("in_features"), record.get("out_features")
    if not all(type(width) is int and width > 0 for width in widths):
        raise UserError(f"{path}: in_features and out_features must be whole numbers above 0; copy it again")
    return DenseFolder(folder, record["in_features"], record["out_features"])
