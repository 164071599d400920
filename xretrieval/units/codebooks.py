"""Codebooks that others published: read without running anything of theirs, and held against the encoder that they are to be used with."""

import math
import os
import pathlib
import tokenize
from typing import BinaryIO

import numpy as np

from xretrieval import tensors
from xretrieval.errors import UserError
from xretrieval.units import kmeans
from xretrieval.units.encoders.encoder import Encoder

_MOST_BYTES = 2**30
# A codebook has to explain at least this share of what so many clusters do that were fitted on other frames of the same recordings.
_SHARE, _FRESH_CLUSTERS = 0.5, 64
_PICKLES = (".bin", ".km", ".pkl", ".pickle", ".joblib", ".pt", ".pth", ".npz")
_L2, _INNER_PRODUCT = b"IxF2", b"IxFI"
_NPY_HEADERS = {(1, 0): np.lib.format.read_array_header_1_0, (2, 0): np.lib.format.read_array_header_2_0}
_HEADER_BYTES = 4 + 4 + 3 * 8 + 1 + 4  # kind, width, rows and two unused, trained, metric


def read_codebook(path: str | os.PathLike) -> np.ndarray:
    """Centroids from a `.npy`, a `.safetensors` of one tensor, or a flat faiss index (any other name).

    Returns:
      float32 [K, D].

    Raises:
      UserError: a pickle, another kind of index, a damaged file, or content that is no codebook.
    """
    path = pathlib.Path(path)
    if path.suffix in _PICKLES:
        raise _pickle(path)
    try:
        size = path.stat().st_size
        if size > _MOST_BYTES:
            raise UserError(f"{path}: {size / 2**30:.1f} GiB, no codebook is larger than 1 GiB; give the file of the centroids")
        codebook_KD = _read(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); give the path of a codebook") from error
    if codebook_KD.ndim != 2 or 0 in codebook_KD.shape or codebook_KD.dtype.kind != "f":
        raise UserError(f"{path}: {codebook_KD.dtype} {list(codebook_KD.shape)} is no codebook; it must be floats [clusters, width]")
    with np.errstate(over="ignore", invalid="ignore"):  # the next line tells
        codebook_KD = codebook_KD.astype(np.float32)
    if not np.isfinite(codebook_KD).all():
        raise UserError(f"{path}: a centroid is not finite; give another codebook")
    same = len(codebook_KD) - len(np.unique(codebook_KD, axis=0))
    if same:
        raise UserError(f"{path}: {same} centroids repeat another, so that their units could never occur; give another codebook")
    return codebook_KD


def _pickle(path: pathlib.Path) -> UserError:
    return UserError(
        f"{path}: a pickle may run any program when it is read; where it was made, load it and write its centroids: "
        f'numpy.save("codebook.npy", model.cluster_centers_)'
    )


def _read(path: pathlib.Path) -> np.ndarray:
    if path.suffix == ".safetensors":
        found = tensors.mapped(path)
        if len(found) != 1:
            raise UserError(f"{path}: holds {len(found)} tensors, a codebook is one; give the file of the codebook alone")
        return next(iter(found.values())).astype(np.float32)
    with open(path, "rb") as file:
        return _array(path, file) if path.suffix == ".npy" else _flat_index(path, file)


def _array(path: pathlib.Path, file: BinaryIO) -> np.ndarray:
    """The floats of a `.npy`, whose header is held against the size of the file before anything is allocated."""
    try:
        version = np.lib.format.read_magic(file)
        if version not in _NPY_HEADERS:
            raise ValueError(f"version {version[0]}.{version[1]} of the format")
        shape, by_columns, dtype = _NPY_HEADERS[version](file)
    except (ValueError, TypeError, SyntaxError, RecursionError, tokenize.TokenError) as error:
        raise UserError(f"{path}: no whole array of numbers ({error!s:.100}); write it again with numpy.save") from error
    if dtype.hasobject:
        raise _pickle(path)
    if dtype.kind != "f" or len(shape) != 2 or min(shape) < 1:
        raise UserError(f"{path}: {dtype} {list(shape)} is no codebook; it must be floats [clusters, width]")
    rest = os.fstat(file.fileno()).st_size - file.tell()
    if rest != math.prod(shape) * dtype.itemsize:
        raise UserError(
            f"{path}: no whole array of numbers ({dtype} {list(shape)} in its header, {rest} bytes behind it); write it again with numpy.save"
        )
    return np.frombuffer(file.read(rest), dtype).reshape(shape, order="F" if by_columns else "C")


def _flat_index(path: pathlib.Path, file: BinaryIO) -> np.ndarray:
    """The vectors of faiss' IndexFlatL2 or IndexFlatIP."""
    head = file.read(_HEADER_BYTES)
    kind = head[:4]
    if head[:1] == b"\x80":  # of every pickle since protocol 2
        raise _pickle(path)
    if kind not in (_L2, _INNER_PRODUCT):
        shown = kind.decode("ascii", "replace")
        raise UserError(
            f"{path}: neither .npy nor .safetensors nor a flat faiss index (its first bytes are {shown!r}); where faiss is, write the centroids: "
            f'numpy.save("codebook.npy", index.reconstruct_n(0, index.ntotal))'
        )
    width, rows = int.from_bytes(head[4:8], "little"), int.from_bytes(head[8:16], "little")
    count = int.from_bytes(file.read(8), "little")
    rest = os.fstat(file.fileno()).st_size - file.tell()
    if len(head) < _HEADER_BYTES or not width or count != width * rows or count * 4 != rest:
        raise UserError(f"{path}: {rows} vectors of {width} in its header, {rest} bytes behind it; copy the file again")
    vectors_KD = np.frombuffer(file.read(rest), "<f4").reshape(rows, width)
    if kind == _INNER_PRODUCT and _norms_differ(vectors_KD):
        raise UserError(
            f"{path}: an index by inner product whose vectors differ in norm assigns otherwise than by distance; give another codebook"
        )
    return vectors_KD


def _norms_differ(vectors_KD: np.ndarray) -> bool:
    """Whether the largest inner product may be another centroid's than the least distance; of what is not finite nothing is said."""
    if not np.isfinite(vectors_KD).all():
        return False
    norms_K = np.linalg.norm(vectors_KD.astype(np.float64), axis=1)
    return bool(np.ptp(norms_K) > 1e-4 * norms_K.max())


def check_declared(path: str | os.PathLike, codebook_KD: np.ndarray, encoder: Encoder, made_for: str, layer: int) -> None:
    """Holds what the user says of a codebook against the encoder.

    Args:
      path: of the codebook, for messages.
      codebook_KD: its centroids.
      encoder: it is to be used with.
      made_for: the name of the model, or the fingerprint of the imported encoder, that it was made for.
      layer: whose features it was made of.

    Raises:
      UserError: another encoder, layer or width.
    """
    name = str(encoder.source.get("name", encoder.config.family))
    if made_for != encoder.fingerprint and made_for.rpartition("/")[2].casefold() != name.rpartition("/")[2].casefold():
        raise UserError(
            f"{path}: made for {made_for}, the encoder is {name} ({encoder.fingerprint}); import the encoder that it was made for"
        )
    tapped = encoder.layer
    if layer != tapped:
        raise UserError(f"{path}: made for layer {layer}, the encoder taps layer {tapped}; import the encoder again with --layer {layer}")
    if codebook_KD.shape[1] != encoder.config.width:
        raise UserError(
            f"{path}: centroids {codebook_KD.shape[1]} wide, the encoder's features are {encoder.config.width}; it is of another encoder"
        )


def explained(features_ND: np.ndarray, codebook_KD: np.ndarray) -> float:
    """1 less the mean squared distance to the nearest centroid by the variance of the features: 1 is perfect, below 0 worse than their mean."""
    x_ND = features_ND.astype(np.float64)
    nearest_ND = codebook_KD[kmeans.assign(features_ND, codebook_KD)]
    return float(1.0 - np.square(x_ND - nearest_ND).sum() / np.square(x_ND - x_ND.mean(0)).sum())


def check_measured(path: str | os.PathLike, codebook_KD: np.ndarray, features_ND: np.ndarray) -> tuple[float, float]:
    """Holds a codebook against features of the encoder: a name cannot tell which iteration of a model it was made for.

    mHuBERT-147 is the third iteration of its training, the faiss index published beside it belongs to the second (utter-project/fairseq#4).

    Args:
      path: of the codebook, for messages.
      codebook_KD: its centroids.
      features_ND: float32, of real recordings; every second row fits the clusters that the codebook is held against.

    Returns:
      What the codebook explains, and what those few clusters do.

    Raises:
      UserError: the codebook explains less than half of that, or there are too few frames to tell.
    """
    fresh = min(_FRESH_CLUSTERS, len(codebook_KD))
    if len(features_ND) < 20 * fresh:
        raise UserError(f"{path}: {len(features_ND)} frames are too few to check it, {20 * fresh} are needed; name more recordings")
    try:
        fitted_KD, _ = kmeans.fit(np.ascontiguousarray(features_ND[::2]), fresh, 20, seed=0)
    except UserError as error:
        raise UserError(f"{path}: the recordings cannot check it ({error}); name others") from error
    found, wanted = (explained(np.ascontiguousarray(features_ND[1::2]), centroids) for centroids in (codebook_KD, fitted_KD))
    if found < _SHARE * wanted:
        raise UserError(
            f"{path}: its {len(codebook_KD)} centroids explain {found:.0%} of the variance of this encoder's features, {fresh} clusters fitted on them "
            f"{wanted:.0%}: it was made for another encoder, layer or training iteration; fit one with `xretrieval units fit`"
        )
    return found, wanted
