"""Writes tests/data/parity/codebooks/: the same few vectors as faiss writes them in flat indices, and in one that is not flat."""

import pathlib

import faiss
import numpy as np

OUT = pathlib.Path(__file__).parents[1] / "data" / "parity"


def write(out: pathlib.Path) -> None:
    """Writes the files under `out`/codebooks."""
    folder = out / "codebooks"
    folder.mkdir(parents=True, exist_ok=True)
    vectors_KD = np.random.default_rng(0).normal(size=(7, 5)).astype(np.float32)
    unit_KD = vectors_KD / np.linalg.norm(vectors_KD, axis=1, keepdims=True)
    flat = {
        "flat_l2": (faiss.IndexFlatL2, vectors_KD),
        "flat_ip": (faiss.IndexFlatIP, vectors_KD),
        "flat_ip_unit": (faiss.IndexFlatIP, unit_KD),
    }
    for name, (make, rows) in flat.items():
        index = make(rows.shape[1])
        index.add(rows)
        faiss.write_index(index, str(folder / f"{name}.faissindex"))
        np.save(folder / f"{name}.npy", rows, allow_pickle=False)
    coarse = faiss.IndexFlatL2(5)
    ivf = faiss.IndexIVFFlat(coarse, 5, 2)
    ivf.train(vectors_KD)
    ivf.add(vectors_KD)
    faiss.write_index(ivf, str(folder / "ivf.faissindex"))


if __name__ == "__main__":
    write(OUT)
