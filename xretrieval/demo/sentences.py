"""The polyglot corpus' sentences: lists of three slots, said in every language under the same sentence id."""

import itertools
import math

import babel.lists

from xretrieval.demo import polyglot, slots
from xretrieval.demo.keyed import draw
from xretrieval.errors import UserError

SLOTS_A_SENTENCE = 3
Sentence = tuple[slots.Slot, ...]
Corpus = dict[str, dict[str, Sentence]]  # {split: {sentence id: slots in the order in which they are said}}
_FULLEST = 0.5  # of all combinations; beyond, drawing without repetition becomes slow and a split would leave the others no choice


def compose(counts: dict[str, int], level: slots.Level, seed: int) -> Corpus:
    """Draws the sentences of each split: slots of different kinds, in random order, no combination twice in the corpus in any order.

    A split's sentences depend on the seed, the level and the splits before it in `counts`, not on the languages.

    Args:
      counts: number of sentences by split.
      level: which slots.
      seed: any whole number.

    Raises:
      UserError: more sentences than the slots have combinations for.
    """
    kinds = slots.keys(level)
    possible = sum(math.prod(len(kinds[kind]) for kind in chosen) for chosen in itertools.combinations(kinds, SLOTS_A_SENTENCE))
    if sum(counts.values()) > possible * _FULLEST:
        raise UserError(
            f"{sum(counts.values())} sentences asked for in all splits, but {level!r} slots give at most {int(possible * _FULLEST)}: "
            f"ask for fewer" + (", or for slots='hard'" if level == "easy" else "")
        )
    orders = list(itertools.permutations(kinds, SLOTS_A_SENTENCE))
    taken: set[frozenset[slots.Slot]] = set()
    corpus: Corpus = {}
    for split, count in counts.items():
        chosen: list[Sentence] = []
        for attempt in itertools.count():
            if len(chosen) == count:
                break
            sentence = _sentence(draw(seed, level, split, attempt), orders, kinds)
            if frozenset(sentence) not in taken:
                taken.add(frozenset(sentence))
                chosen.append(sentence)
        corpus[split] = {f"{split}-{number:05d}": sentence for number, sentence in enumerate(chosen)}
    return corpus


def _sentence(number: int, orders: list[tuple[str, ...]], kinds: dict[str, tuple[str, ...]]) -> Sentence:
    number, which = divmod(number, len(orders))
    sentence = []
    for kind in orders[which]:
        number, index = divmod(number, len(kinds[kind]))
        sentence.append(slots.Slot(kind, kinds[kind][index]))
    return tuple(sentence)


class Speaker:
    """Says sentences in one language."""

    def __init__(self, code: str):
        self.locale = slots.locale_of(polyglot.cldr_and_voice(code)[0], code)
        self._words: dict[slots.Slot, str] = {}

    def words(self, slot: slots.Slot) -> str:
        if slot not in self._words:
            self._words[slot] = slots.words(self.locale, slot)
        return self._words[slot]

    def say(self, sentence: Sentence) -> str:
        """The natural list of a sentence's slots, e.g. "Brasilien, Montag und Euro"."""
        return slots.clean(slots.elided(babel.lists.format_list([self.words(slot) for slot in sentence], locale=self.locale)))
