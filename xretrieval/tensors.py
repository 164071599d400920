"""safetensors files tensor by tensor: what is asked for is read, what is handed over is written, and a whole file is never held.

The safetensors library maps a file and keeps every page that was read; importing a model must not take the memory of the model, so its
tensors are read with plain reads, at the places that the header gives.
"""

import json
import math
import mmap
import os
import pathlib
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
import safetensors

from xretrieval.errors import UserError
from xretrieval.progress import track

# The dtypes of parameters, by their names in the format.
DTYPES = {"F32": np.dtype(np.float32), "BF16": np.dtype(jnp.bfloat16), "F16": np.dtype(np.float16)}
# Bytes of an element of every dtype of the format; files hold tensors that are not parameters too.
_WIDTHS = {
    **dict.fromkeys(("F64", "I64", "U64", "C64"), 8),
    **dict.fromkeys(("F32", "I32", "U32"), 4),
    **dict.fromkeys(("F16", "BF16", "I16", "U16"), 2),
    **dict.fromkeys(("BOOL", "I8", "U8", "F8_E4M3", "F8_E5M2", "F8_E8M0"), 1),
}
_LONGEST_HEADER = 100_000_000  # bytes; the library's own limit
_ALIGNMENT = 64  # of the first tensor: a mapped array is then aligned for any instruction


class Entry(NamedTuple):
    """A tensor of a file: name of its dtype, shape, and its bytes' place in the file."""

    dtype: str
    shape: tuple[int, ...]
    begin: int
    end: int


class Blocks(NamedTuple):
    """A tensor that is made while it is written: `parts` gives arrays of `dtype` whose bytes, one after another, are the tensor's."""

    dtype: np.dtype
    shape: tuple[int, ...]
    parts: Callable[[], Iterable[np.ndarray]]


def header(path: str | os.PathLike) -> dict[str, Entry]:
    """The tensors of a file by name, with nothing read but the header.

    Raises:
      UserError: the file is not there, truncated or not a safetensors file, or its tensors overlap.
    """
    try:
        with open(path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > min(size - 8, _LONGEST_HEADER):
                raise UserError(f"{path}: no whole safetensors file ({size} bytes, a header of {length}); copy it again")
            record = json.loads(file.read(length))
        entries = {name: _entry(path, name, entry, 8 + length) for name, entry in record.items() if name != "__metadata__"}
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); copy it again") from error
    except (ValueError, AttributeError, RecursionError) as error:
        raise UserError(f"{path}: its header is damaged ({error}); copy it again") from error
    place = 8 + length
    for name, entry in sorted(entries.items(), key=lambda item: item[1][2:]):
        if entry.begin != place:
            raise UserError(f"{path}: tensor {name} begins at byte {entry.begin}, the one before ends at {place}; copy the file again")
        if entry.end > size:
            raise UserError(f"{path}: truncated in tensor {name}, which ends at byte {entry.end} of {size}; copy the file again")
        place = entry.end
    if place != size:
        raise UserError(f"{path}: {size - place} bytes follow its last tensor; copy the file again")
    try:
        with safetensors.safe_open(path, "np"):
            return entries
    except safetensors.SafetensorError as error:
        raise UserError(f"{path}: not a valid safetensors file ({error}); copy it again") from error


def _entry(path: str | os.PathLike, name: str, entry: Any, start: int) -> Entry:
    try:
        dtype, shape, (begin, end) = entry["dtype"], tuple(entry["shape"]), entry["data_offsets"]
        whole = all(type(n) is int and n >= 0 for n in (*shape, begin, end)) and begin <= end
    except (TypeError, KeyError, ValueError):
        whole = False
    if not whole:
        raise UserError(f"{path}: tensor {name} has no whole dtype, shape and data_offsets: {entry!s:.100}; copy the file again")
    if dtype in _WIDTHS and end - begin != math.prod(shape) * _WIDTHS[dtype]:
        raise UserError(f"{path}: tensor {name}, {dtype} {list(shape)}, has {end - begin} bytes; copy the file again")
    return Entry(dtype, shape, start + begin, start + end)


def parameter_dtype(path: str | os.PathLike, name: str, entry: Entry) -> np.dtype:
    """The dtype of a tensor of parameters.

    Raises:
      UserError: integers or 8-bit floats, those of a quantised model.
    """
    if entry.dtype not in DTYPES:
        raise UserError(
            f"{path}: tensor {name} is {entry.dtype}; parameters must be {', '.join(DTYPES)}: give a model that is not quantised"
        )
    return DTYPES[entry.dtype]


def read(path: str | os.PathLike, name: str, entry: Entry, first: int = 0, rows: int | None = None) -> np.ndarray:
    """A tensor, or `rows` of its leading axis from `first` on, into memory of its own.

    Raises:
      UserError: the file changed since its header was read, or the tensor is not of parameters.
    """
    dtype, shape = parameter_dtype(path, name, entry), entry.shape
    if rows is not None:
        shape = (min(rows, shape[0] - first), *shape[1:])
    row = math.prod(entry.shape[1:]) * dtype.itemsize
    count = math.prod(shape) * dtype.itemsize
    try:
        flat = np.fromfile(path, np.uint8, count, offset=entry.begin + first * row)
    except OSError as error:
        raise UserError(f"{path}: tensor {name} cannot be read ({error.strerror}); copy the file again") from error
    if flat.size != count:
        raise UserError(f"{path}: truncated in tensor {name}; copy the file again")
    return flat.view(dtype).reshape(shape)


def mapped(path: str | os.PathLike) -> dict[str, np.ndarray]:
    """Every tensor by name, read-only and mapped: it takes memory only while it is in use.

    Raises:
      UserError: as `header`, or a tensor is not of parameters.
    """
    entries = header(path)
    with open(path, "rb") as file:
        content = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)

    def array(name: str, entry: Entry) -> np.ndarray:
        return np.frombuffer(content, parameter_dtype(path, name, entry), math.prod(entry.shape), entry.begin).reshape(entry.shape)

    return {name: array(name, entry) for name, entry in entries.items()}


def write(path: str | os.PathLike, tensors: Mapping[str, np.ndarray | Blocks], label: str = "writing") -> None:
    """Writes a file whole or not at all, one tensor at a time.

    Args:
      path: of the file.
      tensors: arrays, or what makes them.
      label: of the progress.

    Raises:
      UserError: no space, no permission.
    """
    names = {dtype: name for name, dtype in DTYPES.items()}
    # Wide elements first, so that each tensor is aligned to its own.
    order = sorted(tensors, key=lambda name: (-np.dtype(tensors[name].dtype).itemsize, name))
    record: dict[str, Any] = {}
    place = 0
    for name in order:
        dtype, shape = np.dtype(tensors[name].dtype), tensors[name].shape
        end = place + math.prod(shape) * dtype.itemsize
        record[name] = {"dtype": names[dtype], "shape": list(shape), "data_offsets": [place, end]}
        place = end
    head = json.dumps(record).encode()
    head += b" " * (-(8 + len(head)) % _ALIGNMENT)
    temporary = pathlib.Path(f"{path}.tmp")
    try:
        with open(temporary, "wb") as file:
            file.write(len(head).to_bytes(8, "little") + head)
            for name in track(order, len(order), label):
                tensor = tensors[name]
                for part in tensor.parts() if isinstance(tensor, Blocks) else (tensor,):
                    file.write(np.ascontiguousarray(part).reshape(-1).view(np.uint8))
                wanted, found = record[name]["data_offsets"][1], file.tell() - 8 - len(head)
                if found != wanted:
                    raise RuntimeError(f"{name}: wrote up to byte {found}, its shape ends at {wanted}")
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror or error}); free space or give another folder") from error
    finally:
        temporary.unlink(missing_ok=True)
