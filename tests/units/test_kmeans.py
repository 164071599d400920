"""k-means against float64 NumPy: assignment to the last row, Lloyd's iterations, seeding, mini-batches."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from xretrieval.errors import UserError
from xretrieval.units import assignment, kmeans, kmeans_minibatch
from xretrieval.units import kmeans_tiles as tiles
from xretrieval.units.kmeans_seeding import more_seeds, seeds


def frames(rows=3_000, width=24, sounds=40, seed=0, offset=0.0):
    """Rows around centres of very different sizes."""
    rng = np.random.default_rng(seed)
    centres = rng.normal(size=(sounds, width)) * 3.0
    share = 1.0 / (1.0 + np.arange(sounds))
    x = centres[rng.choice(sounds, rows, p=share / share.sum())] + rng.normal(size=(rows, width)) * rng.uniform(0.2, 1.0, width)
    return (x + offset).astype(np.float32)


def distances(x, codebook):
    return np.square(x.astype(np.float64)[:, None] - codebook.astype(np.float64)[None]).sum(-1)


def near_ties(rows=400, width=16, seed=1):
    """Rows a hair's breadth beside the middle between two centroids, far from the origin."""
    rng = np.random.default_rng(seed)
    codebook = (rng.normal(size=(32, width)) + 100.0).astype(np.float32)
    pairs = np.array([rng.choice(32, 2, replace=False) for _ in range(rows)])
    middle = codebook[pairs].astype(np.float64).mean(1)
    towards = codebook[pairs[:, 0]].astype(np.float64) - codebook[pairs[:, 1]]
    return (middle + towards * rng.uniform(-1e-6, 1e-6, (rows, 1))).astype(np.float32), codebook


@pytest.mark.parametrize("offset", [0.0, 1000.0])
@pytest.mark.parametrize("rows", [1, 63, 1_025, 3_000])
def test_assignment_is_that_of_float64(rows, offset):
    x = frames(rows, offset=offset)
    codebook = frames(64, seed=5, offset=offset)
    assert (assignment.assign(x, codebook) == distances(x, codebook).argmin(1)).all()


def test_near_ties_are_decided_as_in_float64_and_are_reported():
    x, codebook = near_ties()
    exact = distances(x, codebook)
    assert (assignment.assign(x, codebook) == exact.argmin(1)).all()
    assert assignment.undecided_rate(x, codebook) > 0.5, "the case is no hard one"
    two = np.sort(exact, axis=1)[:, :2]
    assert assignment.tie_rate(x, codebook) == pytest.approx(np.mean(two[:, 1] - two[:, 0] <= 2.0**-23 * two[:, 1]), abs=1e-12)
    assert assignment.undecided_rate(frames(), frames(64, seed=5)) < 0.01


def test_the_lowest_id_wins_a_tie():
    codebook = np.repeat(frames(8, seed=3), 2, axis=0)
    assert (assignment.assign(codebook, codebook) % 2 == 0).all()


def test_distances_that_differ_in_the_last_bits_of_float64_are_no_tie():
    codebook = np.array([[1.0, 2.0**-24], [-1.0, 0.0]], np.float32)
    assert assignment.assign(np.zeros((3, 2), np.float32), codebook).tolist() == [1, 1, 1]


@pytest.mark.parametrize("devices", [1, 3, 8])
def test_ids_do_not_depend_on_batch_padding_or_devices(devices):
    chosen = jax.devices()[:devices]
    hard, codebook = near_ties()
    x = np.concatenate([hard, frames(2_100, 16, offset=100.0)])
    whole = assignment.assign(x, codebook)
    assert (assignment.assign(x, codebook, chosen) == whole).all()
    for cuts in ([1, 70, 333], [1_000, 1_001, 2_049]):
        assert (whole == np.concatenate([assignment.assign(part, codebook, chosen) for part in np.split(x, cuts)])).all()


def reference_lloyd(x, codebook, iterations):
    """Lloyd's iterations in float64 from a given codebook."""
    x, codebook = x.astype(np.float64), codebook.astype(np.float64)
    history = []
    for _ in range(iterations):
        distance = distances(x, codebook)
        label = distance.argmin(1)
        history.append(distance.min(1).mean())
        codebook = np.stack([x[label == k].mean(0) if (label == k).any() else codebook[k] for k in range(len(codebook))])
    return codebook, history


def test_lloyd_is_that_of_float64():
    x = frames()
    start = seeds(x, 24, np.random.default_rng(7))
    codebook, history = kmeans.fit(x, 24, 6, seed=7)
    wanted, inertia = reference_lloyd(x, start, len(history))
    np.testing.assert_allclose(history, inertia, rtol=1e-5)
    np.testing.assert_allclose(codebook, wanted, atol=1e-4)
    assert all(later <= earlier * (1 + 1e-6) for earlier, later in itertools.pairwise(history))


def test_the_same_on_one_device_and_on_eight():
    x = frames()
    one, first = kmeans.fit(x, 24, 8, seed=0, devices=jax.devices()[:1])
    eight, second = kmeans.fit(x, 24, 8, seed=0)
    np.testing.assert_allclose(one, eight, atol=1e-4)  # sums of thousands of rows in another order
    np.testing.assert_allclose(first, second, rtol=1e-5)


def test_a_seed_decides_everything():
    x = frames()
    for fit in (lambda seed: kmeans.fit(x, 24, 5, seed), lambda seed: kmeans_minibatch.fit_minibatch(x, 24, 500, 2, seed)):
        (first, _), (again, _), (other, _) = fit(3), fit(3), fit(4)
        assert (first == again).all()
        assert (first != other).any()


def test_a_mapped_file_gives_what_memory_does(tmp_path):
    x = frames()
    np.save(tmp_path / "x.npy", x)
    mapped = np.load(tmp_path / "x.npy", mmap_mode="r")
    assert (kmeans.fit(mapped, 24, 5, 0)[0] == kmeans.fit(x, 24, 5, 0)[0]).all()


@pytest.mark.parametrize("fit", [lambda x: kmeans.fit(x, 20, 30, 0), lambda x: kmeans_minibatch.fit_minibatch(x, 20, 500, 3, 0)])
def test_no_cluster_stays_empty(fit):
    """All rows but few are one point: a sample, or a mini-batch, has fewer distinct rows than there are clusters."""
    rng = np.random.default_rng(0)
    x = np.zeros((5_000, 6), np.float32)
    x[::200] = rng.normal(size=(25, 6))
    codebook, _ = fit(x)
    counts = np.bincount(assignment.assign(x, codebook), minlength=20)
    assert (counts > 0).all()


def test_a_cluster_that_an_epoch_of_mini_batches_left_without_rows_begins_anew(monkeypatch):
    """The first epoch moves these four so that the second leaves one of them without rows."""
    places = [[29, 20], [7, 26], [15, 29], [9, 7], [25, 14], [12, 0], [0, 7], [28, 22], [23, 6]]
    start = np.array([[-4.1, 13.8], [29.2, 9.8], [9.1, 21.3], [17.0, 36.2]], np.float32)
    x = np.repeat(np.array(places, np.float32), 20, axis=0)
    x += np.random.default_rng(0).normal(size=x.shape).astype(np.float32) * 0.1
    monkeypatch.setattr(kmeans_minibatch, "seeds", lambda *_: start)
    one, two, three = (kmeans_minibatch.fit_minibatch(x, 4, len(x), epochs, 0)[0] for epochs in (1, 2, 3))
    (empty,) = set(range(4)) - set(distances(x, one).argmin(1))
    assert (x == two[empty]).all(1).any()
    # What it had before counts no longer.
    np.testing.assert_allclose(three[empty], x[distances(x, two).argmin(1) == empty].mean(0), atol=1e-4)


def test_sums_by_a_matmul_are_those_by_scattering():
    """The way of accelerators; rows behind the last are nobody's."""
    rng = np.random.default_rng(0)
    x, ids = rng.normal(size=(300, 7)).astype(np.float32), rng.integers(0, 6, 300).astype(np.int32)
    before = rng.normal(size=(5, 7)).astype(np.float32)
    wanted = before.astype(np.float64)
    np.add.at(wanted, ids[ids < 5], x[ids < 5].astype(np.float64))
    for add in (tiles._scattered, tiles._multiplied):
        np.testing.assert_allclose(add(jnp.asarray(before), x, ids), wanted, atol=1e-4)


def test_an_accelerator_holds_the_rows_and_finds_the_same(monkeypatch):
    x = frames()
    wanted, history = kmeans.fit(x, 24, 8, 0, jax.devices()[:1])
    monkeypatch.setattr(tiles, "on_cpu", lambda mesh: False)
    # Five devices: what was compiled for the mesh of another test would be taken again.
    codebook, found = kmeans.fit(x, 24, 8, 0, jax.devices()[:5])
    np.testing.assert_allclose(codebook, wanted, atol=1e-4)
    np.testing.assert_allclose(found, history, rtol=1e-5)


def test_seeds_are_rows_that_differ_and_lie_far_apart():
    x = frames()
    chosen = seeds(x, 40, np.random.default_rng(0))
    assert len(np.unique(chosen, axis=0)) == 40
    assert all((x == row).all(1).any() for row in chosen)
    chance = x[np.random.default_rng(1).choice(len(x), 40, replace=False)]
    assert distances(x, chosen).min(1).mean() < 0.9 * distances(x, chance).min(1).mean()
    more = more_seeds(x, distances(x, chosen).min(1).astype(np.float32), chosen, 5, np.random.default_rng(2))
    assert len(np.unique(np.concatenate([chosen, more]), axis=0)) == 45


def reference_plus_plus(x, number, rng):
    """k-means++ of one draw a centroid, in float64."""
    chosen = [x[rng.integers(len(x))]]
    while len(chosen) < number:
        distance = distances(x, np.array(chosen)).min(1)
        chosen.append(x[rng.choice(len(x), p=distance / distance.sum())])
    return np.array(chosen)


def test_seeds_are_better_than_those_of_one_draw_each():
    x = frames(1_280, sounds=80)
    greedy, plain = (
        np.mean([distances(x, draw(x, 80, np.random.default_rng(seed))).min(1).mean() for seed in range(3)])
        for draw in (seeds, reference_plus_plus)
    )
    assert greedy < 0.8 * plain, greedy / plain


def test_mini_batches_come_near_to_lloyd():
    x = frames(12_000)
    codebook, history = kmeans_minibatch.fit_minibatch(x, 40, 1_000, 8, seed=0)
    lloyd, _ = kmeans.fit(x, 40, 40, seed=0)
    found, wanted = (distances(x, centroids).min(1).mean() for centroids in (codebook, lloyd))
    assert found < 1.1 * wanted
    assert history[-1] < history[0]


def test_a_mini_batch_of_all_rows_is_one_iteration_of_lloyd():
    x = frames()
    start = seeds(x, 24, np.random.default_rng(7))
    codebook, history = kmeans_minibatch.fit_minibatch(x, 24, len(x), 1, seed=7)
    wanted, inertia = reference_lloyd(x, start, 1)
    np.testing.assert_allclose(codebook, wanted, atol=1e-4)
    np.testing.assert_allclose(history, inertia, rtol=1e-5)


@pytest.mark.parametrize("fit", [lambda x, k: kmeans.fit(x, k, 5, 0), lambda x, k: kmeans_minibatch.fit_minibatch(x, k, 100, 2, 0)])
def test_frames_that_cannot_be_clustered_are_refused(fit):
    with pytest.raises(UserError, match="4 .*frames for 8 clusters"):
        fit(np.zeros((4, 2), np.float32), 8)
    with pytest.raises(UserError, match="only 3 distinct frames for 8 clusters"):
        fit(np.repeat(np.arange(6, dtype=np.float32).reshape(3, 2), 50, axis=0), 8)
    bad = frames()
    bad[17, 3] = np.nan
    with pytest.raises(UserError, match="NaN"):
        fit(bad, 8)


def test_a_codebook_of_another_width_is_refused():
    with pytest.raises(UserError, match="both must be as wide"):
        assignment.assign(frames(width=5), frames(width=6))
