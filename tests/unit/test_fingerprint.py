"""Readable difference of two schemas, and digests that mean the right thing."""

from __future__ import annotations

import pytest

from keikaku_snapshots.postgres.catalog import difference, names_and_types
from keikaku_snapshots.postgres.fingerprint import stable

OLD = {
    "table public.staffs": "columns id, email",
    "column public.staffs.id": "uuid NOT NULL",
    "column public.staffs.email": "character varying(255)",
}


def test_no_difference_is_no_line() -> None:
    """Equal schemas have nothing to say."""
    assert difference(OLD, dict(OLD)) == []


@pytest.mark.parametrize(
    ("change", "line"),
    [
        (
            {"column public.staffs.email": "text"},
            "table public.staffs: column email: character varying(255) → text",
        ),
        (
            {
                "table public.staffs": "columns id, email, age",
                "column public.staffs.age": "integer NOT NULL",
            },
            "table public.staffs: new column age integer NOT NULL without default",
        ),
        (
            {
                "table public.staffs": "columns id, email, age",
                "column public.staffs.age": "integer NOT NULL DEFAULT 0",
            },
            "table public.staffs: new column age integer NOT NULL DEFAULT 0",
        ),
        ({"index public.x": "CREATE INDEX x"}, "new index public.x"),
        (
            {"table public.staffs": "columns email, id"},
            "table public.staffs: columns id, email → columns email, id",
        ),
    ],
)
def test_a_change_is_one_readable_line(change: dict[str, str], line: str) -> None:
    """B7: the message names what differs."""
    assert difference(OLD, {**OLD, **change}) == [line]


def test_a_new_table_is_named_once() -> None:
    """Its columns go without saying."""
    new = {**OLD, "table public.t": "columns id", "column public.t.id": "integer"}

    assert difference(OLD, new) == ["new table public.t"]
    assert difference(new, OLD) == ["table public.t is gone"]


def test_across_versions_only_names_and_types_count() -> None:
    """docs/design.md, Valid files: definitions are worded differently by another major version."""
    assert names_and_types(OLD) == names_and_types({**OLD, "constraint c on public.staffs": "CHECK …"})
    assert names_and_types(OLD) != names_and_types({**OLD, "column public.staffs.email": "text"})


def test_a_list_of_varchars_is_worded_as_after_a_dump() -> None:
    """The server words such a check differently after a restore, without any change of meaning."""
    typed = "((s)::text = ANY ((ARRAY['a'::character varying, 'it''s'::character varying])::text[]))"
    restored = "((s)::text = ANY (ARRAY[('a'::character varying)::text, ('it''s'::character varying)::text]))"

    assert stable(typed) == stable(restored) == restored
