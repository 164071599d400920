"""A folder of a released model as it was downloaded: its JSON files, and the tensors of its safetensors files by name."""

import json
import os
import pathlib
from typing import Any, NamedTuple

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.tensors import Entry

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl")


def read_copied(path: str | os.PathLike) -> Any:
    """The content of a JSON file that the user copied.

    Raises:
      UserError: it is not there, or damaged.
    """
    try:
        with open(path, encoding="utf-8") as file:
            return json.load(file)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the whole folder of a model") from error
    except (ValueError, RecursionError) as error:
        raise UserError(f"{path}: damaged ({error}); copy it again") from error


def read_fields(path: str | os.PathLike) -> dict[str, Any]:
    """The fields of a JSON file that the user copied; UserError where it is no such file."""
    record = read_copied(path)
    if not isinstance(record, dict):
        raise UserError(f"{path}: it has no fields; copy it again")
    return record


class Fields:
    """The fields of a config, with defaults for those that are not there, and messages that name file and field."""

    def __init__(self, path: str | os.PathLike, given: dict, defaults: dict, inside: str = ""):
        self.path, self.given, self.defaults, self.inside = path, given, defaults, inside

    def get(self, name: str) -> Any:
        return self.given[name] if name in self.given else self.defaults.get(name)

    def error(self, name: str, why: str, value: Any = None) -> UserError:
        value = self.get(name) if value is None else value
        return UserError(f"{self.path}: {self.inside}{name} = {value!s:.100}: {why}")

    def whole(self, name: str) -> int:
        value = self.get(name)
        if type(value) is not int or value < 1:
            raise self.error(name, "a whole number above 0 is needed; copy the file again")
        return value

    def number(self, name: str) -> float:
        return self.positive(name, self.get(name))

    def positive(self, name: str, value: Any) -> float:
        if type(value) not in (int, float) or not 0 < value < float("inf"):
            raise self.error(name, "a number above 0 is needed; copy the file again", value)
        return float(value)


class Found(NamedTuple):
    """A tensor of the source and the file it is in."""

    path: pathlib.Path
    name: str
    entry: Entry


def open_folder(root: pathlib.Path) -> tuple[dict[str, Found], tuple[pathlib.Path, ...], tuple[pathlib.Path, ...]]:
    """The tensors of a folder by name, the files they are in, and files of tensors that are not read.

    Raises:
      UserError: no safetensors; a file that is damaged, missing or not in the index.
    """
    there = sorted(path for path in root.iterdir() if path.is_file()) if root.is_dir() else []
    files = [path for path in there if path.suffix == ".safetensors"]
    others = [path for path in there if path.suffix in PICKLES]
    if not files and others:
        raise UserError(f"{others[0]}: a pickle may run any program when it is read; save the model as safetensors")
    if not files:
        raise UserError(f"{root}: no *.safetensors there; give the folder of a model")
    # As the reference implementation chooses: one file of this name, or those of the index.
    index = root / "model.safetensors.index.json"
    if root / "model.safetensors" in files:
        chosen = [root / "model.safetensors"]
    elif index.exists():
        chosen = [root / name for name in sorted(set(_places(index).values()))]
    else:
        chosen = files
    found: dict[str, Found] = {}
    for path in chosen:
        if not path.exists():
            raise UserError(f"{path}: not there, but {index.name} names it; copy it too")
        for name, entry in tensors.header(path).items():
            if name in found:
                raise UserError(f"{path}: tensor {name} is in {found[name].path.name} too; remove the file that does not belong")
            found[name] = Found(path, name, entry)
    others += [path for path in files if path not in chosen]
    if index.exists() and root / "model.safetensors" not in files:
        _check_index(index, found)
        chosen.append(index)
    return found, tuple(chosen), tuple(others)


def _places(index: pathlib.Path) -> dict[str, str]:
    places = read_fields(index).get("weight_map")
    if not isinstance(places, dict) or not all(isinstance(name, str) and pathlib.Path(name).name == name for name in places.values()):
        raise UserError(f"{index}: weight_map must name the file of each tensor, in the same folder; copy the file again")
    return places


def _check_index(index: pathlib.Path, found: dict[str, Found]) -> None:
    places = _places(index)
    for name in sorted(places.keys() | found.keys()):
        place = found[name].path.name if name in found else "no file"
        if places.get(name, "no file") != place:
            raise UserError(
                f"{index}: tensor {name} is in {places.get(name, 'no file')} by the index and in {place} in fact; copy all files again"
            )


def take(root: pathlib.Path, found: dict[str, Found], name: str, shape: tuple[int, ...]) -> Found:
    """A tensor of that name and shape; UserError where there is none."""
    if name not in found:
        raise UserError(
            f"{root}: tensor {name} is missing in its *.safetensors; config.json wants it, in shape {list(shape)}: copy all files again"
        )
    member = found[name]
    if member.entry.shape != shape:
        raise UserError(
            f"{member.path}: tensor {name} has shape {list(member.entry.shape)}, config.json wants {list(shape)}; copy both again"
        )
    return member


def model_name(folder: pathlib.Path) -> str:
    """The folder's name; of a snapshot in a download cache (models--google--gemma-3-1b-pt/snapshots/…) the model's."""
    folder = folder.absolute()
    cached = folder.parent.parent.name
    return cached.removeprefix("models--").replace("--", "/") if cached.startswith("models--") else folder.name
