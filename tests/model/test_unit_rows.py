"""First values of the unit embeddings: moments against NumPy in float64, neighbours of the codebook, each error."""

import ml_dtypes
import numpy as np
import pytest

from xretrieval.errors import UserError
from xretrieval.model import unit_rows
from xretrieval.model.unit_rows import CHOICES, UnitInit, text_statistics

WIDTH = 48


@pytest.fixture(scope="module")
def table_VD():
    """Text rows with another mean and scale in each dimension, rows of zeros among them and at the end."""
    rng = np.random.default_rng(0)
    table_VD = rng.normal(size=(3000, WIDTH)) * rng.uniform(0.01, 2.0, WIDTH) + rng.normal(size=WIDTH) * 3.0
    table_VD[[0, 17]] = 0.0
    table_VD[-100:] = 0.0
    return table_VD.astype(np.float32)


@pytest.fixture(scope="module")
def text(table_VD):
    return text_statistics(table_VD)


def codebook(num_units, width, seed=1):
    """Centroids in clusters, so that some units are much nearer than others; far from the origin, scales differ by dimension."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(num_units // 8, width)) * rng.uniform(0.2, 3.0, width)
    return (np.repeat(centres, 8, axis=0) + 0.5 * rng.normal(size=(num_units, width)) + 40.0).astype(np.float32)


def distances(x_KW):
    """Of every pair, the definition."""
    x_KW = x_KW.astype(np.float64)
    return np.sqrt(((x_KW[:, None] - x_KW[None]) ** 2).sum(-1))


def pairs_of(x_KW):
    return distances(x_KW)[np.triu_indices(len(x_KW), 1)]


def rank_correlation(a, b):
    ranks = [np.argsort(np.argsort(x)) for x in (a, b)]
    return np.corrcoef(*ranks)[0, 1]


def neighbour_overlap(a_KW, b_KW, k=7):
    nearest = [np.argsort(distances(x) + np.diag(np.full(len(x), np.inf)), axis=1)[:, :k] for x in (a_KW, b_KW)]
    return np.mean([len(set(a) & set(b)) / k for a, b in zip(*nearest, strict=True)])


@pytest.mark.parametrize("block", [1, 5 * WIDTH, 97 * WIDTH, 1 << 20], ids=["a row", "five rows", "97 rows", "whole"])
@pytest.mark.parametrize("dtype", [np.float32, np.float16, ml_dtypes.bfloat16])
def test_statistics_are_those_of_the_rows_that_are_not_zero(table_VD, block, dtype):
    stored_VD = table_VD.astype(dtype)
    rows_VD = np.delete(stored_VD.astype(np.float64)[:-100], [0, 17], axis=0)
    found = text_statistics(stored_VD, block)
    assert found.mean_D.dtype == found.std_D.dtype == np.float64
    np.testing.assert_allclose(found.mean_D, rows_VD.mean(0), rtol=1e-12)
    np.testing.assert_allclose(found.std_D, rows_VD.std(0), rtol=1e-12)


def test_statistics_of_a_small_spread_far_from_zero_do_not_cancel():
    table_VD = 1e6 + np.random.default_rng(0).normal(size=(500, 4))
    np.testing.assert_allclose(text_statistics(table_VD, 64).std_D, table_VD.std(0), rtol=1e-9)


def test_statistics_read_a_memory_mapped_table_a_block_at_a_time(table_VD, text, tmp_path):
    np.save(tmp_path / "table.npy", table_VD)
    found = text_statistics(np.load(tmp_path / "table.npy", mmap_mode="r"))
    np.testing.assert_array_equal(found.std_D, text.std_D)


@pytest.mark.parametrize("how", CHOICES)
def test_rows_follow_from_the_seed(text, how):
    make = lambda seed: unit_rows.unit_rows(how, text, 64, seed, codebook(64, 20))
    assert make(3).dtype == np.float32
    assert make(3).shape == (64, WIDTH)
    np.testing.assert_array_equal(make(3), make(3))
    assert (make(3) == make(4)).all() == (how == "zeros")


def test_zeros(text):
    assert not unit_rows.unit_rows("zeros", text, 5, 0).any()


@pytest.mark.parametrize("how, scale", [("normal", 1.0), ("mean", 0.1)])
def test_moments_are_those_of_the_text_rows_in_every_dimension(text, how, scale):
    units = 40_000
    rows_AD = unit_rows.unit_rows(how, text, units, 0).astype(np.float64)
    # Five standard errors of a mean and of a standard deviation.
    np.testing.assert_array_less(np.abs(rows_AD.mean(0) - text.mean_D), 5 * scale * text.std_D / np.sqrt(units))
    np.testing.assert_allclose(rows_AD.std(0), scale * text.std_D, rtol=5 / np.sqrt(2 * units))


def test_codebook_keeps_every_distance_where_it_fits_into_the_width(text):
    codebook_KW = codebook(128, 20)
    rows_AD = unit_rows.unit_rows("codebook", text, 128, 0, codebook_KW)
    ratio = pairs_of(rows_AD) / pairs_of(codebook_KW)
    np.testing.assert_allclose(ratio, ratio[0], rtol=1e-4)
    assert neighbour_overlap(rows_AD, codebook_KW) == 1.0


@pytest.mark.parametrize("width", [WIDTH, 2 * WIDTH, 20 * WIDTH])
def test_codebook_keeps_neighbours_where_it_is_as_wide_or_wider(text, width):
    codebook_KW = codebook(128, width)
    rows_AD = unit_rows.unit_rows("codebook", text, 128, 0, codebook_KW)
    correlation, overlap = rank_correlation(pairs_of(rows_AD), pairs_of(codebook_KW)), neighbour_overlap(rows_AD, codebook_KW)
    # Of a far wider codebook the ranks of all distances blur (three seeds: 0.82 to 0.85 and 0.39 to 0.45), the neighbours stay.
    assert correlation > {WIDTH: 0.999, 2 * WIDTH: 0.75, 20 * WIDTH: 0.35}[width]
    assert overlap > 0.95
    chance = unit_rows.unit_rows("normal", text, 128, 0)
    assert abs(rank_correlation(pairs_of(chance), pairs_of(codebook_KW))) < 0.15, "the measure tells"
    assert neighbour_overlap(chance, codebook_KW) < 0.15


@pytest.mark.parametrize("width", [20, 10 * WIDTH])
def test_codebook_rows_have_the_text_rows_mean_and_total_variance(text, width):
    rows_AD = unit_rows.unit_rows("codebook", text, 256, 0, codebook(256, width)).astype(np.float64)
    np.testing.assert_allclose(rows_AD.mean(0), text.mean_D, atol=1e-4)
    np.testing.assert_allclose(rows_AD.var(0).sum(), (text.std_D**2).sum(), rtol=1e-5)


def test_codebook_without_distances_is_the_mean(text):
    for codebook_KW in (codebook(8, 20)[:1], np.ones((4, 20), np.float32)):
        rows_AD = unit_rows.unit_rows("codebook", text, len(codebook_KW), 0, codebook_KW)
        np.testing.assert_allclose(rows_AD, np.tile(text.mean_D, (len(codebook_KW), 1)), rtol=1e-6)


def test_errors_say_what_is_wrong(table_VD, text):
    for make in (lambda: UnitInit("zero"), lambda: unit_rows.unit_rows("zero", text, 4, 0)):
        with pytest.raises(UserError, match=r"UnitInit.how = 'zero' must be one of zeros, normal, mean, codebook"):
            make()
    with pytest.raises(UserError, match="needs the codebook"):
        unit_rows.unit_rows("codebook", text, 4, 0)
    with pytest.raises(UserError, match=r"the codebook is \[8, 20\] for 4 units"):
        unit_rows.unit_rows("codebook", text, 4, 0, codebook(8, 20))
    with pytest.raises(UserError, match="not finite"):
        unit_rows.unit_rows("codebook", text, 8, 0, np.full((8, 20), np.nan))
    with pytest.raises(UserError, match="all 100 text rows are zero"):
        text_statistics(table_VD[-100:])
    broken_VD = table_VD.copy()
    broken_VD[2000, 3] = np.inf
    with pytest.raises(UserError, match=r"embedding.text_VD: a value in rows 0 to 2999 is not finite"):
        text_statistics(broken_VD)
