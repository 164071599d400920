"""`units report`: unit tokenizers side by side, on the same recordings: what their units say of phones, and how their codebooks are used."""

import collections
import dataclasses
import os
import pathlib
from collections.abc import Sequence
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from xretrieval.corpora.alignments import Phone, read_alignments
from xretrieval.corpora.audio import load_all
from xretrieval.corpora.manifest import Utterance
from xretrieval.errors import UserError, write_json
from xretrieval.progress import track
from xretrieval.units import quality
from xretrieval.units.fit import sample_recordings
from xretrieval.units.tokenizer import UnitTokenizer

_RESAMPLES = 200  # of the bootstrap
_WINDOW = 64  # utterances that are encoded at once
_MEASURES = {
    "pnmi": quality.pnmi,
    "corrected_pnmi": quality.corrected_pnmi,
    "phone_purity": quality.phone_purity,
    "cluster_purity": quality.cluster_purity,
}


@dataclasses.dataclass(frozen=True)
class Labelled:
    """One utterance's frames: the phone heard at each frame's centre and its unit, int32 [F], and the seconds of sound."""

    language: str
    phones_F: np.ndarray
    units_F: np.ndarray
    seconds: float


def report(
    manifest: str,
    alignments: str,
    tokenizers: Sequence[str],
    out_dir: str,
    per_language: int = 50,
    seed: int = 0,
) -> dict[str, Any]:
    """Compares unit tokenizers and writes `units_report.json` and `units_report.png` to `out_dir`.

    Args:
      manifest: recordings; those that the codebooks were fitted on flatter them.
      alignments: their phones, see `corpora/alignments.py`.
      tokenizers: folders; they go by the folders' names.
      out_dir: folder of the report.
      per_language: recordings of each language.
      seed: of the sample and of the bootstrap.

    Returns:
      The content of `units_report.json`.

    Raises:
      UserError: a recording cannot be read, has no alignment, or one of another length.
    """
    names = [pathlib.Path(os.path.abspath(folder)).name for folder in tokenizers]
    twice = [name for name, count in collections.Counter(names).items() if count > 1]
    if twice:
        raise UserError(f"{twice[0]}: two unit tokenizers in folders of this name; rename one of the folders")
    chosen = sample_recordings(manifest, per_language, seed)
    phones = read_alignments(alignments, {utterance.id for utterance in chosen})
    table = sorted({phone.name for utterance in chosen for phone in phones[utterance.id]})
    if len(table) < 2:
        raise UserError(f"{alignments}: only one phone, {table[0]!r}; nothing can be said of units with it")
    sounds = _sounds(chosen, phones, alignments)
    found = {}
    for name, folder in zip(names, tokenizers, strict=True):
        tokenizer = UnitTokenizer.load(folder)
        labelled = _labelled(tokenizer, chosen, sounds, phones, table)
        found[name] = _measured(tokenizer, labelled, len(table), seed)
    results = {
        "manifest": str(manifest),
        "utterances_by_language": dict(sorted(collections.Counter(utterance.language for utterance in chosen).items())),
        "phones": len(table),
        "seed": seed,
        "tokenizers": found,
    }
    print_report(results)
    for path in write_report(results, out_dir):
        print(f"wrote {path}")
    return results


def _sounds(chosen: Sequence[Utterance], phones: dict[str, list[Phone]], alignments: str) -> list[np.ndarray]:
    requests = [(utterance.recording, utterance.start, utterance.duration) for utterance in chosen]
    sounds = []
    decoded = load_all(requests, len(os.sched_getaffinity(0)))
    for utterance, sound in track(zip(chosen, decoded, strict=True), len(chosen), "decoding"):
        if isinstance(sound, UserError):
            raise sound
        seconds, end = len(sound.samples_T) / 16_000, phones[utterance.id][-1].end
        if abs(seconds - end) > 0.05:
            raise UserError(
                f"{alignments}: the phones of {utterance.id!r} end at {end:.3f} s, its sound at {seconds:.3f} s; align it again"
            )
        sounds.append(sound.samples_T)
    return sounds


def _labelled(
    tokenizer: UnitTokenizer, chosen: Sequence[Utterance], sounds: Sequence[np.ndarray], phones: dict[str, list[Phone]], table: list[str]
) -> list[Labelled]:
    number = {name: index for index, name in enumerate(table)}
    labelled = []
    for first in track(range(0, len(chosen), _WINDOW), -(-len(chosen) // _WINDOW), "units"):
        window = sounds[first : first + _WINDOW]
        for utterance, samples_T, units_F in zip(chosen[first : first + _WINDOW], window, tokenizer.frame_units(window), strict=True):
            seconds = len(samples_T) / 16_000
            centres_F = (np.arange(len(units_F)) + 0.5) / tokenizer.encoder.frame_rate
            spoken = phones[utterance.id]
            at_F = np.searchsorted([phone.end for phone in spoken[:-1]], centres_F, side="right")
            names = np.array([number[phone.name] for phone in spoken])
            labelled.append(Labelled(utterance.language, names[at_F], units_F, seconds))
    return labelled


def _measured(tokenizer: UnitTokenizer, labelled: Sequence[Labelled], phones: int, seed: int) -> dict[str, Any]:
    phones_F, units_F = np.concatenate([each.phones_F for each in labelled]), np.concatenate([each.units_F for each in labelled])
    frames_U = np.array([len(each.units_F) for each in labelled])
    joint_PK = quality.joint_counts(phones_F, units_F, phones, tokenizer.num_units)
    used_K = joint_PK.sum(0)
    rng = np.random.default_rng(seed)
    drawn: dict[str, list[float]] = {name: [] for name in _MEASURES}
    # Whole utterances are drawn: frames of one are not independent.
    # Frames are counted anew for each draw: a table of counts for each recording would outgrow memory with K.
    for weights_U in rng.multinomial(len(labelled), np.full(len(labelled), 1.0 / len(labelled)), _RESAMPLES):
        again_PK = quality.joint_counts(phones_F, units_F, phones, tokenizer.num_units, np.repeat(weights_U, frames_U))
        for name, measure in _MEASURES.items():
            drawn[name].append(measure(again_PK))
    measures = {
        # About the value: a draw holds fewer different frames than the sample, which moves its mean, so that only its spread is told.
        name: {"value": measure(joint_PK), "interval_95": [measure(joint_PK) + sign * _half_width(drawn[name]) for sign in (-1, 1)]}
        for name, measure in _MEASURES.items()
    }
    by_language = {}
    for language in sorted({each.language for each in labelled}):
        mine = [each for each in labelled if each.language == language]
        seconds = sum(each.seconds for each in mine)
        by_language[language] = {
            "units_per_second": sum(len(each.units_F) for each in mine) / seconds,
            "collapsed_units_per_second": sum(quality.runs(each.units_F) for each in mine) / seconds,
        }
    seconds = sum(each.seconds for each in labelled)
    return {
        "encoder": tokenizer.encoder.config.family,
        "layer": tokenizer.encoder.layer,
        "frame_rate": tokenizer.encoder.frame_rate,
        "num_units": tokenizer.num_units,
        "frames": int(joint_PK.sum()),
        **measures,
        "codebook_used": float(np.count_nonzero(used_K) / tokenizer.num_units),
        "unit_entropy_bits": quality.entropy(used_K),
        "unit_perplexity": quality.perplexity(used_K),
        "collapsed_units_per_second": sum(quality.runs(each.units_F) for each in labelled) / seconds,
        "languages": by_language,
    }


def _half_width(draws: Sequence[float]) -> float:
    """Of the range that 95 % of the draws lie in."""
    low, high = np.percentile(draws, [2.5, 97.5])
    return float(high - low) / 2.0


def print_report(results: dict[str, Any]) -> None:
    """The tokenizers as rows of a table."""
    table = Table(show_edge=False, title="Units beside phones")
    for column in ("units", "Hz", "K", "PNMI", "corrected", "phone purity", "cluster purity", "used", "bits", "a second"):
        table.add_column(column, justify="left" if column == "units" else "right")
    for name, found in results["tokenizers"].items():
        low, high = found["corrected_pnmi"]["interval_95"]
        table.add_row(
            name,
            f"{found['frame_rate']:g}",
            str(found["num_units"]),
            f"{found['pnmi']['value']:.3f}",
            f"{found['corrected_pnmi']['value']:.3f} ±{(high - low) / 2:.3f}",
            f"{found['phone_purity']['value']:.3f}",
            f"{found['cluster_purity']['value']:.3f}",
            f"{found['codebook_used']:.0%}",
            f"{found['unit_entropy_bits']:.2f}",
            f"{found['collapsed_units_per_second']:.1f}",
        )
    console = Console()
    console.print(table)
    total = sum(results["utterances_by_language"].values())
    console.print(
        f"{total:,} recordings in {len(results['utterances_by_language'])} languages, {results['phones']} phones. Corrected: for the number of frames; ± 95 % over "
        f"{_RESAMPLES} draws of whole recordings. Phone purity grows with K and cluster purity falls: compare them at one K. Used: share of the codebook; bits: "
        "entropy of units; units a second: runs count once.",
        highlight=False,
    )


def write_report(results: dict[str, Any], out_dir: str) -> list[str]:
    """Writes `units_report.json` and `units_report.png`, each whole or not at all; returns their paths.

    Raises:
      UserError: the folder cannot be written.
    """
    root = pathlib.Path(out_dir)
    as_json, picture = root / "units_report.json", root / "units_report.png"
    temporary = root / f"units_report.{os.getpid()}.tmp"
    try:
        root.mkdir(parents=True, exist_ok=True)
        try:
            write_json(as_json, results)
            _draw(results, temporary)
            os.replace(temporary, picture)
        finally:
            temporary.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{root}: the report cannot be written ({error.strerror}); free space or give another folder") from error
    return [str(as_json), str(picture)]


def _draw(results: dict[str, Any], path: pathlib.Path) -> None:
    import matplotlib

    matplotlib.use("agg")
    from matplotlib import pyplot

    names = list(results["tokenizers"])
    figure, (left, right) = pyplot.subplots(1, 2, figsize=(11, 4.5), width_ratios=(3, 2))
    places = np.arange(len(names))
    for shift, (measure, label) in enumerate(
        (("corrected_pnmi", "PNMI, corrected"), ("phone_purity", "phone purity"), ("cluster_purity", "cluster purity"))
    ):
        values = np.array([results["tokenizers"][name][measure]["value"] for name in names])
        bounds = np.array([results["tokenizers"][name][measure]["interval_95"] for name in names]).T
        left.bar(places + 0.27 * (shift - 1), values, 0.25, yerr=(bounds[1] - bounds[0]) / 2, label=label, capsize=2)
    left.set_xticks(places, names, rotation=20, ha="right")
    left.set_title("what units say of phones")
    left.legend()
    for name in names:
        by_language = results["tokenizers"][name]["languages"]
        right.plot(list(by_language), [each["collapsed_units_per_second"] for each in by_language.values()], "o", label=name)
    right.tick_params(axis="x", rotation=60)
    right.set_ylim(bottom=0)
    right.legend(fontsize="small")
    right.set_title("units a second, runs once")
    figure.tight_layout()
    figure.savefig(path, format="png", dpi=90)
    pyplot.close(figure)
