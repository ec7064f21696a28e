"""The rows of the Keikaku data set, before any server sees them."""

from __future__ import annotations

import json
import re
import uuid
from collections import Counter
from datetime import date, timedelta
from random import Random

import bcrypt
import pytest

from keikaku_snapshots.datasets import keikaku, keikaku_rows, names
from keikaku_snapshots.datasets.ids import draw_ids
from keikaku_snapshots.datasets.keikaku_tables import metadata
from keikaku_snapshots.errors import UnknownScaleError
from tests.dataset_rows import DAY, Rows, digest, digests_elsewhere, rows_of

#: SHA-256 of all rows of scale small, seed 7, reference date 2026-04-01. It changes only when the
#: data of every seed change, and that belongs in the changelog.
SMALL_SEED_7 = "35898b8d986adbfe0f8bc163badf9dc1e3cb2a62337401518d58e4d938612d55"


def make(scale: str, seed: int | str = 7, day: date = DAY) -> Rows:
    """All rows of a scale as dicts, by table."""
    return rows_of("keikaku", scale, seed, day)


@pytest.fixture(scope="module")
def medium() -> Rows:
    """The rows of scale medium."""
    return make("medium")


def test_medium_has_the_promised_rows(medium: Rows) -> None:
    """A3: the counts of scale medium, table by table."""
    assert {table: len(rows) for table, rows in medium.items()} == {
        "staffs": 1001,
        "offices": 100,
        "office_staffs": 1000,
        "welfare_recipients": 10_000,
        "office_welfare_recipients": 10_000,
        "individual_support_plans": 10_000,
        "support_plan_cycles": 10_000,
    }


def test_progress_expects_the_rows_that_come(medium: Rows) -> None:
    """What the tables promise for progress is what they make."""
    scale = keikaku.dataset.scale("medium")

    assert {table.name: table.expected_rows(scale) for table in keikaku.dataset.tables} == {
        table: len(rows) for table, rows in medium.items()
    }


@pytest.mark.parametrize(
    ("name", "offices"), [("small", 10), ("medium", 100), ("large", 500), ("xlarge", 5000)]
)
def test_scales_have_ten_staff_and_a_hundred_recipients_per_office(name: str, offices: int) -> None:
    """A2: the built-in scales."""
    scale = keikaku.dataset.scale(name)

    assert (scale.units, dict(scale.per_unit)) == (offices, {"staffs": 10, "recipients": 100})


def test_an_unknown_scale_lists_the_known_ones() -> None:
    """A2: a ValueError that names all scales."""
    with pytest.raises(ValueError, match=r"small.*medium.*large.*xlarge") as caught:
        keikaku.dataset.scale("huge")

    assert isinstance(caught.value, UnknownScaleError)


def test_every_row_is_marked_as_test_data(medium: Rows) -> None:
    """A4: is_test_data is true in every row of every table."""
    assert {row["is_test_data"] for rows in medium.values() for row in rows} == {"t"}


def test_rows_fill_every_column_of_their_tables(medium: Rows) -> None:
    """No column is left to the server, whose clock would make two runs differ (A5)."""
    for table in metadata.sorted_tables:
        assert set(medium[table.name][0]) == set(table.columns.keys())


def test_references_point_to_rows_that_are_there(medium: Rows) -> None:
    """Every foreign key of the tables is satisfied by the rows."""
    for table in metadata.sorted_tables:
        for key in table.foreign_keys:
            parents = {row[key.column.name] for row in medium[key.column.table.name]}
            assert {row[key.parent.name] for row in medium[table.name]} <= parents, key


def test_ids_are_unique_uuids_of_version_4(medium: Rows) -> None:
    """Ids look like those that an application would make."""
    for table, rows in medium.items():
        ids = [row["id"] for row in rows]
        assert len(set(ids)) == len(ids)
        if table != "support_plan_cycles":
            assert {(uuid.UUID(i).version, uuid.UUID(i).variant, str(uuid.UUID(i)) == i) for i in ids} == {
                (4, uuid.RFC_4122, True)
            }


def test_ids_use_every_bit_that_version_4_leaves_free() -> None:
    """Each of the 32 digits takes all values that it may take."""
    seen = [set(column) for column in zip(*draw_ids(Random(1), 2000), strict=True)]

    assert {len(values) for place, values in enumerate(seen) if place not in {8, 13, 14, 18, 19, 23}} == {16}
    assert seen[14] == {"4"}
    assert seen[19] == set("89ab")


def test_people_have_a_name_of_the_pools_with_its_reading(medium: Rows) -> None:
    """A4: written name and furigana always belong together."""
    surnames = {(name.kanji, name.furigana) for name in names.surnames().names}
    given = {
        (name.kanji, name.furigana)
        for gender in ("male", "female")
        for name in names.given_names(gender).names
    }
    people = medium["staffs"][1:] + medium["welfare_recipients"]

    assert {(row["last_name"], row["last_name_furigana"]) for row in people} <= surnames
    assert {(row["first_name"], row["first_name_furigana"]) for row in people} <= given
    assert all(row["full_name"] == f"{row['last_name']} {row['first_name']}" for row in people)


def test_names_vary_as_much_as_in_life(medium: Rows) -> None:
    """Among 10,000 people nearly every surname occurs, and 佐藤 is about every 25th."""
    counted = Counter(row["last_name"] for row in medium["welfare_recipients"])

    assert len(counted) > 350
    assert 250 < counted["佐藤"] < 650


def test_recipients_are_grown_up_and_have_a_gender(medium: Rows) -> None:
    """18 to 95 years old on the reference date; male and female about alike, few others."""
    births = [date.fromisoformat(str(row["date_of_birth"])) for row in medium["welfare_recipients"]]
    genders = Counter(row["gender"] for row in medium["welfare_recipients"])

    assert max(births) <= date(DAY.year - 18, DAY.month, DAY.day)
    assert min(births) > date(DAY.year - 96, DAY.month, DAY.day)
    assert set(genders) == {"male", "female", "other"}
    assert 0 < genders["other"] < 300
    assert abs(genders["male"] - genders["female"]) < 500


def test_given_names_fit_the_gender(medium: Rows) -> None:
    """A man has a name of the men's pool, a woman one of the women's."""
    for gender in ("male", "female"):
        pool = {name.kanji for name in names.given_names(gender).names}
        drawn = {row["first_name"] for row in medium["welfare_recipients"] if row["gender"] == gender}
        assert drawn <= pool


def test_staff_are_employees_who_can_log_in(medium: Rows) -> None:
    """A4: 22 fields, the documented password, verified address, the five notification preferences."""
    staff = medium["staffs"][1]

    assert len(staff) == 22
    assert {row["role"] for row in medium["staffs"][1:]} == {"employee"}
    assert bcrypt.checkpw(keikaku_rows.TEST_PASSWORD.encode(), str(staff["hashed_password"]).encode())
    assert json.loads(str(staff["notification_preferences"])) == {
        "in_app_notification": True,
        "email_notification": True,
        "system_notification": False,
        "email_threshold_days": 30,
        "push_threshold_days": 10,
    }


def test_emails_are_unique_and_reach_nobody(medium: Rows) -> None:
    """A4: every address is another one in example.com."""
    for table in ("staffs", "offices"):
        emails = [str(row["email"]) for row in medium[table]]
        assert len(set(emails)) == len(emails)
        assert all(re.fullmatch(r"[a-z.]+\.[0-9a-f]{12}@example\.com", email) for email in emails)


def test_another_seed_draws_other_emails(medium: Rows) -> None:
    """Two seeds can be loaded side by side."""
    other = make("medium", seed=8)

    assert not {row["email"] for row in medium["staffs"]} & {row["email"] for row in other["staffs"]}


def test_offices_cannot_be_called_or_visited(medium: Rows) -> None:
    """A4: telephone numbers of nobody, in order, and addresses in a block that does not exist."""
    offices = medium["offices"]

    assert [row["phone_number"] for row in offices] == [f"03-0000-{number:04d}" for number in range(100)]
    assert all("0丁目" in str(row["address"]) for row in offices)


def test_one_system_staff_owns_the_offices_and_works_in_none(medium: Rows) -> None:
    """A3: it is the only staff without an office."""
    system = [row for row in medium["staffs"] if row["role"] == "app_admin"]
    working = {row["staff_id"] for row in medium["office_staffs"]}

    assert len(system) == 1
    assert {row["id"] for row in medium["staffs"]} - working == {system[0]["id"]}
    assert {row["created_by"] for row in medium["offices"]} == {system[0]["id"]}
    assert {row["last_modified_by"] for row in medium["offices"]} == {system[0]["id"]}


def test_the_first_staff_of_an_office_is_responsible_for_its_plans(medium: Rows) -> None:
    """Each plan has the office of its recipient and that office's first staff."""
    first: dict[object, object] = {}
    for link in medium["office_staffs"]:
        first.setdefault(link["office_id"], link["staff_id"])
    offices = {row["welfare_recipient_id"]: row["office_id"] for row in medium["office_welfare_recipients"]}

    for plan in medium["individual_support_plans"]:
        assert plan["office_id"] == offices[plan["welfare_recipient_id"]]
        assert plan["responsible_staff_id"] == first[plan["office_id"]]


def test_every_office_has_the_same_number_of_people(medium: Rows) -> None:
    """A2: 10 staff and 100 recipients in each office."""
    assert set(Counter(row["office_id"] for row in medium["office_staffs"]).values()) == {10}
    assert set(Counter(row["office_id"] for row in medium["office_welfare_recipients"]).values()) == {100}


def test_cycles_began_335_days_ago_and_end_in_25(medium: Rows) -> None:
    """A2: the deadline of every plan falls within 30 days of the reference date."""
    cycles = medium["support_plan_cycles"]
    facts = ("cycle_number", "start_date", "end_date", "status", "is_latest_cycle")

    assert {tuple(row[fact] for fact in facts) for row in cycles} == {
        ("1", str(DAY - timedelta(days=335)), str(DAY + timedelta(days=25)), "active", "t")
    }
    assert [row["id"] for row in cycles] == [str(number) for number in range(1, 10_001)]


def test_dates_follow_the_reference_date_and_nothing_else_does() -> None:
    """Another reference date moves dates; names and ids stay."""
    today, later = make("small"), make("small", day=DAY + timedelta(days=30))

    assert today["support_plan_cycles"][0]["end_date"] != later["support_plan_cycles"][0]["end_date"]
    assert [row["full_name"] for row in today["staffs"]] == [row["full_name"] for row in later["staffs"]]
    assert today["offices"][0]["id"] == later["offices"][0]["id"]


@pytest.mark.parametrize("day", [date(2024, 2, 29), date(2026, 12, 31), date(2000, 1, 1)])
def test_any_reference_date_will_do(day: date) -> None:
    """Leap days and turns of the year included."""
    assert len(make("small", day=day)["support_plan_cycles"]) == 1000


def test_the_data_of_a_seed_never_change() -> None:
    """A5: the bytes of a seed are the same as when this test was written."""
    assert digest(make("small")) == SMALL_SEED_7


def test_two_processes_make_the_same_data() -> None:
    """A5: another process with another hash seed, time zone and locale makes the same bytes."""
    assert digests_elsewhere("keikaku", "small") == [SMALL_SEED_7, SMALL_SEED_7]


def test_own_numbers_of_people_are_followed() -> None:
    """A2: a scale of a configuration may have other numbers of people per office."""
    from keikaku_snapshots.datasets.dataset import Scale

    scale = Scale("tiny", 3, None, {"staffs": 2, "recipients": 5})
    shards = list(keikaku.dataset.shards(scale, seed=1, reference_date=DAY))

    counted = {
        table.name: sum(len(list(table.rows(shard))) for shard in shards) for table in keikaku.dataset.tables
    }
    assert counted == {
        "staffs": 7,
        "offices": 3,
        "office_staffs": 6,
        "welfare_recipients": 15,
        "office_welfare_recipients": 15,
        "individual_support_plans": 15,
        "support_plan_cycles": 15,
    }
