"""Mixture rates: groups by their longest name, shares by size and temperature, and what is refused."""

import itertools

import numpy as np
import pytest

from tasks.mixtures import task_rates
from xretrieval.data.order import SLOTS, MixtureOrder
from xretrieval.errors import UserError

SIZES = {
    "covost2.speech_to_text.de_de": 127_000,
    "covost2.speech_to_text.cy_gb": 1_200,
    "covost2.speech_to_english.de_de": 127_000,
    "fleurs.speech_to_text.de_de": 2_900,
    "wikimatrix.text_to_text.de_de.en_us": 1_573_437,
    "wikimatrix.text_to_text.en_us.ta_in": 95_161,
}
SPEECH = [name for name in SIZES if ".speech_to_text." in name]


@pytest.mark.parametrize("temperature", [1.0, 2, 3.3, 1e9])
def test_shares_are_sizes_to_the_power_of_one_over_the_temperature(temperature):
    found = task_rates(SIZES, {"speech_to_text": 3.0, "wikimatrix.text_to_text": 1.5}, temperature)
    for names, rate in ((SPEECH, 3.0), ([name for name in SIZES if "text_to_text" in name], 1.5)):
        weights = np.array([SIZES[name] for name in names], np.float64) ** (1.0 / temperature)
        np.testing.assert_allclose([found[name] for name in names], rate * weights / weights.sum(), rtol=1e-13)
    assert "covost2.speech_to_english.de_de" not in found


def test_temperature_goes_from_proportional_to_equal():
    shares = [[task_rates(SIZES, {"speech_to_text": 1.0}, t)[name] for name in SPEECH] for t in (1, 2, 5, 1e12, None)]
    assert shares[0][0] / shares[0][1] == pytest.approx(127_000 / 1_200)
    assert all(a[0] > b[0] for a, b in itertools.pairwise(shares[:4]))
    np.testing.assert_allclose(shares[3], shares[4], rtol=1e-9)


def test_without_a_temperature_shares_are_equal_to_the_last_bit():
    """The demo's order of data hangs on it: a rate a bit larger can move a slot."""
    sizes = {f"polyglot.speech_to_text.{i:02}": 2500 for i in range(9)} | {f"polyglot.text_to_english.{i:02}": 2500 for i in range(8)}
    found = task_rates(sizes, {"speech_to_text": 2.0, "text_to_english": 1.0}, None)
    assert found == {name: 2.0 / 9 if "speech" in name else 1.0 / 8 for name in sizes}


def test_the_longest_name_counts():
    rates = {"speech_to_text": 4.0, "fleurs.speech_to_text": 1.0, "covost2.speech_to_text.cy_gb": 0.5}
    assert task_rates(SIZES, rates, 1) == {
        "covost2.speech_to_text.de_de": 4.0,
        "fleurs.speech_to_text.de_de": 1.0,
        "covost2.speech_to_text.cy_gb": 0.5,
    }


def test_a_rate_of_zero_leaves_a_group_out(capsys):
    found = task_rates(SIZES, {"speech_to_text": 1.0, "fleurs.speech_to_text": 0, "text_to_english": 0.0}, None)
    assert found.keys() == {"covost2.speech_to_text.de_de", "covost2.speech_to_text.cy_gb"}
    assert capsys.readouterr().out == ""


def test_a_kind_that_no_corpus_has_is_said(capsys):
    task_rates(SIZES, {"speech_to_text": 1.0, "text_to_english": 1.0}, None)
    assert capsys.readouterr().out == "no text_to_english pairs: the mixture goes without\n"


@pytest.mark.parametrize(
    "rates,message",
    [
        ({"covost.speech_to_text": 1.0}, "there are no pairs for 'covost.speech_to_text'; the nearest name is 'covost2.speech_to_text'"),
        ({"speech_to_txt": 1.0}, "no pairs for 'speech_to_txt'; the nearest name is 'speech_to_text'"),
        ({"fleurs.speech_to_english": 1.0}, "no pairs for 'fleurs.speech_to_english'"),
        ({"speech_to_text": -1.0}, "each 0 or more"),
        ({"speech_to_text": float("nan")}, "each 0 or more"),
        ({"speech_to_text": "2"}, "each 0 or more"),
        ([("speech_to_text", 1.0)], "give a dictionary of rates"),
        ({"speech_to_text": 0.0}, "no pairs for any of them"),
    ],
)
def test_rates_that_are_refused(rates, message):
    with pytest.raises(UserError, match=message):
        task_rates(SIZES, rates, None)


@pytest.mark.parametrize("temperature", [0, -1.0, float("inf"), "2", True])
def test_temperatures_that_are_refused(temperature):
    with pytest.raises(UserError, match=r"mixture.temperature = .*a number above 0, or None for equal shares"):
        task_rates(SIZES, {"speech_to_text": 1.0}, temperature)


def test_every_task_of_the_papers_mixture_has_a_slot():
    """CoVoST-2's hours, 1 to 264, and WikiMatrix's lines, 95,161 to 3,377,911 (the corpora's own tables), in proportion."""
    hours = [264, 184, 113, 136, 44, 18, 10, 10, 49, 3, 3, 7, 4, 2, 2, 2, 2, 2, 1, 1, 2]
    lines = [3377911, 2757883, 2461557, 2126083, 851706, 796507, 1661908, 1573437, 1205908, 1019170, 999762, 786511, 546288, 477735, 318027]
    lines += [303805, 243869, 95161]
    sizes = {f"covost2.speech_to_text.{i}": 700 * h for i, h in enumerate(hours)} | {
        f"wikimatrix.text_to_text.{i}": n for i, n in enumerate(lines)
    }
    found = task_rates(sizes, {"covost2.speech_to_text": 2.0, "wikimatrix.text_to_text": 1.0}, 1.0)
    order = MixtureOrder.create(list(found), list(found.values()), [sizes[name] for name in found], 0)
    speech = order.slots_of_task[: len(hours)]
    assert speech.min() > 30
    assert speech.sum() / SLOTS == pytest.approx(2 / 3, abs=1e-3)
