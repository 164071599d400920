"""What every benchmark prints and writes: a list of rows."""

import argparse
import json
import pathlib
import statistics
import time
from collections.abc import Callable

from rich.console import Console
from rich.table import Table

from xretrieval import machine


def seconds(ours: Callable[[], object], peer: Callable[[], object], rounds: int = 5, steady: bool = False) -> tuple[float, float]:
    """Median seconds of each, timed in turns after one round of warm-up, so that both meet the same machine.

    `steady`: before each timed call comes one that is not. What repeats has the memory that the call before it had; the first call of a turn asks the
    system for it again, which took either side of a training step up to twice as long.
    """
    taken: tuple[list[float], list[float]] = ([], [])
    for number in range(rounds + 1):
        for side, call in enumerate((ours, peer)):
            if steady and number:
                call()
            begun = time.perf_counter()
            call()
            if number:
                taken[side].append(time.perf_counter() - begun)
    return statistics.median(taken[0]), statistics.median(taken[1])


def row(name: str, ours: float, peer: float, peer_name: str, bar: float | None, more_is_better: bool = False) -> dict:
    """One comparison: it holds where ours / peer is at most `bar`, or at least where more is better; without a bar it only informs."""
    ratio = ours / peer
    return {
        "name": name,
        "ours": ours,
        "peer": peer,
        "peer_name": peer_name,
        "ratio": ratio,
        "bar": bar,
        "holds": None if bar is None else ratio >= bar if more_is_better else ratio <= bar,
        "machine": machine.describe(),
    }


def _shown(value: float | bool | None, form: str = "") -> str:
    return "-" if value is None else format(value, form) if form else str(value)


def main(rows: Callable[[], list[dict]]) -> None:
    """Prints the rows, and writes them where `--json` says."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--json", required=True, metavar="FILE")
    path = pathlib.Path(parser.parse_args().json)
    found = rows()
    table = Table("name", "ours", "peer", "peer's name", "ours / peer", "bar", "holds")
    for r in found:
        table.add_row(
            r["name"],
            f"{r['ours']:.4g}",
            f"{r['peer']:.4g}",
            r["peer_name"],
            f"{r['ratio']:.2f}",
            _shown(r["bar"], "g"),
            _shown(r["holds"]),
        )
    Console().print(table)
    path.write_text(json.dumps(found, indent=2) + "\n")
    print(f"wrote {path}")
