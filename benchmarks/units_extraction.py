"""Bulk extraction of demo recordings: one worker, two workers, and the memory of the process that starts them."""

import itertools
import json
import os
import pathlib
import subprocess
import sys
import tempfile
import time

from benchmarks import rows

DEMO = pathlib.Path(os.environ.get("DEMO_DIR", "demo_run"))
UTTERANCES = 2_000
EXTRACT = "import sys; from xretrieval.units.extract import extract; extract(*sys.argv[1:4], num_shards=int(sys.argv[5]), num_workers=int(sys.argv[4]))"


def _manifest(path: pathlib.Path, count: int) -> None:
    """The first lines of the demo's training manifest, which is sorted by language."""
    with open(DEMO / "corpus/train.jsonl", encoding="utf-8") as lines, open(path, "w", encoding="utf-8") as out:
        for line in itertools.islice(lines, count):
            row = json.loads(line)
            out.write(json.dumps(row | {"audio": str((DEMO / "corpus").resolve() / row["audio"])}) + "\n")


def _run(root: pathlib.Path, count: int, workers: int, shards: int = 8) -> tuple[float, float]:
    """Seconds of a whole command, and the most memory that its own process had, in MB."""
    manifest, out = root / f"{count}.jsonl", root / f"{count}-{workers}-{shards}"
    _manifest(manifest, count)
    command = [sys.executable, "-c", EXTRACT, str(manifest), str(DEMO / "unit_tokenizer"), str(out), str(workers), str(shards)]
    begun = time.perf_counter()
    process = subprocess.Popen(command, env={**os.environ, "JAX_PLATFORMS": "cpu"})
    most = 0.0
    while process.poll() is None:
        try:
            status = pathlib.Path(f"/proc/{process.pid}/status").read_text()
        except OSError:
            break
        most = max([most, *(float(line.split()[1]) / 1e3 for line in status.splitlines() if line.startswith("VmHWM"))])
        time.sleep(0.05)
    if process.wait():
        raise SystemExit(process.returncode)
    return time.perf_counter() - begun, most


def extraction_rows() -> list[dict]:
    with tempfile.TemporaryDirectory() as folder:
        root = pathlib.Path(folder)
        one, _ = _run(root, UTTERANCES, 1)
        two, most = _run(root, UTTERANCES, 2)
        _, least = _run(root, UTTERANCES // 10, 2)
    return [
        rows.row(f"extraction of {UTTERANCES:,} recordings, two workers, seconds", two, one, "one worker", None),
        rows.row(f"memory of the parent, {UTTERANCES:,} recordings, MB", most, least, f"{UTTERANCES // 10} recordings", 1.1),
    ]
