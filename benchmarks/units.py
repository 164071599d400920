"""Speech units beside their peers: k-means, an encoder, decoding, and bulk extraction. Half an hour on two cores, most of it scikit-learn's.

`make bench NAME=units JSON=units.json` after `make demo`, whose recordings extraction is timed on. `PARTS=audio,extraction` in the environment runs those only.
"""

import os

import torch

from benchmarks import rows
from benchmarks.units_audio import audio_rows
from benchmarks.units_encoder import encoder_rows
from benchmarks.units_extraction import extraction_rows
from benchmarks.units_kmeans import kmeans_rows, minibatch_rows

PARTS = {"kmeans": kmeans_rows, "minibatch": minibatch_rows, "encoder": encoder_rows, "audio": audio_rows, "extraction": extraction_rows}


def run() -> list[dict]:
    torch.set_num_threads(len(os.sched_getaffinity(0)))
    chosen = os.environ.get("PARTS", ",".join(PARTS)).split(",")
    return [row for name in chosen for row in PARTS[name]()]


if __name__ == "__main__":
    rows.main(run)
