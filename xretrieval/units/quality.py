"""How much units say about phones: the measures of HuBERT (arXiv 2106.07447, section on the quality of clusters), and how a codebook is used.

All phone measures are functions of `joint_PK`, how many frames have phone P and unit K; counts may be weighted. NumPy, float64.
"""

import numpy as np


def joint_counts(phones_F: np.ndarray, units_F: np.ndarray, phones: int, units: int, weights_F: np.ndarray | None = None) -> np.ndarray:
    """float64 [P, K]: frames by phone and unit.

    Args:
      phones_F, units_F: integers in [0, phones) and [0, units).
      phones, units: P and K.
      weights_F: how often each frame counts; once by default.
    """
    cells_F = phones_F.astype(np.int64) * units + units_F
    return np.bincount(cells_F, weights_F, minlength=phones * units).reshape(phones, units).astype(np.float64)


def entropy(counts: np.ndarray) -> float:
    """Entropy in bits of the distribution that counts of any shape make."""
    p = counts[counts > 0] / counts.sum()
    return float(-np.sum(p * np.log2(p)))


def perplexity(counts: np.ndarray) -> float:
    """2 to the entropy: as many equally frequent units would be as hard to guess."""
    return float(2.0 ** entropy(counts))


def pnmi(joint_PK: np.ndarray) -> float:
    """Phone-normalised mutual information I(phone; unit) / H(phone): the share of the uncertainty about a frame's phone that its unit takes away.

    0 to 1; there must be two phones or more.
    """
    phones, units = entropy(joint_PK.sum(1)), entropy(joint_PK.sum(0))
    return (phones + units - entropy(joint_PK)) / phones


def corrected_pnmi(joint_PK: np.ndarray) -> float:
    """PNMI with the first-order correction of each entropy (Miller 1955): few frames a cell make units look as if they told phones apart."""
    frames = joint_PK.sum()

    def corrected(counts: np.ndarray) -> float:
        return entropy(counts) + (np.count_nonzero(counts) - 1) / (2.0 * frames * np.log(2.0))

    phones, units = corrected(joint_PK.sum(1)), corrected(joint_PK.sum(0))
    return float((phones + units - corrected(joint_PK)) / phones)


def phone_purity(joint_PK: np.ndarray) -> float:
    """Share of frames whose phone is the most frequent one of their unit: the accuracy of units read as phones. Grows with K."""
    return float(joint_PK.max(0).sum() / joint_PK.sum())


def cluster_purity(joint_PK: np.ndarray) -> float:
    """Share of frames whose unit is the most frequent one of their phone. Falls with K: a codebook of one unit has 1."""
    return float(joint_PK.max(1).sum() / joint_PK.sum())


def runs(units_F: np.ndarray) -> int:
    """How many units are left where a run of one unit counts once."""
    return int(np.count_nonzero(np.diff(units_F)) + min(1, len(units_F)))
