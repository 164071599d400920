"""The report of an evaluation: headline, a table in the terminal, `report.json` and `report.png`."""

import json
import os
import pathlib
import statistics
from collections.abc import Iterable
from typing import Any

import matplotlib
from rich import box
from rich.console import Console
from rich.table import Table

from xretrieval.errors import UserError
from xretrieval.languages import language

# Drawn to a file, never on a screen, whatever the machine has.
matplotlib.use("Agg")
import matplotlib.pyplot as plt

ENGLISH = "en_us"
_COLOURS = {True: "#2a6fb0", False: "#d9822b"}
_GROUPS = {True: "trained languages", False: "languages never heard in training"}
_PANELS = (
    ("speech_to_text", "speech → transcript"),
    ("text_to_speech", "transcript → speech"),
    ("speech_to_english", "speech → English text"),
)


def headline(languages: dict[str, dict[str, Any]]) -> dict[str, float | int | None]:
    """Averages over languages, each language with the same weight, seen and unseen apart; None where no language has the figure.

    Args:
      languages: by FLEURS code: `seen`, and metrics (see `retrieval_metrics`) under `speech_to_text`, `text_to_speech`, both with
        `_joint_pool` appended, `speech_to_english`, and `held_out_voices` with the same names inside.

    Returns:
      R@1 averages; `chance`, the average over all languages' own pools; `pool_size`, the smallest of these; `joint_pool_size`.
      English is left out of the average of speech → English, where it would look for its own transcript.
    """
    foreign = {code: entry for code, entry in languages.items() if code != ENGLISH}
    own = [entry["speech_to_text"] for entry in languages.values() if "speech_to_text" in entry]
    joint = [entry["speech_to_text_joint_pool"]["pool_size"] for entry in languages.values() if "speech_to_text_joint_pool" in entry]
    held_out = {code: entry["held_out_voices"] | {"seen": entry["seen"]} for code, entry in languages.items() if "held_out_voices" in entry}
    return {
        "speech_to_text_r1_seen": _mean_r1(languages, "speech_to_text", True),
        "text_to_speech_r1_seen": _mean_r1(languages, "text_to_speech", True),
        "speech_to_english_r1_seen": _mean_r1(foreign, "speech_to_english", True),
        "speech_to_text_r1_unseen": _mean_r1(languages, "speech_to_text", False),
        "text_to_speech_r1_unseen": _mean_r1(languages, "text_to_speech", False),
        "speech_to_english_r1_unseen": _mean_r1(foreign, "speech_to_english", False),
        "speech_to_text_r1_seen_joint_pool": _mean_r1(languages, "speech_to_text_joint_pool", True),
        "speech_to_text_r1_unseen_joint_pool": _mean_r1(languages, "speech_to_text_joint_pool", False),
        "speech_to_text_r1_seen_held_out_voices": _mean_r1(held_out, "speech_to_text", True),
        "speech_to_text_r1_unseen_held_out_voices": _mean_r1(held_out, "speech_to_text", False),
        "chance": _mean(metrics["chance"] for metrics in own),
        "pool_size": min((metrics["pool_size"] for metrics in own), default=None),
        "joint_pool_size": max(joint, default=None),
    }


def _mean_r1(languages: dict[str, dict], direction: str, seen: bool) -> float | None:
    return _mean(entry[direction]["R@1"] for entry in languages.values() if entry["seen"] == seen and direction in entry)


def _mean(values: Iterable[float]) -> float | None:
    found = list(values)
    return statistics.fmean(found) if found else None


def write_report(results: dict[str, Any], out_dir: str | os.PathLike) -> tuple[pathlib.Path, pathlib.Path]:
    """Writes `report.json` and `report.png`, each whole or not at all, and returns their paths.

    Args:
      results: `headline` (see `headline`), `languages` (its argument), and whatever else belongs to the run, such as `seconds`, `machine`
        and `command`; plain JSON values.
      out_dir: a folder; made if it is not there.

    Raises:
      UserError: the folder cannot be written.
    """
    out = pathlib.Path(out_dir)
    as_json, picture = out / "report.json", out / "report.png"
    temporary = out / f"report.{os.getpid()}.tmp"
    try:
        out.mkdir(parents=True, exist_ok=True)
        try:
            temporary.write_text(json.dumps(results, indent=2, ensure_ascii=False, allow_nan=False) + "\n", encoding="utf-8")
            os.replace(temporary, as_json)
            draw_report(results, temporary)
            os.replace(temporary, picture)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{out}: the report cannot be written ({error.strerror}); free space or give another folder") from error
    return as_json, picture


def print_report(results: dict[str, Any], console: Console | None = None) -> None:
    """Prints R@1 (and R@5, R@10, MRR of speech → transcript) by language, seen and unseen apart, in percent."""
    console = console or Console()
    head = results["headline"]
    table = Table(box=box.SIMPLE_HEAD, title="Retrieval, % found", padding=(0, 1, 0, 0))
    table.add_column("language", no_wrap=True)
    for column in ("speech→\ntext R@1", "\nR@5", "\nR@10", "\nMRR", "joint\nR@1", "new\nvoice", "text→\nspeech", "→Eng-\nlish"):
        table.add_column(column, justify="right", no_wrap=True)
    for seen in (True, False):
        group = _group(results["languages"], seen)
        if not group:
            continue
        table.add_section()
        for code, entry in group:
            table.add_row(language(code).name, *(_percent(value, 0) for value in _row(code, entry)))
        columns = zip(*(_row(code, entry) for code, entry in group), strict=True)
        means = [_percent(_mean(value for value in column if value is not None)) for column in columns]
        table.add_row("mean, seen" if seen else "mean, unseen", *means, style="bold")
    console.print(table)
    if head["pool_size"] is not None:
        joint = f", {head['joint_pool_size']} in the joint pool of all languages" if head["joint_pool_size"] else ""
        console.print(
            f"{head['pool_size']} candidates in a language's own pool (chance {_percent(head['chance'])} %){joint}. "
            "Columns from `joint` on: R@1; `new voice`: speech→text in voices held out.",
            highlight=False,
        )


def _group(languages: dict[str, dict], seen: bool) -> list[tuple[str, dict]]:
    """The languages of one group, best first."""
    group = [(code, entry) for code, entry in languages.items() if entry["seen"] == seen]
    return sorted(group, key=lambda item: (-_value(item[1], "speech_to_text", missing=0.0), item[0]))


def _row(code: str, entry: dict) -> list[float | None]:
    return [
        *(_value(entry, "speech_to_text", metric) for metric in ("R@1", "R@5", "R@10", "MRR")),
        _value(entry, "speech_to_text_joint_pool"),
        _value(entry.get("held_out_voices", {}), "speech_to_text"),
        _value(entry, "text_to_speech"),
        None if code == ENGLISH else _value(entry, "speech_to_english"),
    ]


def _value(entry: dict, direction: str, metric: str = "R@1", missing: float | None = None) -> Any:
    return entry[direction][metric] if direction in entry else missing


def _percent(value: float | None, digits: int = 1) -> str:
    return "–" if value is None else f"{100 * value:.{digits}f}"


def draw_report(results: dict[str, Any], path: str | os.PathLike) -> None:
    """Draws R@1 as bars by language, one panel a direction, as a PNG; seen and unseen languages are grouped and coloured."""
    rows = [(seen, code, entry) for seen in (True, False) for code, entry in _group(results["languages"], seen)]
    gap = 1.6 if len({seen for seen, _, _ in rows}) == 2 else 0.0
    places = [place + (0.0 if seen else gap) for place, (seen, _, _) in enumerate(rows)]
    height = 0.27 * (len(rows) + gap) + 1.9
    figure, axes = plt.subplots(1, len(_PANELS), figsize=(12, height), sharey=True, layout="constrained")
    for axis, (direction, title) in zip(axes, _PANELS, strict=True):
        _draw_panel(axis, rows, places, direction)
        axis.set_title(title, fontsize=11, loc="left", pad=22)
    names = [language(code).name for _, code, _ in rows]
    axes[0].set_yticks(places, names, fontsize=9)
    axes[0].set_ylim(max(places, default=0) + 0.7, -0.7)
    _label_groups(axes, rows, places)
    figure.suptitle(_title(results["headline"]), fontsize=13, fontweight="bold", x=0.01, ha="left")
    figure.supxlabel(_legend(results), fontsize=8.5, x=0.01, ha="left", color="#333333")
    figure.savefig(path, format="png", dpi=140)
    plt.close(figure)


def _draw_panel(axis: Any, rows: list[tuple[bool, str, dict]], places: list[float], direction: str) -> None:
    for place, (seen, code, entry) in zip(places, rows, strict=True):
        if direction not in entry or (direction == "speech_to_english" and code == ENGLISH):
            continue
        value, chance = entry[direction]["R@1"], entry[direction]["chance"]
        axis.barh(place, value, height=0.74, color=_COLOURS[seen])
        axis.plot([chance, chance], [place - 0.37, place + 0.37], color="black", linewidth=1.2)
        label = value
        if direction in entry.get("held_out_voices", {}):
            new_voices = entry["held_out_voices"][direction]["R@1"]
            label = max(value, new_voices)
            axis.plot(new_voices, place, marker="o", markersize=4.5, color="white", markeredgecolor="black", markeredgewidth=0.8)
        axis.text(label + 0.018, place, f"{100 * value:.0f}", va="center", fontsize=8, color="#333333")
    axis.set_xlim(0, 1.08)
    axis.set_xticks([0, 0.25, 0.5, 0.75, 1.0], ["0", "25", "50", "75", "100 %"], fontsize=8)
    axis.tick_params(length=0)
    axis.grid(axis="x", color="#e3e3e3", linewidth=0.8)
    axis.set_axisbelow(True)
    axis.spines[:].set_visible(False)


def _label_groups(axes: Any, rows: list[tuple[bool, str, dict]], places: list[float]) -> None:
    """Writes each group's name and mean over its first bar, and what the black line is."""
    for seen in (True, False):
        group = [(place, code, entry) for place, (row_seen, code, entry) in zip(places, rows, strict=True) if row_seen == seen]
        for axis, (direction, _) in zip(axes, _PANELS, strict=True):
            mean = _mean(
                entry[direction]["R@1"]
                for _, code, entry in group
                if direction in entry and not (direction == "speech_to_english" and code == ENGLISH)
            )
            if mean is not None:
                name = f"{_GROUPS[seen]}: mean {100 * mean:.0f} %"
                axis.text(0, group[0][0] - 0.62, name, fontsize=9, fontweight="bold", color=_COLOURS[seen], va="bottom", clip_on=False)


def _title(head: dict[str, Any]) -> str:
    pool = f" of {head['pool_size']} candidates" if head["pool_size"] is not None else ""
    return f"How often the first hit{pool} is the right one: R@1 by language"


def _legend(results: dict[str, Any]) -> str:
    chance = results["headline"]["chance"]
    parts = [] if chance is None else [f"black line: chance, {_percent(chance)} %"]
    if any("held_out_voices" in entry for entry in results["languages"].values()):
        parts.append("white dot: in voices held out of training")
    return "     ".join(parts)
