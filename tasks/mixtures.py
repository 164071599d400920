"""Mixtures: which corpora, and how much of which.

A rate belongs to a group of tasks, named by a kind (`speech_to_text`: that kind of every corpus), by a corpus and a kind
(`covost2.speech_to_text`), or by a whole task; the longest name that fits a task counts. A group's tasks share its rate: with
temperature T, a task of n pairs has a share proportional to n^(1/T).
"""

import difflib
import math
import re
from collections.abc import Mapping, Sequence

import seqio

from tasks import covost2, fleurs, task, wikimatrix
from tasks.task import Corpus, TaskName
from xretrieval.data.preprocessors import KINDS
from xretrieval.data.vocabulary import Vocabulary
from xretrieval.errors import UserError
from xretrieval.languages import languages as find_languages

# A corpus of another name has a task for every kind of pair that it holds.
REGISTER = {"covost2": covost2.register, "fleurs": fleurs.register, "wikimatrix": wikimatrix.register}


def task_rates(sizes: Mapping[str, int], rates: Mapping[str, float], temperature: float | None) -> dict[str, float]:
    """The rate of every task that has one above 0.

    Args:
      sizes: pairs of each task.
      rates: of groups, each at least 0; a task of no group has rate 0.
      temperature: T: 1 is in proportion to size, above 1 nearer to equal shares; None (T without bound): equal shares.

    Raises:
      UserError: rates or temperature that are no such numbers, or a rate of a task or corpus that is not there.
    """
    if not isinstance(rates, Mapping) or not all(_is_number(rate) and rate >= 0 for rate in rates.values()):
        raise UserError(f"mixture.rates = {rates!r}: give a dictionary of rates, each 0 or more, for {', '.join(KINDS)}, or CORPUS.KIND")
    if temperature is not None and not (_is_number(temperature) and temperature > 0):
        raise UserError(f"mixture.temperature = {temperature!r}: it must be a number above 0, or None for equal shares")
    groups: dict[str, list[str]] = {group: [] for group in rates}
    for name in sizes:
        corpus, kind, _ = TaskName.parse(name)
        group = next((group for group in (name, f"{corpus}.{kind}", kind) if group in rates), None)
        if group is not None:
            groups[group].append(name)
    found: dict[str, float] = {}
    for group, names in groups.items():
        if not names:
            _missing(group, sizes, rates)
        weights = [1.0 if temperature is None else sizes[name] ** (1 / temperature) for name in names]
        found |= {name: rates[group] * weight / math.fsum(weights) for name, weight in zip(names, weights, strict=True) if rates[group]}
    if not found:
        raise UserError(f"mixture.rates = {dict(rates)}: no pairs for any of them; the manifest's lines need `text`")
    return found


def register(
    name: str,
    corpora: Mapping[str, Corpus],
    vocabulary: Vocabulary,
    rates: Mapping[str, float],
    temperature: float | None = None,
    languages: Sequence[str] | None = None,
) -> seqio.Mixture:
    """Registers every task of `corpora`, by name, and the mixture `name` of those with a rate.

    Args:
      name: of the mixture.
      corpora: by the name that their tasks begin with.
      vocabulary: of all tasks.
      rates, temperature: see `task_rates`.
      languages: what is spoken or written in other languages stays out of the mixture, but not their translations; None: all languages.

    Raises:
      UserError: see `task_rates`; a name that SeqIO does not take; a language that no task has.
    """
    tasks: list[str] = []
    for corpus_name, corpus in corpora.items():
        if not re.fullmatch(r"\w+", corpus_name):
            raise UserError(f"mixture: a corpus cannot be called {corpus_name!r}; take letters, digits and _")
        tasks += REGISTER[corpus_name](corpus, vocabulary) if corpus_name in REGISTER else task.register(corpus_name, corpus, vocabulary)
    sizes = {found: seqio.TaskRegistry.get(found).num_input_examples("train") for found in tasks}
    if languages is not None:
        sizes = _of_languages(sizes, languages)
    weighted = task_rates(sizes, rates, temperature)
    seqio.MixtureRegistry.remove(name)
    return seqio.MixtureRegistry.add(name, list(weighted.items()))


def _of_languages(sizes: Mapping[str, int], languages: Sequence[str]) -> dict[str, int]:
    wanted = {language.code for language in find_languages(languages)}
    sources = {name: TaskName.parse(name).languages.partition(".")[0] for name in sizes}
    if lacking := wanted - set(sources.values()):
        raise UserError(f"mixture.languages: there are no pairs of {', '.join(sorted(lacking))}; leave them out, or give their data")
    return {name: size for name, size in sizes.items() if sources[name] in wanted}


def _missing(group: str, sizes: Mapping[str, int], rates: Mapping[str, float]) -> None:
    """A kind that no corpus has is said, so that one run file serves recordings with and without translations; a wrong name is an error."""
    if group in KINDS:
        if rates[group]:
            print(f"no {group} pairs: the mixture goes without")
        return
    parts = [TaskName.parse(name) for name in sizes]
    known = sorted({f"{corpus}.{kind}" for corpus, kind, _ in parts}) + sorted(sizes) + list(KINDS)
    near = difflib.get_close_matches(group, known, 1, 0.0)
    raise UserError(f"mixture.rates: there are no pairs for {group!r}" + (f"; the nearest name is {near[0]!r}" if near else ""))


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
