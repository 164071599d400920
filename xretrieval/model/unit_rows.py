"""How the embeddings of units start beside the text rows of an LLM."""

import dataclasses

import numpy as np

from xretrieval.errors import UserError, check_fields

CHOICES = ("zeros", "normal", "mean", "codebook")


@dataclasses.dataclass(frozen=True)
class UnitInit:
    """How the unit embeddings start, see `unit_rows`; the same seed gives the same rows."""

    how: str = "normal"
    seed: int = 0

    def __post_init__(self):
        check_fields(self)
        _check(self.how)


@dataclasses.dataclass(frozen=True)
class TextStatistics:
    """Mean and standard deviation (of the whole, not of a sample) of the text rows by dimension, float64 [D]."""

    mean_D: np.ndarray
    std_D: np.ndarray


def text_statistics(text_VD: np.ndarray, block: int = 1 << 20) -> TextStatistics:
    """Statistics of the rows of a table that are not all zero: those are padding, or were never used.

    Args:
      text_VD: any float dtype, bfloat16 too; a memory-mapped table stays on disk.
      block: values that are in float64 at a time (8 MB).

    Raises:
      UserError: no row, or a value that is not finite.
    """
    rows, width = text_VD.shape
    step = max(1, block // width)
    count, mean_D, squares_D = 0, np.zeros(width), np.zeros(width)
    for start in range(0, rows, step):
        block_ND = np.asarray(text_VD[start : start + step]).astype(np.float64)
        block_ND = block_ND[np.any(block_ND != 0.0, axis=1)]
        if not len(block_ND):
            continue
        if not np.isfinite(block_ND).all():
            raise UserError(
                f"embedding.text_VD: a value in rows {start} to {min(start + step, rows) - 1} is not finite; import the LLM again"
            )
        # Two sets' squared deviations add up, and the distance of their means (Chan, Golub, LeVeque 1979): no large numbers cancel.
        block_mean_D = block_ND.mean(axis=0)
        apart_D, total = block_mean_D - mean_D, count + len(block_ND)
        squares_D += ((block_ND - block_mean_D) ** 2).sum(axis=0) + apart_D**2 * (count * len(block_ND) / total)
        mean_D += apart_D * (len(block_ND) / total)
        count = total
    if not count:
        raise UserError(f"embedding.text_VD: all {rows} text rows are zero: units have no scale to start from; import the LLM again")
    return TextStatistics(mean_D, np.sqrt(squares_D / count))


def unit_rows(how: str, text: TextStatistics, num_units: int, seed: int, codebook_KW: np.ndarray | None = None) -> np.ndarray:
    """The first values of the unit embeddings, float32 [a, D].

    Args:
      how: "zeros": AudioPaLM's. "normal": each dimension drawn with the text rows' mean and standard deviation. "mean": the text rows'
        mean, and noise of a tenth of their standard deviation. "codebook": the units' centroids, so that neighbouring units start as
        neighbours. They are turned at random into D dimensions (no distance changes where W <= D; beyond that by Johnson and
        Lindenstrauss) and brought to the text rows' mean and total variance by one factor: a factor a dimension would change the
        distances, by which the codebook tells units apart.
      text: of the text rows.
      num_units: a.
      seed: of the draws.
      codebook_KW: centroids of the unit tokenizer, for "codebook".

    Raises:
      UserError: another `how`, or "codebook" without a finite codebook of `num_units` centroids.
    """
    _check(how)
    rng, width = np.random.default_rng(seed), text.mean_D.shape[0]
    if how == "zeros":
        return np.zeros((num_units, width), np.float32)
    if how == "codebook":
        return _from_codebook(text, num_units, rng, codebook_KW)
    scale = 1.0 if how == "normal" else 0.1
    return (text.mean_D + scale * text.std_D * rng.standard_normal((num_units, width))).astype(np.float32)


def _from_codebook(text: TextStatistics, num_units: int, rng: np.random.Generator, codebook_KW: np.ndarray | None) -> np.ndarray:
    if codebook_KW is None:
        raise UserError('UnitInit.how = "codebook" needs the codebook of a unit tokenizer; give it, or set UnitInit.how to another choice')
    if codebook_KW.ndim != 2 or len(codebook_KW) != num_units:
        raise UserError(f"the codebook is {list(codebook_KW.shape)} for {num_units} units: wrong unit tokenizer for this vocabulary")
    if not np.isfinite(codebook_KW).all():
        raise UserError("the codebook holds a value that is not finite; fit the unit tokenizer again with `xretrieval units fit`")
    centred_KW = codebook_KW - codebook_KW.mean(axis=0, dtype=np.float64)
    turned_KD = centred_KW @ _orthonormal(codebook_KW.shape[1], text.mean_D.shape[0], rng)
    variance = (turned_KD**2).sum() / max(num_units, 1)
    factor = np.sqrt((text.std_D**2).sum() / variance) if variance else 0.0  # one unit, or all alike: there is no distance to keep
    return (text.mean_D + factor * turned_KD).astype(np.float32)


def _orthonormal(rows: int, columns: int, rng: np.random.Generator) -> np.ndarray:
    """A random matrix, float64 [rows, columns], uniform among those with orthonormal rows (or columns, where there are fewer)."""
    q, r = np.linalg.qr(rng.standard_normal((max(rows, columns), min(rows, columns))))
    q *= np.where(np.diagonal(r) < 0.0, -1.0, 1.0)  # else the signs are LAPACK's choice
    return q.T if rows < columns else q


def _check(how: str) -> None:
    if how not in CHOICES:
        raise UserError(f"UnitInit.how = {how!r} must be one of {', '.join(CHOICES)}")
