"""What the polyglot corpus' sentences are made of: words of Unicode CLDR, in every language under the same key."""

import datetime
import functools
import re
import unicodedata
from collections.abc import Callable, Mapping
from typing import Any, Literal, NamedTuple

import babel
import babel.dates
import babel.localedata
import babel.numbers

from xretrieval.errors import UserError
from xretrieval.languages import language

Level = Literal["easy", "hard"]
LEVELS: tuple[Level, ...] = ("easy", "hard")


class Slot(NamedTuple):
    """One thing to say, e.g. `Slot("territory", "BR")`."""

    kind: str
    key: str


# Easy values are the first ones. No value here may be missing, ambiguous (Indonesian says `Jerman` for Germany and for German) or written
# with parentheses in any language of demo/polyglot.py: a country and its language are therefore never both here, and there is no pound
# sterling. tests/demo/test_slots.py checks every language.
_TERRITORIES = (
    "BR MX CA AU AR EG KE IN ZA NG MA CL PE CO CU CH AT IL IR PK DE JP GR PT "
    "US NZ BE IE GB IQ BD LK DZ TN ET GH SN TZ UG CM LY SY JO LB QA AF EC BO PY UY VE PA CR GT MY SG KH PH HN DO"
).split()
_LANGUAGES = (
    "en fr es it ru zh ar tr pl nl sv fi hi he hu vi fa bn ur ta te ml gu pa mr ms ko sw am uk cs hr lt et ca eu sq mk ka hy"
).split()
_CURRENCIES = "EUR USD JPY INR RUB CNY BRL PLN TRY SEK CHF MXN KRW THB EGP UAH CZK HUF NOK DKK RON VND ZAR KES NGN".split()
_UNITS = (
    "length-kilometer length-meter mass-kilogram mass-gram volume-liter duration-hour duration-minute duration-second "
    "duration-day duration-week duration-year"
).split()
_EASY = {"territory": 24, "language": 16, "currency": 8}
_LARGEST_QUANTITY = 99
_YEAR = 2023  # only month and day are said

_BIDI_MARKS = dict.fromkeys(map(ord, "\u061c\u200e\u200f\u202a\u202b\u202c\u202d\u202e\u2066\u2067\u2068\u2069"))
_SPACES = dict.fromkeys(map(ord, "\u00a0\u2009\u202f"), " ")


def clean(text: str) -> str:
    """NFC, without bidirectional marks, with plain single spaces."""
    return " ".join(unicodedata.normalize("NFC", text.translate(_BIDI_MARKS).translate(_SPACES)).split())


@functools.cache
def keys(level: Level) -> dict[str, tuple[str, ...]]:
    """The keys of each kind of slot at a level, the same for every language."""
    if level not in LEVELS:
        raise UserError(f"slots={level!r}: there are {' and '.join(repr(name) for name in LEVELS)} slots")
    hard = level == "hard"
    months = [f"{month:02d}" for month in range(1, 13)]
    quantities = [f"{number}:{unit}" for unit in _UNITS for number in range(2, _LARGEST_QUANTITY + 1)]
    dates = [f"{month}-{day:02d}" for month in months for day in range(1, 29)]
    named = {"territory": _TERRITORIES, "language": _LANGUAGES, "currency": _CURRENCIES}
    kinds = {kind: values if hard else values[: _EASY[kind]] for kind, values in named.items()}
    kinds |= {"weekday": [str(day) for day in range(7)]}
    kinds |= {"date": dates, "quantity": quantities} if hard else {"month": months}
    return {kind: tuple(values) for kind, values in kinds.items()}


def words(locale: babel.Locale, slot: Slot) -> str:
    """How a language says a slot.

    Raises:
      UserError: CLDR has no word for it in this language.
    """
    try:
        text = clean(_SAY[slot.kind](locale, slot.key))
    except (KeyError, ValueError) as error:
        raise UserError(
            f"CLDR (babel {babel.__version__}) has no word for {slot.kind} {slot.key!r} in {locale}; leave this language out"
        ) from error
    if not text or "{" in text:
        raise UserError(
            f"CLDR (babel {babel.__version__}) gives {text!r} for {slot.kind} {slot.key!r} in {locale}; leave this language out"
        )
    return text


def _wide(names: Mapping[str, Any], key: int) -> str:
    # Stand-alone is the nominative ("leden"), format the form inside a date ("ledna"); many languages have only the latter.
    stand_alone = names.get("stand-alone", {})
    return (stand_alone["wide"] if "wide" in stand_alone else names["format"]["wide"])[key]


def _date(locale: babel.Locale, key: str) -> str:
    month, day = (int(part) for part in key.split("-"))
    return babel.dates.format_skeleton("MMMMd", datetime.date(_YEAR, month, day), fuzzy=False, locale=locale)


def _quantity(locale: babel.Locale, key: str) -> str:
    number, unit = key.split(":")
    # babel.units.format_unit answers "68 length-kilometer" where a language lacks the pattern of a length or plural form.
    by_length = locale._data["unit_patterns"][unit]
    for length in ("long", "short", "narrow"):
        patterns = by_length.get(length, {})
        pattern = patterns.get(locale.plural_form(int(number)), patterns.get("other"))
        if isinstance(pattern, str) and "{0}" in pattern:
            return pattern.format(babel.numbers.format_decimal(int(number), locale=locale))
    raise KeyError(unit)


_SAY: dict[str, Callable[[babel.Locale, str], str]] = {
    "territory": lambda locale, key: locale.territories[key],
    "language": lambda locale, key: locale.languages[key],
    "currency": lambda locale, key: locale.currencies[key],
    "weekday": lambda locale, key: _wide(locale.days, int(key)),
    "month": lambda locale, key: _wide(locale.months, int(key)),
    "date": _date,
    "quantity": _quantity,
}


def elided(text: str) -> str:
    """Decides the open ending in CLDR's Welsh "and": "a(c) Arabeg" is "ac Arabeg", "a(c) Dydd Llun" is "a Dydd Llun"."""
    return re.sub(r"\ba\(c\) (?=[aeiouwyâêîôûŵŷ])", "ac ", text, flags=re.IGNORECASE).replace("a(c) ", "a ")


def locale_of(cldr: str, code: str) -> babel.Locale:
    """The CLDR data of a language, shared with no other.

    Raises:
      UserError: babel has no such locale.
    """
    # Looking a word up can overwrite data that babel shares between languages ("Dienstag, fevral und Euro"; python-babel/babel#1234), so
    # that texts would depend on the languages said before. An empty cache makes babel read the data again.
    with babel.localedata._cache_lock:
        babel.localedata._cache.clear()
    try:
        locale = babel.Locale.parse(cldr)
        locale._data["territories"]
        return locale
    except (babel.UnknownLocaleError, ValueError) as error:
        raise UserError(f"{code}: babel {babel.__version__} has no CLDR data for {language(code).name}; leave this language out") from error
