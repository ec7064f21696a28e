"""Name pools: what is drawn from them reads right and reaches nobody."""

from __future__ import annotations

import re
from itertools import pairwise

import pytest

from keikaku_snapshots.datasets import names

HIRAGANA = re.compile(r"[ぁ-ん]+")
POOLS = {
    "surnames": names.surnames(),
    "male": names.given_names("male"),
    "female": names.given_names("female"),
}


def test_pools_are_large_enough_to_look_real() -> None:
    """At least 300 surnames, and 200 given names for men and for women."""
    assert len(names.surnames().names) >= 300
    assert len(names.given_names("male").names) >= 200
    assert len(names.given_names("female").names) >= 200


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_every_name_has_one_reading_in_hiragana(pool: names.NamePool) -> None:
    """A written name stands in its pool once, and its reading is hiragana only."""
    written = [name.kanji for name in pool.names]

    assert len(set(written)) == len(written)
    assert [name for name in pool.names if not HIRAGANA.fullmatch(name.furigana)] == []


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_every_name_can_be_drawn(pool: names.NamePool) -> None:
    """The running totals of the weights grow with every name."""
    totals = (0, *pool.cumulative_weights)

    assert len(pool.cumulative_weights) == len(pool.names)
    assert all(before < after for before, after in pairwise(totals))


def test_surnames_occur_about_as_often_as_in_life() -> None:
    """佐藤 is the most frequent surname, and frequencies fall along the file."""
    totals = (0, *names.surnames().cumulative_weights)
    weights = [after - before for before, after in pairwise(totals)]

    assert names.surnames().names[0].kanji == "佐藤"
    assert weights == sorted(weights, reverse=True)


@pytest.mark.parametrize(
    ("kanji", "furigana"),
    [
        ("佐藤", "さとう"),
        ("長谷川", "はせがわ"),
        ("五十嵐", "いがらし"),
        ("服部", "はっとり"),
        ("小山", "こやま"),
    ],
)
def test_known_surnames_read_as_everybody_reads_them(kanji: str, furigana: str) -> None:
    """Spot checks against common knowledge."""
    assert {name.kanji: name.furigana for name in names.surnames().names}[kanji] == furigana


@pytest.mark.parametrize(
    ("kana", "letters"),
    [
        ("さとう", "satou"),
        ("ゆうこ", "yuuko"),
        ("いのうえ", "inoue"),
        ("はっとり", "hattori"),
        ("てっぺい", "teppei"),
        ("しょうじ", "shouji"),
        ("きょうこ", "kyouko"),
        ("じゅんいち", "junichi"),
        ("ちづる", "chizuru"),
    ],
)
def test_readings_become_latin_letters(kana: str, letters: str) -> None:
    """E-mail addresses are made of the reading as it is typed."""
    assert names.romanise(kana) == letters


@pytest.mark.parametrize("pool", POOLS.values(), ids=POOLS)
def test_latin_letters_are_fit_for_an_email_address(pool: names.NamePool) -> None:
    """Lower-case ASCII letters only."""
    assert [name for name in pool.names if not re.fullmatch("[a-z]+", name.romaji)] == []


def test_telephone_numbers_are_never_assigned() -> None:
    """A4: 03-0000-NNNN, also above ten thousand offices."""
    assert [names.phone_number(number) for number in (0, 7, 9999, 10_000, 123_456)] == [
        "03-0000-0000",
        "03-0000-0007",
        "03-0000-9999",
        "03-0000-0000",
        "03-0000-3456",
    ]


def test_every_prefecture_occurs() -> None:
    """47 prefectures, each at the beginning of a municipality."""
    found = {
        match.group() for place in names.municipalities() if (match := re.match("..[都道府県]|...県", place))
    }

    assert len(found) == 47


def test_office_kinds_have_the_labels_of_the_database() -> None:
    """Each label of the enum office_type has its prefix, and no other."""
    from keikaku_snapshots.datasets.keikaku_tables import office_type

    assert [kind.label for kind in names.office_kinds()] == list(office_type.enums)
