"""Japanese names with their readings, addresses and office names.

The pools are tab-separated files in ``data/``. Every kanji name has exactly one
reading, written in hiragana (ふりがな, as on the forms of a welfare office), so
a drawn name and its reading always belong together. Nothing here is random:
callers draw from the pools with their own seeded generator.

Nobody can be reached by what these pools make: e-mail addresses are in
``example.com`` (RFC 2606), telephone numbers are ``03-0000-NNNN`` and addresses
are in a block 0 (0丁目), none of which is ever assigned.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from itertools import accumulate

from keikaku_snapshots.datasets.pools import read_pool

#: Towns that exist in some form in most cities; with a block 0 they exist in none.
TOWNS = ("青葉町", "桜町", "緑町", "若葉町", "本町", "栄町", "旭町", "泉町", "日の出町", "中央")

#: What may follow an office's name; the empty one is the most common.
OFFICE_SUFFIXES = ("", "", "の家", "園", "工房")


@dataclass(frozen=True, slots=True)
class Name:
    """A surname or a given name with its reading."""

    #: As it is written, mostly in kanji.
    kanji: str
    #: Its reading in hiragana.
    furigana: str
    #: The reading in Latin letters as it is typed (``yuuko``); for e-mail addresses.
    romaji: str


@dataclass(frozen=True, slots=True)
class NamePool:
    """Names to draw from: ``random.choices(pool.names, cum_weights=pool.cumulative_weights)``."""

    #: All names, in the order of the file.
    names: tuple[Name, ...]
    #: Running totals of the weights, one for each name.
    cumulative_weights: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class OfficeKind:
    """A kind of welfare service."""

    #: The label of the database enum.
    label: str
    #: What stands before the office's own name.
    prefix: str
    #: How often it occurs, relative to the others.
    weight: int


@cache
def surnames() -> NamePool:
    """Surnames, weighted about as they occur."""
    return _name_pool("surnames.tsv")


@cache
def given_names(gender: str) -> NamePool:
    """Given names.

    Args:
        gender: ``male`` or ``female``.

    Returns:
        The pool.
    """
    return _name_pool(f"given_names_{gender}.tsv")


@cache
def municipalities() -> tuple[str, ...]:
    """Prefecture and municipality in one text, such as ``東京都世田谷区``."""
    return tuple("".join(fields) for fields in read_pool("municipalities.tsv"))


@cache
def office_words() -> tuple[str, ...]:
    """What offices are called after."""
    return tuple(word for (word,) in read_pool("office_words.tsv"))


@cache
def office_kinds() -> tuple[OfficeKind, ...]:
    """The kinds of offices with their weights."""
    return tuple(
        OfficeKind(label, prefix, int(weight)) for label, prefix, weight in read_pool("office_types.tsv")
    )


def phone_number(number: int) -> str:
    """A telephone number that is never assigned.

    Args:
        number: Any whole number; numbers repeat after 10,000.

    Returns:
        ``03-0000-NNNN``.
    """
    return f"03-0000-{number % 10_000:04d}"


def romanise(kana: str) -> str:
    """Hiragana in Latin letters, the way it is typed: ``ゆうこ`` is ``yuuko``.

    Long vowels keep their letters, so that no knowledge of the word is needed
    (``いのうえ`` is not ``inoe``).

    Args:
        kana: Hiragana only.

    Returns:
        Lower-case ASCII letters.
    """
    letters = ""
    double_next = False
    for sign in kana:
        if sign == "っ":
            double_next = True
            continue
        if sign in _SMALL_Y:
            stem = letters[:-1]
            letters = stem + (_SMALL_Y[sign][1:] if stem.endswith(("sh", "ch", "j")) else _SMALL_Y[sign])
            continue
        sound = _SOUNDS[sign]
        if double_next:
            sound = ("t" if sound.startswith("ch") else sound[0]) + sound
            double_next = False
        letters += sound
    return letters


_SMALL_Y = {"ゃ": "ya", "ゅ": "yu", "ょ": "yo"}
_KANA = (
    "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわを"
    "がぎぐげござじずぜぞだぢづでどばびぶべぼぱぴぷぺぽん"
)
_LATIN = (
    "a i u e o ka ki ku ke ko sa shi su se so ta chi tsu te to na ni nu ne no ha hi fu he ho "
    "ma mi mu me mo ya yu yo ra ri ru re ro wa o "
    "ga gi gu ge go za ji zu ze zo da ji zu de do ba bi bu be bo pa pi pu pe po n"
)
_SOUNDS = dict(zip(_KANA, _LATIN.split(), strict=True))


def _name_pool(file_name: str) -> NamePool:
    rows = read_pool(file_name)
    return NamePool(
        names=tuple(Name(kanji, kana, romanise(kana)) for kanji, kana, _ in rows),
        cumulative_weights=tuple(accumulate(int(weight) for *_, weight in rows)),
    )
