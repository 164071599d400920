"""`data inspect`: what a task's examples look like, step by step, and what they are like as a whole."""

import collections
import functools
import itertools
import os
import pathlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.console import Console
from rich.table import Table

from xretrieval.data.build import run_dataset
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError

if TYPE_CHECKING:
    import seqio
    import tensorflow as tf

SIDES = ("inputs", "targets")
_BUCKETS = 12
_SHOWN_UNITS = 6
_SHOWN_CHARACTERS = 160


@dataclass
class Side:
    """The inputs or the targets of the examples that were looked at.

    Attributes:
      lengths: IDs of each, prefix and suffix included.
      ids, units, unknown: all IDs; those that are units; those that stand for characters that the text tokenizer does not know.
      times: how often each sequence occurs, by a hash of it.
    """

    lengths: list[int] = field(default_factory=list)
    ids: int = 0
    units: int = 0
    unknown: int = 0
    times: collections.Counter = field(default_factory=collections.Counter)

    def add(self, ids_L: np.ndarray, vocabulary: Vocabulary) -> int:
        """Counts one sequence; returns its hash."""
        self.lengths.append(len(ids_L))
        self.ids += len(ids_L)
        self.units += int(np.sum(ids_L >= vocabulary.text_size))
        self.unknown += 0 if vocabulary.unknown_id is None else int(np.sum(ids_L == vocabulary.unknown_id))
        key = hash(ids_L.tobytes())
        self.times[key] += 1
        return key


@dataclass
class Inspection:
    """What `inspect` found.

    Attributes:
      task, split: what was looked at.
      available: lines of the source that can give an example.
      one_in: 1 where all examples were looked at; else only those whose pair ID is a multiple of it: all of a meaning, or none.
      examples: that were looked at.
      stages: the source, then each step of the task: its name and the first examples behind it.
      sides: `inputs` and `targets`.
      pair_ids, pairs: how often each pair ID, and each pair of inputs and targets, occurs.
    """

    task: str
    split: str
    available: int
    one_in: int
    examples: int = 0
    stages: list[tuple[str, list[dict]]] = field(default_factory=list)
    sides: dict[str, Side] = field(default_factory=lambda: {side: Side() for side in SIDES})
    pair_ids: collections.Counter = field(default_factory=collections.Counter)
    pairs: collections.Counter = field(default_factory=collections.Counter)


def inspect(
    task: "seqio.Task", vocabulary: Vocabulary, split: str = "train", shown: int = 3, sample: int = 20_000, out_dir: str | None = None
) -> Inspection:
    """Looks at the examples of a task, prints what it finds and returns it.

    Args:
      task: as `mixture` registers it.
      vocabulary: of the mixture.
      split: of the task.
      shown: examples that are printed behind every step.
      sample: of a larger task, about so many examples are looked at.
      out_dir: folder for `TASK.SPLIT.png`, the lengths of both sides as histograms; None: no picture.

    Raises:
      UserError: no such split, no example in it, or what a step of the task raises.
    """
    if split not in task.splits:
        raise UserError(f"task {task.name} has no split {split!r}; it has {', '.join(task.splits)}")
    available = task.source.num_input_examples(split)
    found = Inspection(task.name, split, available, max(1, -(-available // sample)))
    source = task.source.get_dataset(split, shuffle=False)
    if found.one_in > 1:
        source = source.filter(lambda example: example["pair_id"] % found.one_in == 0)
    what = f"task {task.name}, {split}"
    for name, dataset in _stages(task, source.take(shown)):
        found.stages.append((name, list(run_dataset(dataset, what))))
    *_, (_, finished) = _stages(task, source)
    for example in run_dataset(finished, what):
        found.examples += 1
        found.pairs[tuple(found.sides[side].add(example[side], vocabulary) for side in SIDES)] += 1
        found.pair_ids[int(example["pair_id"])] += 1
    if not found.examples:
        raise UserError(f"{what}: no examples to look at" + ("; give a larger sample" if found.one_in > 1 else ""))
    print_inspection(found, vocabulary)
    if out_dir is not None:
        print(f"wrote {draw(found, out_dir)}")
    return found


def _stages(task: "seqio.Task", dataset: "tf.data.Dataset") -> Iterator[tuple[str, "tf.data.Dataset"]]:
    """The dataset as it comes from the source, and behind each preprocessor."""
    import seqio

    yield "source", dataset
    for step in task.preprocessors:
        if isinstance(step, seqio.CacheDatasetPlaceholder):
            continue  # where `data build` stops; it changes nothing
        dataset = seqio.utils.add_kwargs_to_transform(step, sequence_length=None, output_features=task.output_features)(dataset)
        yield (step.func if isinstance(step, functools.partial) else step).__name__, dataset


def print_inspection(found: Inspection, vocabulary: Vocabulary) -> None:
    """Examples behind every step, histograms of lengths, shares and duplicates."""
    console = Console(highlight=False, markup=False, soft_wrap=True)
    for number in range(len(found.stages[0][1])):
        console.print(f"\nexample {number + 1}")
        for name, examples in found.stages:
            console.print(f"  {name}")
            for key, value in examples[number].items():
                console.print(f"    {key}: {readable(value, vocabulary)}")
    if found.one_in > 1:
        console.print(
            f"\nA sample of {found.task}, {found.split}: {found.examples:,} of about {found.available:,} examples, those whose pair ID is a "
            f"multiple of {found.one_in}. Equal sides with different pair IDs are found in part."
        )
    else:
        console.print(f"\nAll {found.examples:,} examples of {found.task}, {found.split}")
    for name, side in found.sides.items():
        lengths_N = np.array(side.lengths)
        console.print(f"\n{name}: {lengths_N.mean():.1f} IDs on average, median {np.median(lengths_N):.0f}, longest {lengths_N.max()}")
        for first, last, count in buckets(lengths_N):
            bar = "█" * round(50 * count / len(lengths_N))
            console.print(f"  {first:>6} to {last:<6} {count:>9,} {bar or ('▏' if count else '')}")
    console.print()
    console.print(_shares(found))
    console.print(
        f"{repeated(found.pair_ids):,} examples have the pair ID of an earlier one (such are never negatives of each other); "
        f"{repeated(found.pairs):,} equal an earlier one in both sides"
    )


def _shares(found: Inspection) -> Table:
    table = Table(show_edge=False)
    for column in ("", *SIDES):
        table.add_column(column, justify="right" if column else "left")
    sides = [found.sides[side] for side in SIDES]
    table.add_row("IDs that are units", *(f"{side.units / side.ids:.2%}" for side in sides))
    table.add_row("IDs of unknown characters", *(f"{side.unknown / side.ids:.2%}" for side in sides))
    table.add_row("equal an earlier one", *(f"{repeated(side.times):,} ({repeated(side.times) / found.examples:.1%})" for side in sides))
    return table


def repeated(times: collections.Counter) -> int:
    """How many examples repeat an earlier one."""
    return times.total() - len(times)


def readable(value: Any, vocabulary: Vocabulary) -> str:
    """A feature in one line: text decoded, units counted, what is long cut with a note of how long it is."""
    if isinstance(value, bytes):
        return _cut(value.decode())
    if np.ndim(value) == 0:
        return str(value)
    parts = []
    for is_units, run in itertools.groupby(value.tolist(), lambda i: i >= vocabulary.text_size):
        ids = list(run)
        units = " ".join(str(i - vocabulary.text_size) for i in ids[:_SHOWN_UNITS]) + (" …" if len(ids) > _SHOWN_UNITS else "")
        parts.append(f"⟨{len(ids)} units: {units}⟩" if is_units else _cut(vocabulary.decode(ids)))
    return f"{' '.join(parts)}  ({len(value)} IDs)"


def _cut(text: str) -> str:
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}… ({len(text)} characters)"


def buckets(lengths_N: np.ndarray) -> list[tuple[int, int, int]]:
    """(first length, last length, how many) of at most 12 buckets of one width, from 1 on."""
    width = -(-int(lengths_N.max()) // _BUCKETS)
    counts = np.bincount((lengths_N - 1) // width)
    return [(i * width + 1, (i + 1) * width, int(count)) for i, count in enumerate(counts)]


def draw(found: Inspection, out_dir: str | os.PathLike) -> pathlib.Path:
    """Histograms of the lengths of both sides, as a picture; returns its path."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    path = pathlib.Path(out_dir) / f"{found.task}.{found.split}.png"
    figure, axes = plt.subplots(1, 2, figsize=(10, 3.5), layout="constrained")
    for axis, (name, side) in zip(axes, found.sides.items(), strict=True):
        axis.hist(side.lengths, bins=40)
        axis.set_title(f"{name} ({side.units / side.ids:.0%} units)")
        axis.set_xlabel("IDs")
    axes[0].set_ylabel("examples" if found.one_in == 1 else f"examples of a sample, 1 in {found.one_in}")
    figure.suptitle(f"{found.task}, {found.split}")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=120)
    except OSError as error:
        raise UserError(f"{path}: cannot be written ({error.strerror}); give another folder") from error
    finally:
        plt.close(figure)
    return path
