"""k-means beside faiss: time of a fit and of assigning, and how good the codebook is."""

import faiss
import numpy as np

from benchmarks import rows
from xretrieval.units import kmeans

FRAMES, WIDTH, CLUSTERS, ITERATIONS = 100_000, 104, 256, 10


def run() -> list[dict]:
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(400, WIDTH))
    x_NW = (centres[rng.integers(400, size=FRAMES)] + 0.7 * rng.normal(size=(FRAMES, WIDTH))).astype(np.float32)
    fitted: dict[str, np.ndarray] = {}

    def ours():
        fitted["ours"], _ = kmeans.fit(x_NW, CLUSTERS, ITERATIONS, seed=0)

    def peer():
        model = faiss.Kmeans(WIDTH, CLUSTERS, niter=ITERATIONS, seed=0, max_points_per_centroid=FRAMES)
        model.train(x_NW)
        fitted["peer"] = model.centroids

    def inertia(codebook_KW: np.ndarray) -> float:
        search = faiss.IndexFlatL2(WIDTH)
        search.add(codebook_KW)
        return float(search.search(x_NW, 1)[0].mean(dtype=np.float64))

    fit = rows.seconds(ours, peer, rounds=3)
    search = faiss.IndexFlatL2(WIDTH)
    search.add(fitted["ours"])
    assign = rows.seconds(lambda: kmeans.assign(x_NW[:20_000], fitted["ours"]), lambda: search.search(x_NW[:20_000], 1))
    name = f"faiss-cpu {faiss.__version__}"
    return [
        rows.row(f"k-means fit, {FRAMES} x {WIDTH}, K = {CLUSTERS}, {ITERATIONS} iterations, seconds", *fit, name, 2.0),
        rows.row("k-means inertia after it", inertia(fitted["ours"]), inertia(fitted["peer"]), name, 1.02),
        rows.row("assigning 20,000 frames in tiles of 64, seconds", *assign, name, 4.0),
    ]


if __name__ == "__main__":
    rows.main(run)
