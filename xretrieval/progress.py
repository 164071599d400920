"""Progress with rate and time left, on a terminal only."""

import sys
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

T = TypeVar("T")


def track(items: Iterable[T], total: int | None, label: str, amount: Callable[[T], float] | None = None, unit: str = "") -> Iterator[T]:
    """Yields `items`, drawing a bar with rate and time left where standard error is a terminal.

    Args:
      items: what is done one after another.
      total: their number, or None where it is not known.
      label: what they are.
      amount: what the rate counts of an item, in `unit`; by default items.
      unit: of the rate, e.g. "s of sound".
    """
    if not sys.stderr.isatty():
        yield from items
        return
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn

    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}"),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    done = 0.0
    with Progress(*columns, console=Console(stderr=True), transient=True) as progress:
        task = progress.add_task(label, total=total, rate="")
        for item in items:
            yield item
            done += amount(item) if amount else 1.0
            elapsed = progress.tasks[task].elapsed
            progress.update(task, advance=1, rate=f"{done / elapsed:,.1f} {unit}/s" if elapsed else "")
