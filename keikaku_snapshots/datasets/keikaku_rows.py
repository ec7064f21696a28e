"""Rows of the Keikaku tables, drawn column by column from pools.

Every function takes the ids of its rows and a seeded generator, and gives rows of
text, ready for COPY. The order of all draws is part of the promise that a seed
gives the same bytes everywhere: do not reorder them.
"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import date, timedelta
from functools import cache
from itertools import accumulate, repeat
from typing import TYPE_CHECKING

from keikaku_snapshots.datasets import names
from keikaku_snapshots.datasets.row_parts import BOOKKEEPING_COLUMNS, bookkeeping

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence
    from random import Random

    from keikaku_snapshots.datasets.row_parts import Row

#: The password of every generated staff; log in with it in tests.
TEST_PASSWORD = "Keikaku-Test-Passw0rd"  # noqa: S105 - documented, opens test rows only
#: bcrypt of TEST_PASSWORD, cost 12; made once, because one hash takes 0.2 s.
TEST_PASSWORD_HASH = "$2b$12$vSYfmuXriKQOy3UvJf/bseppqvI6ng6JohNrecfvkBqG3d0ECANUi"  # noqa: S105

NOTIFICATION_PREFERENCES = (
    '{"in_app_notification": true, "email_notification": true, "system_notification": false, '
    '"email_threshold_days": 30, "push_threshold_days": 10}'
)

#: How the e-mail address of a system staff begins: of the one that owns generated offices and works in none.
SYSTEM_STAFF_EMAIL_PREFIX = "system.staff."

#: Days from the start of a plan cycle to the reference date, and on to its deadline.
CYCLE_STARTED_DAYS_AGO = 335
CYCLE_ENDS_IN_DAYS = 25

_YOUNGEST_DAYS = 18 * 366
_OLDEST_DAYS = 95 * 365
_WOMEN_AMONG_STAFF = 0.7
_OTHER_GENDER_IN_100 = 1

_PERSON = ("first_name", "last_name", "full_name", "first_name_furigana", "last_name_furigana")

STAFF_COLUMNS = (
    "id",
    "email",
    "hashed_password",
    *_PERSON,
    "role",
    "language",
    "is_email_verified",
    "is_mfa_enabled",
    "mfa_secret",
    "failed_login_attempts",
    "is_locked",
    "last_login_at",
    "is_deleted",
    "deleted_at",
    "notification_preferences",
    *BOOKKEEPING_COLUMNS,
)
OFFICE_COLUMNS = (
    "id",
    "name",
    "type",
    "address",
    "phone_number",
    "email",
    "is_group",
    "created_by",
    "last_modified_by",
    "is_deleted",
    *BOOKKEEPING_COLUMNS,
)
OFFICE_STAFF_COLUMNS = ("id", "staff_id", "office_id", "is_primary", *BOOKKEEPING_COLUMNS)
RECIPIENT_COLUMNS = ("id", *_PERSON, "date_of_birth", "gender", *BOOKKEEPING_COLUMNS)
OFFICE_RECIPIENT_COLUMNS = ("id", "welfare_recipient_id", "office_id", *BOOKKEEPING_COLUMNS)
PLAN_COLUMNS = ("id", "office_id", "welfare_recipient_id", "responsible_staff_id", *BOOKKEEPING_COLUMNS)
CYCLE_COLUMNS = (
    "individual_support_plan_id",
    "cycle_number",
    "start_date",
    "end_date",
    "status",
    "is_latest_cycle",
    *BOOKKEEPING_COLUMNS,
)


@dataclass(frozen=True, slots=True)
class Dates:
    """All dates of a data set; they hang on one day, never on the clock."""

    #: The day that the data is made for.
    reference: date

    @property
    def cycle_start(self) -> str:
        """First day of every plan cycle."""
        return (self.reference - timedelta(days=CYCLE_STARTED_DAYS_AGO)).isoformat()

    @property
    def cycle_end(self) -> str:
        """Deadline of every plan cycle."""
        return (self.reference + timedelta(days=CYCLE_ENDS_IN_DAYS)).isoformat()

    @property
    def recorded_at(self) -> str:
        """When every row was created and last changed: 9 o'clock in Japan on the first day of the cycle."""
        return f"{self.cycle_start} 00:00:00+00"

    @property
    def logins(self) -> list[str]:
        """Times of a last login: in office hours of the 30 days before the reference date."""
        days = [(self.reference - timedelta(days=ago)).isoformat() for ago in range(1, 31)]
        return [
            f"{day} {hour:02d}:{minute:02d}:00+00"
            for day in days
            for hour, minute in ((0, 5), (4, 20), (8, 40))
        ]


def system_staff_row(staff_id: str, dates: Dates) -> Row:
    """The row of the one staff that owns generated offices."""
    surname, given = ("システム", "しすてむ"), ("管理者", "かんりしゃ")
    return (
        staff_id,
        f"{SYSTEM_STAFF_EMAIL_PREFIX}{_short(staff_id)}@example.com",
        TEST_PASSWORD_HASH,
        given[0],
        surname[0],
        f"{surname[0]} {given[0]}",
        given[1],
        surname[1],
        "app_admin",
        "ja",
        "t",
        "f",
        None,
        "0",
        "f",
        None,
        "f",
        None,
        NOTIFICATION_PREFERENCES,
        "t",
        dates.recorded_at,
        dates.recorded_at,
    )


def staff_rows(rng: Random, ids: Sequence[str], dates: Dates) -> Iterable[Row]:
    """Staff: employees with verified e-mail addresses and the documented password."""
    count = len(ids)
    last, first = _draw_surnames(rng, count), _draw_staff_given_names(rng, count)
    logins = rng.choices(dates.logins, k=count)
    emails = [
        f"{surname.romaji}.{given.romaji}.{_short(id_)}@example.com"
        for surname, given, id_ in zip(last, first, ids, strict=True)
    ]
    return zip(
        ids,
        emails,
        repeat(TEST_PASSWORD_HASH),
        *_person_columns(last, first),
        repeat("employee"),
        repeat("ja"),
        repeat("t"),
        repeat("f"),
        repeat(None),
        repeat("0"),
        repeat("f"),
        logins,
        repeat("f"),
        repeat(None),
        repeat(NOTIFICATION_PREFERENCES),
        *bookkeeping(dates.recorded_at),
        strict=False,
    )


def office_rows(
    rng: Random, ids: Sequence[str], dates: Dates, *, first_number: int, created_by: str
) -> Iterable[Row]:
    """Offices.

    Args:
        rng: Seeded generator.
        ids: Their ids.
        dates: The dates of the data set.
        first_number: Number of the first office; telephone numbers follow it.
        created_by: Id of the staff that owns them.

    Returns:
        One row for each office.
    """
    count = len(ids)
    kinds = rng.choices(names.office_kinds(), cum_weights=_kind_weights(), k=count)
    words = rng.choices(names.office_words(), k=count)
    suffixes = rng.choices(names.OFFICE_SUFFIXES, k=count)
    cities, towns = rng.choices(names.municipalities(), k=count), rng.choices(names.TOWNS, k=count)
    blocks, houses = rng.choices(_NUMBERS, k=count), rng.choices(_NUMBERS, k=count)
    return zip(
        ids,
        [f"{kind.prefix} {word}{suffix}" for kind, word, suffix in zip(kinds, words, suffixes, strict=True)],
        [kind.label for kind in kinds],
        [f"{city}{town}0丁目{b}-{h}" for city, town, b, h in zip(cities, towns, blocks, houses, strict=True)],
        map(names.phone_number, range(first_number, first_number + count)),
        [f"office.{_short(id_)}@example.com" for id_ in ids],
        repeat("f"),
        repeat(created_by),
        repeat(created_by),
        repeat("f"),
        *bookkeeping(dates.recorded_at),
        strict=False,
    )


def office_staff_rows(
    ids: Sequence[str], staff_ids: Iterable[str], office_ids: Iterable[str], dates: Dates
) -> Iterable[Row]:
    """Links of staff to their offices, which are their primary ones; one office id for each staff."""
    return zip(ids, staff_ids, office_ids, repeat("t"), *bookkeeping(dates.recorded_at), strict=False)


def recipient_rows(rng: Random, ids: Sequence[str], dates: Dates) -> Iterable[Row]:
    """Welfare recipients, 18 to 95 years old on the reference date."""
    count = len(ids)
    last = _draw_surnames(rng, count)
    sexes = rng.choices(("male", "female"), k=count)
    men, women = names.given_names("male"), names.given_names("female")
    male = rng.choices(men.names, cum_weights=men.cumulative_weights, k=count)
    female = rng.choices(women.names, cum_weights=women.cumulative_weights, k=count)
    others = rng.choices((False, True), cum_weights=(100 - _OTHER_GENDER_IN_100, 100), k=count)
    today = dates.reference.toordinal()
    births = rng.choices(range(today - _OLDEST_DAYS, today - _YOUNGEST_DAYS), k=count)
    first = [m if sex == "male" else f for sex, m, f in zip(sexes, male, female, strict=True)]
    return zip(
        ids,
        *_person_columns(last, first),
        [date.fromordinal(day).isoformat() for day in births],
        ["other" if other else sex for sex, other in zip(sexes, others, strict=True)],
        *bookkeeping(dates.recorded_at),
        strict=False,
    )


def office_recipient_rows(
    ids: Sequence[str], recipient_ids: Iterable[str], office_ids: Iterable[str], dates: Dates
) -> Iterable[Row]:
    """Links of recipients to their offices; one office id for each recipient."""
    return zip(ids, recipient_ids, office_ids, *bookkeeping(dates.recorded_at), strict=False)


def plan_rows(
    ids: Sequence[str],
    recipient_ids: Iterable[str],
    office_ids: Iterable[str],
    staff_ids: Iterable[str],
    dates: Dates,
) -> Iterable[Row]:
    """Support plans: one for each recipient, with its office and the staff that is responsible."""
    return zip(ids, office_ids, recipient_ids, staff_ids, *bookkeeping(dates.recorded_at), strict=False)


def cycle_rows(plan_ids: Iterable[str], dates: Dates) -> Iterable[Row]:
    """Plan cycles without their ids, which the server numbers: the first and latest of each plan."""
    return zip(
        plan_ids,
        repeat("1"),
        repeat(dates.cycle_start),
        repeat(dates.cycle_end),
        repeat("active"),
        repeat("t"),
        *bookkeeping(dates.recorded_at),
        strict=False,
    )


_NUMBERS = tuple(map(str, range(1, 31)))


def _short(id_: str) -> str:
    # 48 random bits: with the name before them, enough that no two addresses are equal.
    return id_[:8] + id_[9:13]


def _draw_surnames(rng: Random, count: int) -> list[names.Name]:
    pool = names.surnames()
    return rng.choices(pool.names, cum_weights=pool.cumulative_weights, k=count)


def _draw_staff_given_names(rng: Random, count: int) -> list[names.Name]:
    pool = _staff_given_names()
    return rng.choices(pool.names, cum_weights=pool.cumulative_weights, k=count)


def _person_columns(last: list[names.Name], first: list[names.Name]) -> tuple[list[str], ...]:
    return (
        [name.kanji for name in first],
        [name.kanji for name in last],
        [f"{surname.kanji} {given.kanji}" for surname, given in zip(last, first, strict=True)],
        [name.furigana for name in first],
        [name.furigana for name in last],
    )


@cache
def _kind_weights() -> tuple[int, ...]:
    return tuple(accumulate(kind.weight for kind in names.office_kinds()))


@cache
def _staff_given_names() -> names.NamePool:
    # Seven of ten who work in welfare are women; whole numbers keep the draws exact.
    men, women = names.given_names("male"), names.given_names("female")
    men_total, women_total = men.cumulative_weights[-1], women.cumulative_weights[-1]
    women_weights = [round(_WOMEN_AMONG_STAFF * 10) * men_total * total for total in women.cumulative_weights]
    men_factor = round((1 - _WOMEN_AMONG_STAFF) * 10) * women_total
    men_weights = [women_weights[-1] + men_factor * total for total in men.cumulative_weights]
    return names.NamePool(women.names + men.names, (*women_weights, *men_weights))
