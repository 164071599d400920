"""k-means beside faiss, scikit-learn's MiniBatchKMeans as HuBERT's recipe sets it, and superkmeans: time to one inertia, and assignment.

`units.py` calls `kmeans_rows`; by itself: `PARTS=kmeans make bench NAME=units`. Five minutes or so on two cores; `PARTS=minibatch` takes longer.
"""

import importlib.metadata
import os
import time
from collections.abc import Callable

import faiss
import numpy as np
import sklearn
import superkmeans
from sklearn.cluster import MiniBatchKMeans

from benchmarks import rows
from xretrieval.units import assignment, kmeans

FRAMES, WIDTH, CLUSTERS, ITERATIONS = 200_000, 768, 1_024, 25
# fairseq's learn_kmeans.py for HuBERT.
HUBERT_RECIPE = {"batch_size": 10_000, "max_iter": 100, "n_init": 20, "tol": 0.0, "max_no_improvement": 100, "reassignment_ratio": 0.0}


def features(frames: int = FRAMES, width: int = WIDTH, sounds: int = 3_000, seed: int = 0) -> np.ndarray:
    """Rows like a speech encoder's: float32 [frames, width].

    Centres of `sounds`, some of them common and most rare, lie in a space whose axes fade; each cluster is long in a few directions of its own; a few
    dimensions are large and nearly constant, as in trained transformers.
    """
    rng = np.random.default_rng(seed)
    fading = (1.0 + np.arange(width)) ** -0.5
    rotation = np.linalg.qr(rng.normal(size=(width, width)))[0].astype(np.float32)
    centres = ((rng.normal(size=(sounds, width)) * fading).astype(np.float32) @ rotation) * 3.0
    share = 1.0 / (5.0 + np.arange(sounds))
    label_N = rng.choice(sounds, frames, p=share / share.sum())
    x_NW = (rng.standard_normal((frames, width), np.float32) * (0.7 * fading).astype(np.float32)) @ rotation
    for label in range(sounds):
        mine = label_N == label
        directions = rng.standard_normal((6, width), np.float32) / np.float32(np.sqrt(width))
        x_NW[mine] += centres[label] + rng.standard_normal((int(mine.sum()), 6), np.float32) * np.float32(1.5) @ directions
    x_NW[:, rng.choice(width, 4, replace=False)] += np.array([8.0, -12.0, 20.0, 5.0], np.float32)
    return x_NW


def inertia(x_NW: np.ndarray, codebook_KW: np.ndarray) -> float:
    """Mean squared distance to the nearest centroid."""
    found_NW = codebook_KW[assignment.assign(x_NW, codebook_KW)]
    return float(
        np.mean([np.square(a - b, dtype=np.float64).sum(1).mean() for a, b in zip(np.split(x_NW, 50), np.split(found_NW, 50), strict=True)])
    )


def timed(call: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    begun = time.perf_counter()
    codebook_KW = call()
    return time.perf_counter() - begun, codebook_KW


def by_faiss(x_NW: np.ndarray) -> np.ndarray:
    model = faiss.Kmeans(WIDTH, CLUSTERS, niter=ITERATIONS, seed=0, max_points_per_centroid=FRAMES)
    model.train(x_NW)
    return model.centroids


def by_superkmeans(x_NW: np.ndarray) -> np.ndarray:
    return np.asarray(
        superkmeans.SuperKMeans(
            CLUSTERS, WIDTH, hierarchical=False, iters=ITERATIONS, sampling_fraction=1.0, max_points_per_cluster=FRAMES
        ).train(x_NW)
    )


def kmeans_rows() -> list[dict]:
    faiss.omp_set_num_threads(len(os.sched_getaffinity(0)))
    x_NW = features()
    kmeans.fit(x_NW[:20_000], CLUSTERS, 2, seed=0)  # compiles
    faiss_name = f"faiss-cpu {faiss.__version__}"
    theirs, peer_KW = timed(lambda: by_faiss(x_NW))
    wanted = inertia(x_NW, peer_KW)
    # The history holds the inertia before each update: so many updates reach the peer's.
    _, history = kmeans.fit(x_NW, CLUSTERS, 2 * ITERATIONS, seed=0)
    enough = next((number for number, value in enumerate(history) if value <= wanted), len(history))
    ours, ours_KW = timed(lambda: kmeans.fit(x_NW, CLUSTERS, enough, seed=0)[0])
    again, _ = timed(lambda: by_faiss(x_NW))
    size = f"{FRAMES:,} x {WIDTH}, K = {CLUSTERS}"
    index = faiss.IndexFlatL2(WIDTH)
    index.add(ours_KW)
    some_NW = x_NW[:50_000]
    assigned = rows.seconds(lambda: assignment.assign(some_NW, ours_KW), lambda: index.search(some_NW, 1), rounds=3)
    same = float((assignment.assign(some_NW, ours_KW) == index.search(some_NW, 1)[1][:, 0]).mean())
    found = [
        rows.row(
            f"k-means, {size}: seconds to {ITERATIONS} iterations of faiss' inertia ({enough} of ours)",
            ours,
            min(theirs, again),
            faiss_name,
            1.2,
        ),
        rows.row("inertia then", inertia(x_NW, ours_KW), wanted, faiss_name, 1.005),
        rows.row("assigning 50,000 rows, seconds", *assigned, f"{faiss_name} IndexFlatL2", 1.0),
        rows.row("share of equal IDs", same, 1.0, f"{faiss_name} IndexFlatL2", None),
        rows.row("share of rows that float32 cannot decide", assignment.undecided_rate(some_NW, ours_KW), 1.0, "all rows", None),
        rows.row("share of rows that are tied in float32", assignment.tie_rate(some_NW, ours_KW), 1.0, "all rows", None),
    ]
    quick, quick_KW = timed(lambda: by_superkmeans(x_NW))
    name = f"superkmeans {importlib.metadata.version('superkmeans')}, its own stopping rule"
    found.append(rows.row("seconds", ours, quick, name, None))
    found.append(rows.row("inertia", inertia(x_NW, ours_KW), inertia(x_NW, quick_KW), name, None))
    return found


def minibatch_rows() -> list[dict]:
    """Beside HuBERT's own recipe; most of its ten minutes and more are scikit-learn's."""
    x_NW = features()
    kmeans.fit(x_NW[:20_000], CLUSTERS, 2, seed=0)  # compiles
    ours, ours_KW = timed(lambda: kmeans.fit(x_NW, CLUSTERS, ITERATIONS, seed=0)[0])
    slow, slow_KW = timed(lambda: MiniBatchKMeans(CLUSTERS, random_state=0, **HUBERT_RECIPE).fit(x_NW).cluster_centers_.astype(np.float32))
    name = f"scikit-learn {sklearn.__version__} MiniBatchKMeans, HuBERT's recipe"
    return [
        rows.row(f"{ITERATIONS} iterations, seconds", ours, slow, name, 0.2),
        rows.row("inertia then", inertia(x_NW, ours_KW), inertia(x_NW, slow_KW), name, None),
    ]


if __name__ == "__main__":
    rows.main(kmeans_rows)
